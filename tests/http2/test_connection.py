"""Two connections that talk to each other in memory, whatever the sizes and however the bytes arrive."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cacheservice.http2 import frames
from cacheservice.http2.frames import FIRST_FRAME_BYTES, MAX_FRAME_BYTES, Flag, Kind, Setting
from cacheservice.http2.statuses import CallStatus, status_of, trailers
from cacheservice.http2.stream import MESSAGE_HEADER_BYTES, Stream
from tests.http2.both_ends import MAX_MESSAGE_BYTES, BothEnds, Heard

WINDOWS = st.sampled_from([1_000, 20_000, 70_000, 300_000])
SIZES = st.one_of(st.integers(0, 40), st.integers(0, 70_000), st.integers(0, 600_000))
CHUNKS = st.sampled_from([1, 8, 9, 10, 100, 16_393, 100_000, MAX_FRAME_BYTES + 9, 1 << 30])
SIDES = st.sampled_from(["client", "server"])


class Streams(RuleBasedStateMachine):
    """Sends, pauses and delivers at random; every message is to arrive once, in order and whole."""

    @initialize(window=WINDOWS, of_all=st.sampled_from([65_536, 80_000, 1 << 20]))
    def begin(self, window: int, of_all: int) -> None:
        self.window = window
        self.ends = BothEnds(window, of_all)
        self.sent: dict[tuple[str, int], list[bytes]] = {}
        self.heard: dict[int, Heard] = {}
        self.streams: dict[int, Stream] = {}
        self.finished: set[int] = set()
        self.cancelled: set[int] = set()
        self.paused_at: dict[tuple[str, int], int] = {}
        self.ends.deliver_all()

    def teardown(self) -> None:
        """Lets everything go on, and looks at what has arrived in the end."""
        if not hasattr(self, "ends"):
            return
        try:
            for side in (self.ends.client, self.ends.server):
                side.paused(False)
                for stream in side.streams:
                    stream.resume()
            self.ends.deliver_all()
            for number in self.streams.keys() - self.cancelled:
                ours, (_, theirs) = self.heard[number], self.ends.accepted[number]
                if number not in self.finished:
                    assert theirs.messages == self.sent.get(("client", number), [])
                assert ours.messages == self.sent.get(("server", number), [])
                assert len(ours.ends) == (number in self.finished)
                if ours.ends:
                    assert status_of(ours.ends[0]) == CallStatus(7, "done")
        finally:
            self.ends.close()

    @precondition(lambda self: len(self.streams) < 5)
    @rule()
    def open_stream(self) -> None:
        stream, heard = self.ends.open()
        self.streams[stream.id], self.heard[stream.id] = stream, heard

    def of(self, side: str, number: int) -> Stream | None:
        """That side's end of the stream, as far as it exists."""
        if side == "client":
            return self.streams[number]
        return self.ends.accepted[number][0] if number in self.ends.accepted else None

    def chosen(self, data: Any, side: str) -> Stream | None:
        if not self.streams:
            return None
        return self.of(side, data.draw(st.sampled_from(sorted(self.streams))))

    @rule(data=st.data(), side=SIDES, size=SIZES)
    def send(self, data: Any, side: str, size: int) -> None:
        stream = self.chosen(data, side)
        if stream is None or stream.id in self.finished | self.cancelled:
            return
        message = data.draw(st.binary(min_size=8, max_size=8)) * (size // 8) + bytes(size % 8)
        self.sent.setdefault((side, stream.id), []).append(message)
        stream.send(message)

    @rule(data=st.data())
    def finish(self, data: Any) -> None:
        stream = self.chosen(data, "server")
        if stream is not None and stream.id not in self.finished | self.cancelled:
            self.finished.add(stream.id)
            stream.finish(trailers(CallStatus(7, "done")))

    @rule(data=st.data(), side=SIDES)
    def cancel(self, data: Any, side: str) -> None:
        stream = self.chosen(data, side)
        if stream is not None and stream.id not in self.finished:
            self.cancelled.add(stream.id)
            stream.cancel()

    @rule(data=st.data(), side=SIDES, is_paused=st.booleans())
    def pause_stream(self, data: Any, side: str, is_paused: bool) -> None:
        stream = self.chosen(data, side)
        if stream is None:
            return
        self.paused_at.pop((side, stream.id), None)
        if is_paused:
            stream.pause()
            self.paused_at[side, stream.id] = self.received(side, stream.id)
        else:
            stream.resume()

    @rule(side=SIDES, is_paused=st.booleans())
    def pause_socket(self, side: str, is_paused: bool) -> None:
        (self.ends.client if side == "client" else self.ends.server).paused(is_paused)

    @rule(side=SIDES, size=CHUNKS, times=st.integers(1, 20))
    def deliver(self, side: str, size: int, times: int) -> None:
        for _ in range(times):
            (self.ends.to_client if side == "client" else self.ends.to_server)(size)

    def received(self, side: str, number: int) -> int:
        """Bytes of messages that have arrived there as a whole."""
        heard = self.heard[number] if side == "client" else self.ends.accepted[number][1]
        return sum(MESSAGE_HEADER_BYTES + len(message) for message in heard.messages)

    @invariant()
    def nothing_but_what_was_sent(self) -> None:
        for number, (_, heard) in self.ends.accepted.items():
            sent = self.sent.get(("client", number), [])
            assert heard.messages == sent[: len(heard.messages)]
        for number, heard in self.heard.items():
            sent = self.sent.get(("server", number), [])
            assert heard.messages == sent[: len(heard.messages)]

    @invariant()
    def who_is_paused_receives_no_more_than_a_window(self) -> None:
        for (side, number), before in self.paused_at.items():
            # Of the first message, what has arrived before the pause is of no account.
            sent = self.sent.get(("server" if side == "client" else "client", number), [])
            longest = max(map(len, sent), default=0) + MESSAGE_HEADER_BYTES
            assert self.received(side, number) - before <= self.window + longest


TestStreams = Streams.TestCase
TestStreams.settings = settings(max_examples=40, stateful_step_count=40)


@pytest.fixture
def ends() -> Iterator[BothEnds]:
    made = BothEnds()
    yield made
    made.close()


@pytest.fixture
def narrow() -> Iterator[BothEnds]:
    """With small windows."""
    made = BothEnds(100_000, 80_000)
    yield made
    made.close()


@pytest.mark.parametrize(
    "size", [0, 1, FIRST_FRAME_BYTES - 5, FIRST_FRAME_BYTES - 4, 65_530, 65_531, 1_000_000]
)
def test_sizes_at_the_edges_of_windows(narrow: BothEnds, size: int) -> None:
    (ours, _), (_, theirs) = narrow.opened()
    message = bytes(range(256)) * (size // 256) + bytes(size % 256)
    for _ in range(3):
        ours.send(message)
    assert ours.is_blocked == (3 * (size + 5) > 80_000)
    narrow.deliver_all()
    assert not ours.is_blocked
    assert theirs.messages == [message] * 3


@pytest.mark.parametrize("size", [FIRST_FRAME_BYTES, MAX_FRAME_BYTES - 5, MAX_FRAME_BYTES - 4, 1_000_000])
def test_sizes_at_the_edges_of_frames(ends: BothEnds, size: int) -> None:
    (ours, _), (_, theirs) = ends.opened()
    before = len(ends.from_client.sent)
    message = bytes(range(256)) * (size // 256) + bytes(size % 256)
    ours.send(message)
    assert not ours.is_blocked
    headers = -(-(size + 5) // MAX_FRAME_BYTES)
    assert len(ends.from_client.sent) - before == size + 5 + headers * frames.HEADER_BYTES
    while ends.from_client.on_the_way:
        ends.to_server(10_000)
    assert theirs.messages == [message]


def test_no_frame_is_larger_than_the_other_side_takes(ends: BothEnds) -> None:
    """The notary holds each of them against what that has said."""
    (ours, _), (_, theirs) = ends.opened()
    ends.client.receive(frames.settings({Setting.MAX_FRAME_SIZE: 20_000}))
    ends.from_server.frame_bytes = 20_000
    for size in (19_996, 20_000, 100_000):
        ours.send(bytes(size))
    ends.deliver_all()
    assert list(map(len, theirs.messages)) == [19_996, 20_000, 100_000]


def test_what_is_left_of_a_frame_whose_stream_was_cancelled_is_nothing(ends: BothEnds) -> None:
    """And not counted piece by piece, however small those are."""
    (ours, _), (stream, theirs) = ends.opened()
    (other, _), (_, kept) = ends.opened()
    ours.send(bytes(50_000))
    ends.to_server(1_000)
    stream.cancel()
    while ends.from_client.on_the_way:
        ends.to_server(1)
    other.send(b"goes on")
    ends.deliver_all()
    assert theirs.messages == []
    assert kept.messages == [b"goes on"]


def test_the_last_headers_come_after_all_data(narrow: BothEnds) -> None:
    (_, ours), (stream, _) = narrow.opened()
    for _ in range(5):
        stream.send(bytes(60_000))
    stream.finish(trailers(CallStatus(0)))
    assert not stream.has_ended
    narrow.deliver_all()
    assert [len(message) for message in ours.messages] == [60_000] * 5
    assert status_of(ours.ends[0]) == CallStatus(0)
    assert (narrow.client.streams, narrow.server.streams) == ([], [])


def test_what_the_socket_does_not_take_waits_and_its_sender_is_told(ends: BothEnds) -> None:
    (ours, heard), (_, theirs) = ends.opened()
    ends.client.paused(True)
    assert ours.is_blocked
    ours.send(bytes(100_000))
    ends.deliver_all()
    assert theirs.messages == []
    ends.client.paused(False)
    assert heard.writable_calls == 1
    ends.deliver_all()
    assert theirs.messages == [bytes(100_000)]


def test_small_messages_too_wait_while_the_socket_takes_nothing(ends: BothEnds) -> None:
    """Whoever leaves its answers unread while its windows are wide open would fill the memory otherwise."""
    _, (stream, _) = ends.opened()
    ends.server.paused(True)
    while not stream.is_behind(1_000_000):
        stream.send(bytes(10_000))
    assert len(ends.from_server.sent) < 1_000


def test_streams_share_a_connection_fairly(narrow: BothEnds) -> None:
    """Also when the windows let no more than one frame pass at a time."""
    opened = [narrow.opened()[1][0] for _ in range(5)]
    for stream in opened:
        stream.send(bytes(500_000))
    before = dict(narrow.from_server.data_bytes)
    for _ in range(13):
        narrow.from_client.given[0] += FIRST_FRAME_BYTES
        narrow.server.receive(frames.window_update(0, FIRST_FRAME_BYTES))
    # The first stream has left little of its own window, when it had all of the connection's.
    sent = [narrow.from_server.data_bytes[stream.id] - before.get(stream.id, 0) for stream in opened[1:]]
    assert max(sent) - min(sent) <= FIRST_FRAME_BYTES
    assert min(sent) >= 2 * FIRST_FRAME_BYTES


def test_windows_that_shrink_and_grow_for_streams_that_are_open(ends: BothEnds) -> None:
    (ours, _), _ = ends.opened()
    before = ours.send_window
    ends.client.receive(frames.settings({Setting.INITIAL_WINDOW_SIZE: 10}))
    assert ours.send_window == before - 4 * 1024 * 1024 + 10
    ends.from_server.first_window = 10
    ours.send(b"a" * 100)
    assert ours.is_blocked
    ends.from_server.first_window = 200
    ends.client.receive(frames.settings({Setting.INITIAL_WINDOW_SIZE: 200}))
    assert not ours.is_blocked


@pytest.mark.parametrize("size", [1, 10, 1 << 30])
def test_padding_is_no_part_however_the_frame_arrives(ends: BothEnds, size: int) -> None:
    (ours, _), (_, theirs) = ends.opened()
    frame = frames.frame(Kind.DATA, Flag.PADDED, ours.id, b"\3" + b"\0\0\0\0\1x" + bytes(3))
    for start in range(0, len(frame), size):
        ends.server.receive(frame[start : start + size])
    assert theirs.messages == [b"x"]


@pytest.mark.parametrize("size", [1, 10, 1 << 30])
def test_a_stream_ends_with_the_last_byte_of_its_last_frame(ends: BothEnds, size: int) -> None:
    (ours, heard), _ = ends.opened()
    frame = frames.frame(Kind.DATA, Flag.END_STREAM, ours.id, b"\0\0\0\0\x14" + bytes(20))
    for start in range(0, len(frame), size):
        assert heard.ends == []
        ends.client.receive(frame[start : start + size])
    assert heard.messages == [bytes(20)]
    assert len(heard.ends) == 1


def test_a_connection_that_goes_away_lets_its_streams_end(ends: BothEnds) -> None:
    (ours, heard), (stream, _) = ends.opened()
    ends.server.go_away()
    ends.deliver_all()
    assert heard.ends == []
    ours.send(b"still")
    stream.send(b"served")
    stream.finish(trailers(CallStatus(0)))
    ends.deliver_all()
    assert heard.messages == [b"served"]
    assert status_of(heard.ends[0]) == CallStatus(0)


def test_a_stream_that_comes_too_late_is_refused(ends: BothEnds) -> None:
    ends.deliver_all()
    ends.server.go_away()
    _, heard = ends.open()
    ends.deliver_all()
    assert [end.was_refused for end in heard.ends] == [True]


@pytest.mark.parametrize("is_lost", [False, True])
def test_a_stream_opened_where_none_is_served_any_longer_ends_at_once(ends: BothEnds, is_lost: bool) -> None:
    if is_lost:
        ends.client.lost("cut")
    else:
        ends.server.go_away()
        ends.deliver_all()
    stream, heard = ends.open()
    assert [end.was_refused for end in heard.ends] == [True]
    assert stream.has_ended
    assert ends.client.streams == []


def test_a_message_that_is_too_long_ends_its_stream_alone(ends: BothEnds) -> None:
    (ours, heard), (_, theirs) = ends.opened()
    (other, _), (_, kept) = ends.opened()
    ours.send(bytes(MAX_MESSAGE_BYTES + 1))
    other.send(b"short")
    ends.deliver_all()
    status = status_of(heard.ends[0])
    assert (status.code, "1,048,577 bytes" in status.message) == (8, True)
    assert len(theirs.ends) == 1
    assert kept.messages == [b"short"]
    assert [stream.id for stream in ends.server.streams] == [other.id]


def test_an_answer_that_is_too_long_ends_the_call(ends: BothEnds) -> None:
    (_, heard), (stream, theirs) = ends.opened()
    stream.send(bytes(MAX_MESSAGE_BYTES + 1))
    ends.deliver_all()
    assert "1,048,577 bytes" in heard.ends[0].why
    assert len(theirs.ends) == 1
    assert (ends.client.streams, ends.server.streams) == ([], [])

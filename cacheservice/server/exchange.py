"""The batches of Exchange streams: each decoded, done, and its results encoded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

from cacheservice.config import Settings
from cacheservice.errors import CacheServiceError, InvalidArgument
from cacheservice.node.columns import Errors, Reads, Removals, Writes
from cacheservice.node.later import Later, Soon, then
from cacheservice.server import column_codec as codec
from cacheservice.server.admission import Admission
from cacheservice.server.appended import with_reads
from cacheservice.server.completion import Pending, completed, defect
from cacheservice.server.decode import Bounds, is_nearest, lease_wait_ms
from cacheservice.server.direct_stream import Begun
from cacheservice.v1 import cache_pb2 as pb
from cacheservice.wire import to_status

Result = TypeVar("Result")


def requests(message: pb.ExchangeRequest) -> Iterator[pb.ExchangeRequest]:
    """Those in a message, in order."""
    yield message
    for further in message.more:
        yield from requests(further)


class Doer(Protocol):
    """Who does batches; see `Batches`."""

    def get(
        self,
        keys: list[str],
        timeout_ms: int,
        *,
        values_only: bool,
        nearest: bool,
        lease: bool,
        wait_ms: int,
    ) -> Soon[Reads]: ...

    def set(
        self,
        keys: Sequence[str],
        values: Sequence[bytes],
        ttl_ms: Sequence[int],
        stale_ms: Sequence[int],
        timeout_ms: int,
    ) -> Soon[Writes]: ...

    def delete(self, keys: Sequence[str], timeout_ms: int) -> Soon[Removals]: ...


class Encoded:
    """A response, and what was read, which is to be appended to it."""

    def __init__(
        self, response: pb.ExchangeResponse, outcomes: Sequence[int] = (), values: Sequence[bytes] = ()
    ) -> None:
        self.response = response
        self.outcomes = outcomes
        self.values = values


class Exchange:
    """Answers batches; `begin` is what a stream calls for each."""

    def __init__(
        self, batches: Doer, admission: Admission, settings: Settings, ring_epoch: Callable[[], int]
    ) -> None:
        self._batches = batches
        self._admission = admission
        self._ring_epoch = ring_epoch
        self._bounds = Bounds(settings.max_value_bytes, settings.replication_factor)
        self._max_answer_bytes = int(settings.max_message_bytes)
        self._default_timeout_ms = round(settings.default_timeout_seconds * 1_000)

    def begin(self, request: pb.ExchangeRequest) -> Begun:
        """Does the batch, or as much of it as needs no other node; the rest is under way then."""
        batch_id = request.batch_id
        try:
            with self._admission:
                done = self._start(request)
                if isinstance(done, Later):
                    self._admission.goes_on()
        except CacheServiceError as error:
            return self._refused(batch_id, error)
        except Exception:
            return self._refused(batch_id, defect())
        if isinstance(done, Later):
            return Pending(done.future, partial(self._completed, batch_id, done))
        return self._answer(batch_id, done)

    def _start(self, request: pb.ExchangeRequest) -> Soon[Encoded]:
        timeout_ms = request.timeout_ms or self._default_timeout_ms
        match request.WhichOneof("batch"):
            case "get":
                keys = codec.keys(request.get.keys)
                reads = self._batches.get(
                    keys.keys,
                    timeout_ms,
                    values_only=request.get.values_only,
                    nearest=is_nearest(request.get.read_preference),
                    lease=request.get.HasField("lease"),
                    wait_ms=lease_wait_ms(request.get),
                )
                return _then(reads, keys.refused, self._encode_reads)
            case "set":
                entries = codec.entries(request.set, self._bounds)
                writes = self._batches.set(
                    entries.keys, entries.values, entries.ttl_ms, entries.stale_ms, timeout_ms
                )
                return _then(writes, entries.refused, _encode_writes)
            case "delete":
                keys = codec.keys(request.delete.keys)
                removals = self._batches.delete(keys.keys, timeout_ms)
                return _then(removals, keys.refused, _encode_removals)
            case _:
                raise InvalidArgument.of("batch", "present", "none")

    def _completed(self, batch_id: int, later: Later[Encoded]) -> bytes:
        self._admission.ended()
        answer, refused = partial(self._answer, batch_id), partial(self._refused, batch_id)
        return completed(later, answer, refused)

    def _answer(self, batch_id: int, encoded: Encoded) -> bytes:
        return self._addressed(batch_id, encoded.response, encoded.outcomes, encoded.values)

    def _encode_reads(self, reads: Reads) -> Encoded:
        return Encoded(
            codec.reads(reads, self._max_answer_bytes, is_whole=False), reads.outcomes, reads.values
        )

    def _refused(self, batch_id: int, error: CacheServiceError) -> bytes:
        return self._addressed(batch_id, pb.ExchangeResponse(refused=to_status(error)))

    def _addressed(
        self,
        batch_id: int,
        response: pb.ExchangeResponse,
        outcomes: Sequence[int] = (),
        values: Sequence[bytes] = (),
    ) -> bytes:
        response.batch_id = batch_id
        response.ring_epoch = self._ring_epoch()
        return with_reads(response.SerializeToString(), outcomes, values)


def _encode_writes(writes: Writes) -> Encoded:
    return Encoded(codec.writes(writes))


def _encode_removals(removals: Removals) -> Encoded:
    return Encoded(codec.removals(removals))


def _then(result: Soon[Result], refused: Errors, encode: Callable[[Result], Encoded]) -> Soon[Encoded]:
    """The response, with the refused rows in their places."""
    return then(result, partial(_encoded, refused, encode))


def _encoded(refused: Errors, encode: Callable[[Any], Encoded], result: Any) -> Encoded:
    return encode(result.with_refused(refused) if refused else result)

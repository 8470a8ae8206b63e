from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from cacheservice.clock import ManualClock
from cacheservice.node.operations import Change
from cacheservice.node.peers import Peers
from cacheservice.node.replay import replay
from cacheservice.node.replication import Copies, Replicator
from cacheservice.node.transport import PeerUnreachable
from cacheservice.node.view import View
from cacheservice.ring import Ring
from cacheservice.store import Entry
from tests.node.no_transport import NoTransport


class SlowTransport(NoTransport):
    """Answers a replica's request once it is let go; refuses while `is_down`."""

    def __init__(self) -> None:
        self.is_down = False
        self.fails = False
        self.defect: Exception | None = None
        self.answered = 0
        self.lacks = 0
        self.started = asyncio.Event()
        self.let_go = asyncio.Event()

    async def replicate(self, node_id: str, changes: Sequence[Change], *, timeout_ms: int) -> list[int]:
        if self.is_down:
            raise PeerUnreachable(node_id, "down", maybe_done=False)
        if self.defect is not None:
            raise self.defect
        self.started.set()
        await self.let_go.wait()
        self.answered += 1
        if self.fails:
            raise PeerUnreachable(node_id, "fails", maybe_done=True)
        return [change.version for change in changes[self.lacks :]]


def change(key: str, version: int) -> Change:
    return Change(key, version, Entry(b"v", version, 0))


@pytest.fixture
def transport() -> SlowTransport:
    return SlowTransport()


@pytest.fixture
def replicator(transport: SlowTransport) -> Replicator:
    peers = Peers("n1", View(Ring(())), 0, ManualClock(), lambda _: None)
    return Replicator(transport, peers)


async def test_a_write_missed_while_an_older_one_is_replayed_is_hinted_anew(
    transport: SlowTransport, replicator: Replicator
) -> None:
    replicator.hints.add("n2", "k")
    peers = replicator._peers
    replaying = asyncio.create_task(
        replay("n2", replicator.hints, lambda key: change(key, 1), transport, peers, 100)
    )
    await transport.started.wait()
    transport.is_down = True
    assert await replicator.replicate([change("k", 2)], [["n2"]], 100) == [Copies(missed=("n2",))]
    transport.let_go.set()
    await replaying
    assert len(replicator.hints) == 1


async def test_a_replay_that_fails_keeps_its_hints(transport: SlowTransport, replicator: Replicator) -> None:
    transport.is_down = True
    replicator.hints.add("n2", "k")
    await replay("n2", replicator.hints, lambda key: change(key, 1), transport, replicator._peers, 100)
    assert len(replicator.hints) == 1


async def test_a_key_of_which_nothing_is_known_any_longer_needs_no_hint(
    transport: SlowTransport, replicator: Replicator
) -> None:
    replicator.hints.add("n2", "k")
    await replay("n2", replicator.hints, lambda _: None, transport, replicator._peers, 100)
    assert len(replicator.hints) == 0


@pytest.mark.parametrize("targets", [["n2"], ["n2", "n3"]])
@pytest.mark.parametrize("answers", [True, False])
async def test_when_the_caller_goes_the_copies_go_on(
    transport: SlowTransport, replicator: Replicator, targets: list[str], answers: bool
) -> None:
    """And replicas that give no answer then are hinted."""
    copies = replicator.replicate([change("k", 1)], [targets], 100)
    await transport.started.wait()
    copies.cancel()
    transport.fails = not answers
    transport.let_go.set()
    async with asyncio.timeout(10):
        while transport.answered != len(targets):
            await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert sorted(replicator.hints.nodes()) == ([] if answers else targets)


async def test_an_answer_that_lacks_versions_is_none(
    transport: SlowTransport, replicator: Replicator
) -> None:
    transport.lacks = 1
    transport.let_go.set()
    changes = [change("k", 1), change("l", 2)]
    async with asyncio.timeout(10):
        copies = await replicator.replicate(changes, [["n2"], ["n2"]], 100)
    assert copies == [Copies(missed=("n2",))] * 2
    assert replicator.hints.nodes() == ["n2"]


async def test_what_is_no_answer_at_all_is_the_writers_error_and_the_replica_is_hinted(
    transport: SlowTransport, replicator: Replicator
) -> None:
    transport.defect = ZeroDivisionError("defect")
    with pytest.raises(ZeroDivisionError, match="defect"):
        await replicator.replicate([change("k", 1)], [["n2", "n3"]], 100)
    await asyncio.sleep(0)
    assert sorted(replicator.hints.nodes()) == ["n2", "n3"]

"""Copies of every write on the nodes that follow the owner, before it is answered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from cacheservice.node.hints import Hints
from cacheservice.node.operations import Change
from cacheservice.node.peers import Peers
from cacheservice.node.transport import PeerUnreachable, Transport

HINTS_AT_A_TIME = 500

Result = TypeVar("Result")


@dataclass(slots=True)
class Copies:
    """How many replicas hold a change or something later, which gave no answer, and the latest version."""

    count: int = 0
    missed: tuple[str, ...] = ()
    latest: int = 0


class Replicator:
    """Sends changes to replicas, all that go to one of them in one request, and counts the copies.

    A replica that does not answer in time, or is avoided for now, does not fail the write: it is hinted,
    and gets what it missed from `replay`.
    """

    def __init__(self, transport: Transport, peers: Peers) -> None:
        self.failures = 0
        self.hints = Hints()
        self.has_news = asyncio.Event()
        """Whether there are hints that need not wait for anything."""
        self._transport = transport
        self._peers = peers

    async def replicate(
        self,
        changes: Sequence[Change],
        targets: Sequence[Sequence[str]],
        timeout_ms: int,
        unreachable: Collection[str] = (),
        *,
        hints: bool = True,
    ) -> list[Copies]:
        """Gives each change to its targets, and waits for their answers at most `timeout_ms`.

        Those that are `unreachable` are not tried. Without `hints` it is not remembered who missed what.
        """
        by_node: dict[str, list[int]] = {}
        for position, node_ids in enumerate(targets):
            for node_id in node_ids:
                by_node.setdefault(node_id, []).append(position)
        copies = [Copies() for _ in changes]
        answers: Sequence[list[int] | None] = [None] * len(by_node)
        try:
            answers = await self._send_all(by_node, changes, timeout_ms, unreachable)
        finally:
            # Even if the caller has gone: the changes are made, and others must hear of them.
            for (node_id, positions), versions in zip(by_node.items(), answers, strict=True):
                if versions is None:
                    self._missed(node_id, positions, changes, copies, hints=hints)
                else:
                    self._confirmed(positions, versions, changes, copies)
        return copies

    def tell_later(self, node_ids: Sequence[str], key: str) -> None:
        """Has the nodes told of the key by the next `replay`."""
        for node_id in node_ids:
            self.hints.add(node_id, key)
        self.has_news.set()

    async def replay(self, node_id: str, change_of: Callable[[str], Change | None], timeout_ms: int) -> None:
        """Sends the node what it missed, as `change_of` a key has it now, until it gives no answer."""
        while keys := self.hints.take(node_id, HINTS_AT_A_TIME):
            changes = [change for change in map(change_of, keys) if change is not None]
            try:
                if changes:
                    await self._transport.replicate(node_id, changes, timeout_ms=timeout_ms)
            except (PeerUnreachable, asyncio.CancelledError) as failure:
                for key in keys:
                    self.hints.add(node_id, key)
                if isinstance(failure, asyncio.CancelledError):
                    raise
                self._peers.failed(failure, timeout_ms)
                return
            self._peers.answered(node_id)

    async def _send_all(
        self,
        by_node: Mapping[str, list[int]],
        changes: Sequence[Change],
        timeout_ms: int,
        unreachable: Collection[str],
    ) -> Sequence[list[int] | None]:
        """What each node holds afterwards; None for those that gave no answer."""
        sending = [
            self._send(node_id, [changes[position] for position in positions], timeout_ms)
            for node_id, positions in by_node.items()
            if node_id not in unreachable
        ]
        done = iter(await _all_of(sending))
        return [None if node_id in unreachable else next(done) for node_id in by_node]

    async def _send(self, node_id: str, changes: Sequence[Change], timeout_ms: int) -> list[int] | None:
        if self._peers.is_avoided(node_id):
            return None
        try:
            versions = await self._transport.replicate(node_id, changes, timeout_ms=timeout_ms)
        except PeerUnreachable as failure:
            self._peers.failed(failure, timeout_ms)
            return None
        self._peers.answered(node_id)
        return versions

    def _missed(
        self,
        node_id: str,
        positions: Sequence[int],
        changes: Sequence[Change],
        copies: Sequence[Copies],
        *,
        hints: bool,
    ) -> None:
        for position in positions:
            copies[position].missed += (node_id,)
            if hints:
                self.failures += 1
                self.hints.add(node_id, changes[position].key)

    def _confirmed(
        self,
        positions: Sequence[int],
        versions: Sequence[int],
        changes: Sequence[Change],
        copies: Sequence[Copies],
    ) -> None:
        for position, version in zip(positions, versions, strict=True):
            made = copies[position]
            if version >= changes[position].version:
                made.count += 1
                made.latest = max(made.latest, version)
            else:
                self.failures += 1


async def _all_of(work: Sequence[Coroutine[Any, Any, Result]]) -> list[Result]:
    """As asyncio.gather, with a task less: mostly there are two, and a task costs as much as a copy."""
    if not work:
        return []
    first, *others = work
    tasks = [asyncio.create_task(each) for each in others]
    try:
        return [await first, *[await task for task in tasks]]
    except BaseException:
        for task in tasks:
            task.cancel()
        raise

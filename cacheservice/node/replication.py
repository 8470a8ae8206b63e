"""Copies of every write on the nodes that follow the owner, before it is answered."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial

from cacheservice.node.hints import Hints
from cacheservice.node.operations import Change
from cacheservice.node.peers import Peers
from cacheservice.node.transport import PeerUnreachable, Transport


@dataclass(slots=True, init=False)
class Copies:
    """How many replicas hold a change or something later, which gave no answer, and the latest version."""

    count: int
    missed: tuple[str, ...]
    latest: int

    def __init__(self, count: int = 0, missed: tuple[str, ...] = (), latest: int = 0) -> None:
        self.count = count
        self.missed = missed
        self.latest = latest


class Replicator:
    """Sends changes to replicas, all that go to one of them in one request, and counts the copies.

    A replica that does not answer in time, or is avoided for now, does not fail the write: it is hinted,
    and gets what it missed later.
    """

    def __init__(self, transport: Transport, peers: Peers) -> None:
        self.failures = 0
        self.hints = Hints()
        self.has_news = asyncio.Event()
        """Whether there are hints that need not wait for anything."""
        self._transport = transport
        self._peers = peers

    def replicate(
        self,
        changes: Sequence[Change],
        targets: Sequence[Sequence[str]],
        timeout_ms: int,
        unreachable: Collection[str] = (),
        *,
        hints: bool = True,
    ) -> asyncio.Future[list[Copies]]:
        """Gives each change to its targets; done when all have answered, after `timeout_ms` at most.

        Those that are `unreachable` are not tried. Without `hints` it is not remembered who missed what. The
        changes are made: so they go on even if nobody waits for the copies any longer.
        """
        by_node: dict[str, list[int]] = {}
        for position, node_ids in enumerate(targets):
            for node_id in node_ids:
                by_node.setdefault(node_id, []).append(position)
        sending = _Sending(changes, timeout_ms, hints)
        for node_id, positions in by_node.items():
            if node_id in unreachable or self._peers.is_avoided(node_id):
                self._missed(sending, node_id, positions)
                continue
            some = changes if len(positions) == len(changes) else [changes[row] for row in positions]
            sending.left += 1
            asked = self._transport.replicate(node_id, some, timeout_ms=timeout_ms)
            answer = asked if isinstance(asked, asyncio.Future) else asyncio.create_task(asked)
            answer.add_done_callback(partial(self._answered, sending, node_id, positions))
        if not sending.left:
            sending.done.set_result(sending.copies)
        return sending.done

    def tell_later(self, node_ids: Sequence[str], key: str) -> None:
        """Has the nodes told of the key soon."""
        for node_id in node_ids:
            self.hints.add(node_id, key)
        self.has_news.set()

    def _answered(
        self, sending: _Sending, node_id: str, positions: list[int], answer: asyncio.Future[list[int]]
    ) -> None:
        error = asyncio.CancelledError() if answer.cancelled() else answer.exception()
        versions = answer.result() if error is None else []
        if len(versions) == len(positions):
            self._peers.answered(node_id)
            self._confirmed(sending, positions, versions)
        else:
            if isinstance(error, PeerUnreachable):
                self._peers.failed(error, sending.timeout_ms)
            elif error is not None and not sending.done.done():
                sending.done.set_exception(error)
            self._missed(sending, node_id, positions)
        sending.left -= 1
        if not sending.left and not sending.done.done():
            sending.done.set_result(sending.copies)

    def _missed(self, sending: _Sending, node_id: str, positions: list[int]) -> None:
        for position in positions:
            sending.copies[position].missed += (node_id,)
            if sending.hints:
                self.failures += 1
                self.hints.add(node_id, sending.changes[position].key)

    def _confirmed(self, sending: _Sending, positions: list[int], versions: list[int]) -> None:
        for position, version in zip(positions, versions, strict=True):
            made = sending.copies[position]
            if version >= sending.changes[position].version:
                made.count += 1
                made.latest = max(made.latest, version)
            else:
                self.failures += 1


class _Sending:
    """Changes that several replicas are to hold, and what is known of their copies."""

    def __init__(self, changes: Sequence[Change], timeout_ms: int, hints: bool) -> None:
        self.changes = changes
        self.timeout_ms = timeout_ms
        self.hints = hints
        self.left = 0
        """Replicas that have not answered."""
        self.copies = [Copies() for _ in changes]
        self.done: asyncio.Future[list[Copies]] = asyncio.get_running_loop().create_future()

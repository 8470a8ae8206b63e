"""One node's part in serving a key: here, or on the node that owns it, or on the next that can.

The path of a request: `execute` groups the operations by the node to ask; `_execute_here` does this node's
own and has them replicated; `_execute_there` forwards the others. What a node could not be reached for
goes round again, to the next owner.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from cacheservice.clock import Clock
from cacheservice.errors import (
    CacheServiceError,
    DeadlineExceeded,
    NoOwnerReachable,
    OutcomeUnknown,
    TooFewReplicas,
    WrongOwner,
    shown,
)
from cacheservice.node.operations import Answer, Change, GetResult, Operation, Set, SetResult, may_repeat
from cacheservice.node.replication import Replicator
from cacheservice.node.shard import Shard
from cacheservice.node.transport import PeerUnreachable, Transport
from cacheservice.node.view import Shunned, View

MAX_HOPS = 2
"""How often a request may be passed on: once to the owner, and once more while two rings differ."""

WRONG_OWNER_RETRY_MS = (20, 40, 80, 160, 320, 640)
"""Pauses before a request is routed again that met a node with another ring. Gossip needs less."""

_NOWHERE: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """A node's identity and its patience. Times in milliseconds."""

    node_id: str
    replication_factor: int = 2
    forward_timeout_ms: int = 1_000
    """How long to wait for another owner's answer before the next owner is asked."""
    replication_timeout_ms: int = 500
    """How long a write waits for its replicas."""
    shun_ms: int = 1_000
    """How often a peer that gave no answer is tried again."""
    settling_ms: int = 120_000
    """For how long after a change of the ring a node that lacks a key asks the key's other owners."""


@dataclass(slots=True)
class NodeStats:
    """Counters since the node was made."""

    forwarded: int = 0
    failovers: int = 0


@dataclass(frozen=True, slots=True)
class _Call:
    """What holds for a whole request while it is routed."""

    deadline: int
    hops_left: int


class Node:
    """Routes operations by its current view; `set_view` replaces that whenever gossip has news."""

    def __init__(
        self,
        config: NodeConfig,
        shard: Shard,
        clock: Clock,
        transport: Transport,
        view: View,
        on_peer_failed: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.shard = shard
        self.stats = NodeStats()
        self._config = config
        self._node_id = config.node_id
        self._clock = clock
        self._transport = transport
        self._view = view
        self._shunned = Shunned(config.shun_ms)
        self._settled_at = 0
        self._on_peer_failed = on_peer_failed
        self._replicator = Replicator(transport, self._is_avoided, self._peer_failed, self._shunned.answered)

    @property
    def ring_epoch(self) -> int:
        return self._view.ring.epoch

    @property
    def replication_failures(self) -> int:
        return self._replicator.failures

    @property
    def hints(self) -> int:
        """Writes that replicas have yet to be told of."""
        return len(self._replicator.hints)

    @property
    def has_replicas(self) -> bool:
        """Whether any key has other owners beside the first."""
        return self._config.replication_factor > 1 and len(self._view.ring.members) > 1

    def answers_for(self, keys: Collection[str]) -> bool:
        """Whether this node owns all the keys, and need not ask anybody what they hold."""
        ring = self._view.ring
        if len(ring.members) < 2:
            return [member.node_id for member in ring.members] == [self._node_id]
        alone = (self._node_id,)
        if any(ring.owners(key, 1) != alone for key in keys):
            return False
        return self._clock.now_ms() >= self._settled_at or all(map(self.shard.knows, keys))

    async def replicate(self, changes: Sequence[Change], timeout_ms: int) -> list[tuple[int, int]]:
        """Has changes copied that were made here; of each its version in the end, and how many replicas
        hold it."""
        call = _Call(self._clock.now_ms() + timeout_ms, MAX_HOPS)
        targets = [self._replicas(change.key, _NOWHERE) for change in changes]
        return await self._replicate(call, changes, targets)

    def set_view(self, view: View) -> None:
        """Routes by `view` from now on; requests under way use it for what they try next."""
        if view.ring.epoch != self._view.ring.epoch:
            self._settled_at = self._clock.now_ms() + self._config.settling_ms
        self._view = view
        self._shunned.retain(frozenset(member.node_id for member in view.ring.members))

    async def replay_hints(self) -> None:
        """Sends some of what they missed to the replicas that can be reached again. To be called often."""
        in_ring = {member.node_id for member in self._view.ring.members}
        for node_id in self._replicator.hints.nodes():
            if node_id in in_ring and not self._is_avoided(node_id):
                await self._replicator.replay(node_id, self.shard.change, self._config.replication_timeout_ms)

    async def execute(
        self,
        operations: Sequence[Operation],
        *,
        timeout_ms: int,
        hops_left: int = MAX_HOPS,
        unreachable: frozenset[str] = _NOWHERE,
    ) -> list[Answer]:
        """The answers, in order, within about `timeout_ms`. Operations on one key are done in order.

        `hops_left` and `unreachable` (nodes not to be tried) come with a request from another node.
        """
        call = _Call(self._clock.now_ms() + timeout_ms, hops_left)
        if len(operations) == 1 and self._view.ring.owners(operations[0].key, 1) == (self._node_id,):
            return await self._execute_here(call, operations, unreachable)
        answers: list[Answer | None] = [None] * len(operations)
        pending = list(range(len(operations)))
        pauses = iter(WRONG_OWNER_RETRY_MS if hops_left == MAX_HOPS else ())
        while pending:
            tried = await self._round(call, operations, pending, answers, unreachable)
            unreachable |= tried
            pending = [position for position in pending if answers[position] is None]
            misrouted = [i for i, answer in enumerate(answers) if isinstance(answer, WrongOwner)]
            if not pending and misrouted:
                pause = next(pauses, None)
                if pause is None or self._clock.now_ms() + pause >= call.deadline:
                    break
                await asyncio.sleep(pause / 1_000)
                pending = misrouted
                unreachable = _NOWHERE
        return [answer for answer in answers if answer is not None]

    async def _round(
        self,
        call: _Call,
        operations: Sequence[Operation],
        pending: list[int],
        answers: list[Answer | None],
        unreachable: frozenset[str],
    ) -> frozenset[str]:
        """Tries each pending operation once, on the best node left; the nodes that gave no answer.

        What may go round again has no answer after it.
        """
        groups: dict[str | None, list[int]] = {}
        for position in pending:
            groups.setdefault(self._next_node(call, operations[position].key, unreachable), []).append(
                position
            )
        failed = await asyncio.gather(
            *(
                self._execute_group(call, node_id, operations, positions, answers, unreachable)
                for node_id, positions in groups.items()
            )
        )
        return frozenset(node_id for node_id in failed if node_id)

    async def _execute_group(
        self,
        call: _Call,
        node_id: str | None,
        operations: Sequence[Operation],
        positions: list[int],
        answers: list[Answer | None],
        unreachable: frozenset[str],
    ) -> str | None:
        group = [operations[position] for position in positions]
        results: Sequence[Answer | None]
        failed = None
        if node_id is None:
            results = [_no_owner(operation, unreachable) for operation in group]
        elif self._clock.now_ms() >= call.deadline:
            results = [DeadlineExceeded("the owner did not answer in time")] * len(group)
        elif node_id == self._node_id:
            results = await self._execute_here(call, group, unreachable)
        elif not call.hops_left:
            results = [_wrong_owner(self._node_id, operation) for operation in group]
        else:
            results = await self._execute_there(call, node_id, group, unreachable)
            failed = node_id if None in results else None
        for position, result in zip(positions, results, strict=True):
            answers[position] = result
        return failed

    async def _execute_here(
        self, call: _Call, operations: Sequence[Operation], unreachable: frozenset[str]
    ) -> list[Answer]:
        if self._clock.now_ms() < self._settled_at:
            await self._fetch_missing(call, operations)
        answers: list[Answer] = []
        changes: list[Change] = []
        targets: list[list[str]] = []
        positions: list[int] = []
        for operation in operations:
            change = None
            try:
                answer: Answer
                answer, change = self.shard.apply(operation)
            except CacheServiceError as error:
                answer = error
            if change is not None:
                changes.append(change)
                targets.append(self._replicas(operation.key, unreachable))
                positions.append(len(answers))
            answers.append(answer)
        if changes:
            written = await self._replicate(call, changes, targets)
            for position, (version, copies) in zip(positions, written, strict=True):
                answers[position] = _written(operations[position], answers[position], version, 1 + copies)
        return answers

    async def _replicate(
        self, call: _Call, changes: Sequence[Change], targets: Sequence[list[str]]
    ) -> list[tuple[int, int]]:
        """The version of each change in the end, and how many replicas hold it, or something later.

        A replica that has a later version, while this node has not, shows that this node missed a write: it
        was made while it could not be reached. The change, which is the later one in truth, gets a version
        above that and goes out again.
        """
        timeout_ms = self._attempt_ms(call, self._config.replication_timeout_ms)
        copies = await self._replicator.replicate(changes, targets, timeout_ms)
        newer: dict[int, Change] = {}
        for position, (change, made) in enumerate(zip(changes, copies, strict=True)):
            if made.latest > change.version:
                outdone = self.shard.outdo(change, made.latest)
                if outdone is not None:
                    newer[position] = outdone
        if newer:
            timeout_ms = self._attempt_ms(call, self._config.replication_timeout_ms)
            again = [targets[position] for position in newer]
            second = await self._replicator.replicate(list(newer.values()), again, timeout_ms)
            for position, made in zip(newer, second, strict=True):
                copies[position] = made
        return [
            (newer[position].version if position in newer else change.version, copies[position].count)
            for position, change in enumerate(changes)
        ]

    async def _fetch_missing(self, call: _Call, operations: Sequence[Operation]) -> None:
        """Takes over, from their other owners, the keys that this node does not have.

        While the ring has changed lately this node may own keys that it never got: it was added, or came
        back without them. An owner that gave somebody no answer is asked all the same, since a miss costs
        the caller a query; one that gossip suspects is not.
        """
        by_node: dict[str, list[str]] = {}
        for key in {operation.key: None for operation in operations}:
            if not self.shard.knows(key):
                for node_id in self._replicas(key, _NOWHERE):
                    by_node.setdefault(node_id, []).append(key)
        timeout_ms = self._attempt_ms(call, self._config.replication_timeout_ms)
        await asyncio.gather(*(self._fetch(*item, timeout_ms) for item in by_node.items()))

    async def _fetch(self, node_id: str, keys: list[str], timeout_ms: int) -> None:
        if node_id in self._view.suspects:
            return
        try:
            changes = await self._transport.fetch(node_id, keys, timeout_ms=timeout_ms)
        except PeerUnreachable:
            self._peer_failed(node_id)
            return
        self._shunned.answered(node_id)
        for change in changes:
            self.shard.merge(change)

    async def _execute_there(
        self, call: _Call, node_id: str, operations: Sequence[Operation], unreachable: frozenset[str]
    ) -> Sequence[Answer | None]:
        self.stats.forwarded += len(operations)
        try:
            answers = await self._transport.forward(
                node_id,
                operations,
                hops_left=call.hops_left - 1,
                unreachable=unreachable,
                timeout_ms=self._attempt_ms(call, self._config.forward_timeout_ms),
            )
        except PeerUnreachable as failure:
            self._peer_failed(node_id)
            self.stats.failovers += len(operations)
            return [
                OutcomeUnknown(f"{failure}; it may or may not have been done", node=node_id)
                if failure.maybe_done and not may_repeat(operation)
                else None
                for operation in operations
            ]
        self._shunned.answered(node_id)
        return [
            replace(answer, hops=answer.hops + 1) if isinstance(answer, GetResult) else answer
            for answer in answers
        ]

    def _next_node(self, call: _Call, key: str, unreachable: frozenset[str]) -> str | None:
        """The node to ask for `key`: of its owners that are left, the first in good standing.

        It is this node, if that is an owner, when the request may not be passed on again.
        """
        view = self._view
        owners = view.ring.owners(key, self._config.replication_factor)
        if self._node_id in owners and (owners[0] == self._node_id or not call.hops_left):
            return self._node_id
        candidates = [node_id for node_id in owners if node_id not in unreachable]
        for node_id in candidates:
            if node_id == self._node_id or not self._is_avoided(node_id):
                return node_id
        return candidates[0] if candidates else None

    def _is_avoided(self, node_id: str) -> bool:
        """Whether the peer is suspected, or gave no answer lately."""
        return node_id in self._view.suspects or self._shunned.holds(node_id, self._clock.now_ms())

    def _replicas(self, key: str, unreachable: frozenset[str]) -> list[str]:
        """The other owners of `key`, but for those that it is no use to try; they are hinted."""
        others: list[str] = []
        for node_id in self._view.ring.owners(key, self._config.replication_factor):
            if node_id == self._node_id:
                continue
            if node_id in unreachable:
                self._replicator.hints.add(node_id, key)
            else:
                others.append(node_id)
        return others

    def _attempt_ms(self, call: _Call, limit_ms: int) -> int:
        """Time for one attempt: half of what is left at most, so that the caller still hears of it, and
        can ask another owner, when the attempt fails."""
        return max(1, min(limit_ms, (call.deadline - self._clock.now_ms()) // 2))

    def _peer_failed(self, node_id: str) -> None:
        self._shunned.failed(node_id, self._clock.now_ms())
        self._on_peer_failed(node_id)


def _written(operation: Operation, answer: Answer, version: int, replicas: int) -> Answer:
    """The answer to a write that now has `version` on so many nodes."""
    if isinstance(answer, CacheServiceError | GetResult):
        return answer
    if not isinstance(answer, SetResult) or not isinstance(operation, Set):
        return replace(answer, version=version)
    if replicas < operation.min_replicas:
        return TooFewReplicas(
            f"{shown(operation.key)} is on {replicas} nodes, not on {operation.min_replicas}",
            replicas=str(replicas),
            min_replicas=str(operation.min_replicas),
        )
    return replace(answer, version=version, replicas=replicas)


def _no_owner(operation: Operation, unreachable: frozenset[str]) -> NoOwnerReachable:
    tried = ", ".join(sorted(unreachable)) or "none known"
    return NoOwnerReachable(f"no node that holds {shown(operation.key)} could be reached (tried: {tried})")


def _wrong_owner(node_id: str, operation: Operation) -> WrongOwner:
    return WrongOwner(f"{node_id} does not own {shown(operation.key)}, and it was passed on often enough")

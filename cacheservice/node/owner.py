"""What a node does with the keys that it owns: it makes sure that it missed nothing, does what is asked, and
has it copied."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from cacheservice.clock import Clock
from cacheservice.errors import CacheServiceError, TooFewReplicas, shown
from cacheservice.node.call import Call
from cacheservice.node.operations import (
    Answer,
    Change,
    Get,
    GetOutcome,
    GetResult,
    NotStored,
    Operation,
    ReleaseResult,
    Set,
    SetResult,
)
from cacheservice.node.peers import Peers
from cacheservice.node.replay import replay
from cacheservice.node.replication import Copies, Replicator
from cacheservice.node.shard import Shard
from cacheservice.node.standing import Standing
from cacheservice.node.transport import PeerUnreachable, Transport
from cacheservice.node.write_copies import Sent, WriteCopies, Written


@dataclass(frozen=True, slots=True)
class OwnerConfig:
    """A node's identity, how many nodes hold a key, and its patience. Times in milliseconds."""

    node_id: str
    replication_factor: int = 2
    min_members: int = 0
    """With fewer nodes in the ring writes are refused."""
    replication_timeout_ms: int = 500
    """How long a write waits for its replicas."""


class Owner:
    """Operations on keys that are this node's own."""

    def __init__(
        self,
        config: OwnerConfig,
        shard: Shard,
        clock: Clock,
        transport: Transport,
        peers: Peers,
        standing: Standing,
        on_gap: Callable[[], None],
        learn_fences: Callable[[int], Awaitable[bool]],
    ) -> None:
        self._on_gap = on_gap
        self._learn_fences = learn_fences
        self.shard = shard
        self.replicator = Replicator(transport, peers)
        self._config = config
        self._node_id = config.node_id
        self.copies = WriteCopies(
            config.node_id,
            config.replication_factor,
            config.replication_timeout_ms,
            shard,
            clock,
            peers,
            self.replicator,
            self.mend,
        )
        self._transport = transport
        self._peers = peers
        self._standing = standing

    async def execute(
        self, call: Call, operations: Sequence[Operation], unreachable: frozenset[str]
    ) -> list[Answer]:
        """Does the operations here, in order. Nodes that are `unreachable` are not tried for copies."""
        if not self._standing.is_settled():
            await self._consult(call, operations)
        answers: list[Answer] = []
        changes: list[Change] = []
        positions: list[int] = []
        refusal = self._standing.refusal()
        for operation in operations:
            change = None
            answer: Answer
            try:
                if refusal is None:
                    answer, change = self.shard.apply(operation)
                else:
                    answer = self._read_alone(operation, refusal)
            except CacheServiceError as error:
                answer = error
            if change is not None:
                changes.append(change)
                positions.append(len(answers))
            answers.append(answer)
        if changes:
            waited_for = {
                operation.key
                for operation in operations
                if isinstance(operation, Set) and operation.min_replicas > 1
            }
            fills = {
                operation.key
                for operation in operations
                if isinstance(operation, Set) and operation.lease_token
            }
            written = await self.copies.make(call, changes, unreachable, waited_for, fills)
            for position, (version, copies) in zip(positions, written, strict=True):
                answers[position] = _written(operations[position], answers[position], version, 1 + copies)
        return answers

    def _read_alone(self, operation: Operation, refusal: CacheServiceError) -> Answer:
        """What a node answers that writes nothing: who could load a value could not fill it in here."""
        if not isinstance(operation, Get):
            raise refusal
        found = self.shard.get(replace(operation, lease=False))
        if operation.lease and found.outcome is GetOutcome.MISS:
            raise refusal
        return found

    async def mend(self, sent: Sent, copies: list[Copies]) -> Written:
        """What is to be done when replicas gave no answer, or have something later.

        A replica that has a later version, while this node has not, shows that this node missed a write: it
        was made while it could not be reached. The change, which is the later one in truth, gets a version
        above that and goes out again. But `fills` were loaded before that write, and give way to it.
        """
        changes, targets = sent.changes, sent.targets
        if any(made.missed for made in copies):
            await self._have_others_stand_in(sent, copies)
        newer: dict[int, Change] = {}
        versions = [change.version for change in changes]
        for position, (change, made) in enumerate(zip(changes, copies, strict=True)):
            if made.latest > change.version and change.key in sent.fills:
                versions[position] = made.latest
                self.shard.drop(change.key, change.version)
                timeout_ms = sent.call.attempt_ms(self._config.replication_timeout_ms)
                await asyncio.gather(
                    *(self._fetch(node_id, [change.key], timeout_ms) for node_id in targets[position])
                )
            elif made.latest > change.version:
                outdone = self.shard.outdo(change, made.latest)
                if outdone is not None:
                    newer[position] = outdone
                    versions[position] = outdone.version
        if newer:
            timeout_ms = sent.call.attempt_ms(self._config.replication_timeout_ms)
            again = [targets[position] for position in newer]
            outdoing = list(newer.values())
            second = await self.replicator.replicate(outdoing, again, timeout_ms, sent.unreachable)
            for position, made in zip(newer, second, strict=True):
                copies[position] = made
        return [(version, made.count) for version, made in zip(versions, copies, strict=True)]

    async def replay_hints(self) -> None:
        """Sends what they missed to the nodes that can be reached again. To be called often."""
        self._standing.note_activity()
        for node_id in self.replicator.hints.nodes():
            if not self._peers.is_avoided(node_id):
                await replay(
                    node_id,
                    self.replicator.hints,
                    self.shard.change,
                    self._transport,
                    self._peers,
                    self._config.replication_timeout_ms,
                )
                if self.replicator.hints.take_gap(node_id):
                    self._on_gap()

    async def _consult(self, call: Call, operations: Sequence[Operation]) -> None:
        """Takes over what other holders have of the keys, unless this node is sure of them.

        An owner that gave somebody no answer is asked all the same, since a miss costs the caller a query;
        one that gossip suspects is not.
        """
        by_node: dict[str, list[str]] = {}
        distinct = dict.fromkeys(operation.key for operation in operations)
        keys = [key for key in distinct if not self._standing.knows(key)]
        for key, node_ids in zip(keys, self._other_holders(keys), strict=True):
            for node_id in node_ids:
                if node_id not in self._peers.view.suspects:
                    by_node.setdefault(node_id, []).append(key)
        timeout_ms = call.attempt_ms(self._config.replication_timeout_ms)
        if self._standing.lacks_fences and by_node:
            self._standing.lacks_fences = not await self._learn_fences(timeout_ms)
        await asyncio.gather(*(self._fetch(*item, timeout_ms) for item in by_node.items()))

    async def _fetch(self, node_id: str, keys: list[str], timeout_ms: int) -> None:
        known = list(map(self.shard.version, keys))
        try:
            changes = await self._transport.fetch(node_id, keys, known, timeout_ms=timeout_ms)
        except PeerUnreachable as failure:
            self._peers.failed(failure, timeout_ms)
            return
        self._peers.answered(node_id)
        self.shard.merge_many(changes)

    def _other_holders(self, keys: Sequence[str]) -> list[list[str]]:
        return self._peers.view.other_holders(keys, self._config.replication_factor, self._node_id)

    async def _have_others_stand_in(self, sent: Sent, copies: list[Copies]) -> None:
        """Gives changes whose replica gave no answer to the next node of the ring that was not asked, which
        owns them if that replica is dead."""
        ring, count = self._peers.view.ring, self._config.replication_factor
        lost = sent.unreachable | self._peers.view.suspects
        positions: list[int] = []
        targets: list[list[str]] = []
        for position, (change, made) in enumerate(zip(sent.changes, copies, strict=True)):
            lacking = min(len(made.missed), count - 1 - made.count)
            if lacking > 0:
                then = ring.owners_without({*lost, *made.missed} - {self._node_id}, change.key, count)
                before = {*sent.targets[position], self._node_id}
                useful = [node_id for node_id in then if node_id not in before]
                positions.append(position)
                targets.append(useful[:lacking])
        timeout_ms = sent.call.attempt_ms(self._config.replication_timeout_ms)
        chosen = [sent.changes[position] for position in positions]
        made_there = await self.replicator.replicate(
            chosen, targets, timeout_ms, sent.unreachable, hints=False
        )
        for position, made in zip(positions, made_there, strict=True):
            copies[position].count += made.count
            copies[position].latest = max(copies[position].latest, made.latest)


def _written(operation: Operation, answer: Answer, version: int, replicas: int) -> Answer:
    """The answer to a write that now has `version` on so many nodes."""
    if isinstance(answer, CacheServiceError | GetResult | ReleaseResult):
        return answer
    if not isinstance(answer, SetResult) or not isinstance(operation, Set):
        return replace(answer, version=version)
    if operation.lease_token and version != answer.version:
        return SetResult(False, version, reason=NotStored.LEASE_VOID)
    if replicas < operation.min_replicas:
        return TooFewReplicas(
            f"{shown(operation.key)} is on {replicas} nodes, not on {operation.min_replicas}",
            replicas=str(replicas),
            min_replicas=str(operation.min_replicas),
        )
    return replace(answer, version=version, replicas=replicas)

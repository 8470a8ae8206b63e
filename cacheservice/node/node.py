"""One node's part in serving a key: here, or on the node that owns it, or on the next that can.

The path of a request: Batches does at once what it can, here and by Forwards. All else comes to `execute`,
which groups the operations by the node to ask; the Owner does this node's own and has them replicated;
`_execute_there` forwards the others. What a node could not be reached for goes round again, to the next
owner.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from cacheservice.clock import Clock
from cacheservice.errors import (
    DeadlineExceeded,
    NoOwnerReachable,
    NotReady,
    OutcomeUnknown,
    WrongOwner,
    shown,
)
from cacheservice.node.call import NOWHERE, Call
from cacheservice.node.courier import Courier
from cacheservice.node.events import Events
from cacheservice.node.fill_waits import FillWaits
from cacheservice.node.forwards import Forwards
from cacheservice.node.handoff import Handoff
from cacheservice.node.intake import Intake
from cacheservice.node.invalidations import Invalidations
from cacheservice.node.operations import Answer, Get, GetResult, Operation, may_repeat
from cacheservice.node.owner import Owner, OwnerConfig
from cacheservice.node.peers import Peers
from cacheservice.node.settling import Settling
from cacheservice.node.shard import Shard
from cacheservice.node.standing import Standing
from cacheservice.node.stats import NodeStats
from cacheservice.node.sweeps import Sweeps
from cacheservice.node.transport import PeerUnreachable, Transport
from cacheservice.node.view import View
from cacheservice.ring import Ring

MAX_HOPS = 2
"""How often a request may be passed on: once to the owner, and once more while two rings differ."""

CATCH_UP_PAUSE_MS = 250

WRONG_OWNER_RETRY_MS = (20, 40, 80, 160, 320, 640)
"""Pauses before a request is routed again that met a node with another ring. Gossip needs less."""


@dataclass(frozen=True, slots=True)
class NodeConfig(OwnerConfig):
    """A node's identity, its patience, and how fast it hands over. Times in milliseconds."""

    forward_timeout_ms: int = 1_000
    """How long to wait for another owner's answer before the next owner is asked."""
    shun_ms: int = 1_000
    """How often a peer that gave no answer is tried again."""
    handoff_bytes_per_second: int = 64 << 20
    """What goes to new owners beside the requests."""
    most_waiting: int = 1_000
    """Callers that may wait at a time for values that others are loading."""


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
        on_settled: Callable[[], object] = lambda: None,
    ) -> None:
        self.shard = shard
        self.stats = NodeStats()
        self._config = config
        self.node_id = config.node_id
        self._clock = clock
        self._transport = transport
        self._peers = Peers(config.node_id, view, config.shun_ms, clock, on_peer_failed)
        self.forwards = Forwards(self._peers, transport, clock, config.forward_timeout_ms, self.stats)
        self._neighbours = _neighbours(config.node_id, view.ring)
        self._settling = Settling(config.node_id, config.replication_factor, view)
        self.standing = Standing(
            config.node_id,
            config.replication_factor,
            config.min_members,
            shard,
            clock,
            self._peers,
            self._settling,
        )
        self._on_settled = on_settled
        self.events = Events(config.node_id, shard, clock, lambda: self.ring_epoch)
        self.sweeps = Sweeps(shard.store, clock)
        self.invalidations = Invalidations(
            config.node_id,
            shard,
            self.sweeps,
            transport,
            self._peers,
            clock,
            lambda key: self.owner.replicator.hints.holds(key),
            lambda: self.handoff.is_level,
            self.events.fenced,
        )
        self.handoff = Handoff(
            config.node_id,
            config.replication_factor,
            shard,
            transport,
            self._settling,
            Courier(shard, transport, clock, config.handoff_bytes_per_second),
        )
        self.owner = Owner(
            config,
            shard,
            clock,
            transport,
            self._peers,
            self.standing,
            self.handoff.start_over,
            self.invalidations.learn,
        )
        self.intake = Intake(
            config.node_id,
            config.replication_factor,
            shard,
            self._peers,
            self.owner.replicator.hints,
            self.handoff.stray_came,
        )
        self.fill_waits = FillWaits(self._read_one, shard.leases, clock, config.most_waiting)

    @property
    def ring(self) -> Ring:
        return self._peers.view.ring

    @property
    def ring_epoch(self) -> int:
        return self.ring.epoch

    def answers_for(self, key: str, unreachable: Collection[str]) -> bool:
        """Whether this node is the first owner of the key that is not `unreachable`."""
        owners = self.ring.owners(key, self._config.replication_factor)
        return next((owner for owner in owners if owner not in unreachable), None) == self.node_id

    async def keep_others_up(self) -> None:
        """Tells others what they missed, for ever."""
        has_news = self.owner.replicator.has_news
        while True:
            has_news.clear()
            await self.catch_up()
            try:
                async with asyncio.timeout(CATCH_UP_PAUSE_MS / 1_000):
                    await has_news.wait()
            except TimeoutError:
                continue

    async def catch_up(self) -> None:
        """Tells others what they missed. To be called often."""
        await self.owner.replay_hints()
        await self.invalidations.spread(self._config.forward_timeout_ms)

    @property
    def is_settled(self) -> bool:
        """Whether the others have given this node all that it owns."""
        return self._settling.is_settled

    def read_own(self, read: Get) -> GetResult | None:
        """As `execute`; None unless the key is this node's own, and nobody else knows more of it."""
        return self.shard.get(read) if self.standing.owns((read.key,)) else None

    def may_read(self, keys: Collection[str]) -> bool:
        """Whether this node can read all the keys, as any of their owners, and need not ask anybody for the
        entry of one."""
        ring = self._peers.view.ring
        for key in keys:
            owners = ring.owners(key, self._config.replication_factor)
            if self.node_id not in owners or not (owners[0] == self.node_id or self.shard.holds(key)):
                return False
        return self.standing.is_sure_of(keys)

    def is_first_owner(self, key: str) -> bool:
        return self._peers.view.ring.owns(self.node_id, (key,))

    def set_view(self, view: View) -> None:
        """Routes by `view` from now on; requests under way use it for what they try next."""
        self._peers.set_view(view)
        # Who comes back is brought level by the handoff.
        self.owner.replicator.hints.retain({*view.stays, *(member.node_id for member in view.ring.members)})
        self._neighbours = _neighbours(self.node_id, view.ring)
        self._settling.view_changed(view)
        self.handoff.view_changed(view)
        self._see_whether_settled()

    def handed_over(self, node_id: str, ring_epoch: int, absences: int) -> None:
        """Takes note that a node has given this one all that it held for it; see Settling."""
        self._settling.handed_over(node_id, ring_epoch, absences)
        self._see_whether_settled()

    async def await_fills(
        self, reads: Sequence[Get], answers: Sequence[Answer], wait_ms: int, timeout_ms: int
    ) -> list[Answer]:
        """The answers, and in place of those that others are loading the values of, what is found then."""

        async def wait(read: Get, answer: Answer) -> Answer:
            if not (read.lease and isinstance(answer, GetResult) and answer.is_awaited):
                return answer
            return await self.fill_waits.wait(read.key, wait_ms, timeout_ms) or answer

        return list(await asyncio.gather(*map(wait, reads, answers)) if wait_ms else answers)

    async def _read_one(self, read: Get, timeout_ms: int) -> Answer:
        [answer] = await self.execute((read,), timeout_ms=timeout_ms)
        return answer

    async def execute(
        self,
        operations: Sequence[Operation],
        *,
        timeout_ms: int,
        hops_left: int = MAX_HOPS,
        unreachable: frozenset[str] = NOWHERE,
    ) -> list[Answer]:
        """The answers, in order, within about `timeout_ms`. Operations on one key are done in order, but for
        reads of the nearest.

        `hops_left` and `unreachable` (nodes not to be tried) come with a request from another node.
        """
        call = self._call(timeout_ms, hops_left)
        if len(operations) == 1 and self.is_first_owner(operations[0].key):
            return await self.owner.execute(call, operations, unreachable)
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
                unreachable = NOWHERE
        return [answer for answer in answers if answer is not None]

    async def _round(
        self,
        call: Call,
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
            groups.setdefault(self._next_node(call, operations[position], unreachable), []).append(position)
        failed = await asyncio.gather(
            *(
                self._execute_group(call, node_id, operations, positions, answers, unreachable)
                for node_id, positions in groups.items()
            )
        )
        return frozenset(node_id for node_id in failed if node_id)

    async def _execute_group(
        self,
        call: Call,
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
        elif node_id == self.node_id:
            done = await self.owner.execute(call, group, unreachable)
            results = list(map(self._with_origin, group, done))
        elif not call.hops_left:
            results = [_wrong_owner(self.node_id, operation) for operation in group]
        else:
            results = await self._execute_there(call, node_id, group, unreachable)
            failed = node_id if None in results else None
        for position, result in zip(positions, results, strict=True):
            answers[position] = result
        return failed

    async def _execute_there(
        self, call: Call, node_id: str, operations: Sequence[Operation], unreachable: frozenset[str]
    ) -> Sequence[Answer | None]:
        self.stats.forwarded += len(operations)
        timeout_ms = call.attempt_ms(self._config.forward_timeout_ms)
        try:
            answers = await self._transport.forward(
                node_id,
                operations,
                hops_left=call.hops_left - 1,
                unreachable=unreachable,
                timeout_ms=timeout_ms,
            )
        except PeerUnreachable as failure:
            self._peers.failed(failure, timeout_ms)
            self.stats.failovers += len(operations)
            return [
                OutcomeUnknown(f"{failure}; it may or may not have been done", node=node_id)
                if failure.maybe_done and not may_repeat(operation)
                else None
                for operation in operations
            ]
        self._peers.answered(node_id)
        return list(map(_passed_on, answers))

    def _call(self, timeout_ms: int, hops_left: int) -> Call:
        return Call(self._clock, self._clock.now_ms() + timeout_ms, hops_left)

    def _see_whether_settled(self) -> None:
        if self._settling.is_settled:
            self.handoff.has_settled()
            self._on_settled()

    def _with_origin(self, operation: Operation, answer: Answer) -> Answer:
        """This node's answer, which tells when it is a replica's."""
        if not isinstance(answer, GetResult) or self.is_first_owner(operation.key):
            return answer
        return replace(answer, from_replica=True)

    def _next_node(self, call: Call, operation: Operation, unreachable: frozenset[str]) -> str | None:
        """The node to ask: of the key's owners that are left, the first in good standing.

        It is this node, if that is an owner, when the request may not be passed on again.
        """
        owners = self._peers.view.ring.owners(operation.key, self._config.replication_factor)
        if self.node_id in owners and (owners[0] == self.node_id or not call.hops_left):
            return self.node_id
        if isinstance(operation, Get) and operation.nearest and not operation.lease:
            nearest = self._nearest(call, operation, owners, unreachable)
            if nearest is not None:
                return nearest
        candidates = [node_id for node_id in owners if node_id not in unreachable]
        for node_id in candidates:
            if node_id == self.node_id or not self._peers.is_avoided(node_id):
                return node_id
        return candidates[0] if candidates else None

    def _nearest(
        self, call: Call, read: Get, owners: Sequence[str], unreachable: frozenset[str]
    ) -> str | None:
        """This node, if it is an owner and has the entry; or if it is none, an owner in its zone, as long as
        that could still pass the read on."""
        if self.node_id in owners:
            has_entry = self.shard.holds(read.key, read.known_version)
            return self.node_id if has_entry and self.standing.is_sure_of((read.key,)) else None
        if call.hops_left < MAX_HOPS:
            return None
        near = (owner for owner in owners if owner in self._neighbours and owner not in unreachable)
        return next((owner for owner in near if not self._peers.is_avoided(owner)), None)


def _neighbours(node_id: str, ring: Ring) -> frozenset[str]:
    """The nodes in the zone of this one; none when that has no zone, or is not in the ring."""
    zone = next((member.zone for member in ring.members if member.node_id == node_id), "")
    return frozenset(member.node_id for member in ring.members if zone and member.zone == zone)


def _passed_on(answer: Answer) -> Answer | None:
    """The answer as it came through this node; None where that node leaves it to another one."""
    if isinstance(answer, NotReady):
        return None
    return replace(answer, hops=answer.hops + 1) if isinstance(answer, GetResult) else answer


def _no_owner(operation: Operation, unreachable: frozenset[str]) -> NoOwnerReachable:
    tried = ", ".join(sorted(unreachable)) or "none known"
    return NoOwnerReachable(f"no node that holds {shown(operation.key)} could be reached (tried: {tried})")


def _wrong_owner(node_id: str, operation: Operation) -> WrongOwner:
    return WrongOwner(f"{node_id} does not own {shown(operation.key)}, and it was passed on often enough")

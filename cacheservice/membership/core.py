"""Who is in the cluster: SWIM as a state machine without I/O.

Das, Gupta and Motivala, "SWIM: Scalable Weakly-consistent Infection-style Process Group Membership
Protocol", DSN 2002. `handle(event, now)` returns what is to be sent and what has changed; `next_timer`
says when to hand in the next Timer. Time is monotonic milliseconds, randomness an argument.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil, log10
from random import Random
from typing import TypeVar

from cacheservice.errors import ClusterIdMismatch, NodeIdMismatch
from cacheservice.membership.config import MembershipConfig
from cacheservice.membership.member import Member, State
from cacheservice.membership.messages import (
    Ack,
    Body,
    Changed,
    Event,
    Leave,
    Message,
    NameTaken,
    Output,
    PeerFailed,
    Ping,
    PingRequest,
    Received,
    SeedsResolved,
    Send,
    Sync,
    Timer,
)
from cacheservice.membership.rumours import RumourQueue

T = TypeVar("T")


@dataclass(slots=True)
class _Probe:
    """The probe under way: first direct, then by way of others, then failed."""

    node_id: str
    sequence: int
    indirect_at: int
    failed_at: int
    asked_others: bool = False


@dataclass(frozen=True, slots=True)
class _Relay:
    """A probe made for somebody else."""

    origin: Member
    sequence: int
    until: int


class Membership:
    """One member's knowledge of the others."""

    def __init__(self, local: Member, config: MembershipConfig, rng: Random, now: int) -> None:
        self._config = config
        self._rng = rng
        self._local = local
        self._members: dict[str, Member] = {local.node_id: local}
        self._rumours = RumourQueue()
        self._rumours.add(local)
        self._out: list[Output] = []
        self._seeds: tuple[str, ...] = ()
        self._sequence = 0
        self._probe: _Probe | None = None
        self._probe_order: list[str] = []
        self._relays: dict[int, _Relay] = {}
        self._suspect_until: dict[str, int] = {}
        self._gone_since: dict[str, int] = {}
        self._next_probe = now + rng.randrange(config.probe_interval_ms)
        self._next_gossip = now + config.gossip_interval_ms
        self._next_sync = now + config.join_interval_ms

    @property
    def local(self) -> Member:
        return self._local

    @property
    def members(self) -> tuple[Member, ...]:
        """Everybody known, by node id, this node, the dead and those who left included."""
        return tuple(self._members[node_id] for node_id in sorted(self._members))

    @property
    def has_joined(self) -> bool:
        """Whether any other member is in the view."""
        return any(member.is_in_ring for member in self._others())

    def next_timer(self) -> int:
        """When the next Timer event is due."""
        moments = [self._next_probe, self._next_gossip, self._next_sync, *self._suspect_until.values()]
        if self._probe is not None:
            moments.append(self._probe.failed_at if self._probe.asked_others else self._probe.indirect_at)
        return min(moments)

    def handle(self, event: Event, now: int) -> list[Output]:
        """Takes note of `event` at `now`; what is to be sent, in order, and what has changed.

        ClusterIdMismatch and NodeIdMismatch: the message is meant for somebody else, and nothing changed.
        """
        match event:
            case Received():
                self._receive(event, now)
            case Timer():
                self._tick(now)
            case SeedsResolved(addresses):
                self._seeds = addresses
                self._join()
            case PeerFailed(node_id):
                self._start_probe(node_id, now)
            case Leave(final):
                self._leave(final)
        out, self._out = self._out, []
        return out

    def _receive(self, event: Received, now: int) -> None:
        if event.cluster_id != self._config.cluster_id:
            raise ClusterIdMismatch.of(self._config.cluster_id, event.cluster_id)
        if event.to_node not in ("", self._local.node_id):
            raise NodeIdMismatch.of(self._local.node_id, event.to_node)
        sender = event.sender
        self._learn(sender, f"heard from {sender.node_id}", now)
        known = self._members.get(sender.node_id)
        if known is not None and known.supersedes(sender):
            # It does not know what is said of it: the answer tells it, so that it can refute.
            self._rumours.add(known)
        for rumour in event.message.rumours:
            self._learn(rumour, f"told by {sender.node_id}", now)
        match event.message.body:
            case Ping(sequence):
                self._send(sender, Ack(sequence))
            case Ack(sequence):
                self._acknowledged(sequence)
            case PingRequest(sequence, node_id, address):
                self._sequence += 1
                until = now + self._config.probe_interval_ms
                self._relays[self._sequence] = _Relay(sender, sequence, until)
                self._send_to(address, node_id, Ping(self._sequence))
            case Sync(members, reply_wanted):
                for member in members:
                    self._learn(member, f"told by {sender.node_id}", now)
                if reply_wanted:
                    self._send(sender, Sync(self.members, reply_wanted=False))
            case None:
                pass

    def _tick(self, now: int) -> None:
        self._relays = {sequence: relay for sequence, relay in self._relays.items() if now < relay.until}
        if self._probe is not None:
            self._advance_probe(self._probe, now)
        for node_id in [node_id for node_id, until in self._suspect_until.items() if until <= now]:
            member = self._members[node_id]
            self._learn(member.with_state(State.DEAD), "did not refute the suspicion in time", now)
        if now >= self._next_probe:
            self._next_probe = now + self._config.probe_interval_ms
            self._probe_next(now)
        if now >= self._next_gossip:
            self._next_gossip = now + self._config.gossip_interval_ms
            if len(self._rumours):
                for member in self._sample(self._reachable(), self._config.gossip_fanout):
                    self._send(member, None)
        if now >= self._next_sync:
            self._sync(now)

    def _probe_next(self, now: int) -> None:
        """Probes each member in turn, in an order shuffled for each round (SWIM, section 4.3)."""
        if self._probe is not None:
            return
        if not self._probe_order:
            self._probe_order = [member.node_id for member in self._others()]
            self._rng.shuffle(self._probe_order)
        while self._probe_order:
            member = self._members.get(self._probe_order.pop())
            if member is not None and member.is_in_ring:
                self._start_probe(member.node_id, now)
                return

    def _start_probe(self, node_id: str, now: int) -> None:
        member = self._members.get(node_id)
        if self._probe is not None or member is None or not member.is_in_ring or member == self._local:
            return
        self._sequence += 1
        self._probe = _Probe(
            node_id,
            self._sequence,
            now + self._config.probe_timeout_ms,
            now + self._config.probe_interval_ms,
        )
        self._send(member, Ping(self._sequence))

    def _advance_probe(self, probe: _Probe, now: int) -> None:
        member = self._members.get(probe.node_id)
        if member is None or not member.is_in_ring:
            self._probe = None
        elif now >= probe.failed_at:
            self._probe = None
            if member.state is not State.SUSPECT:
                self._learn(member.with_state(State.SUSPECT), "did not answer probes", now)
        elif now >= probe.indirect_at and not probe.asked_others:
            probe.asked_others = True
            helpers = [helper for helper in self._reachable() if helper.node_id != probe.node_id]
            for helper in self._sample(helpers, self._config.indirect_probes):
                self._send(helper, PingRequest(probe.sequence, member.node_id, member.address))

    def _acknowledged(self, sequence: int) -> None:
        if self._probe is not None and self._probe.sequence == sequence:
            self._probe = None
        relay = self._relays.pop(sequence, None)
        if relay is not None:
            self._send(relay.origin, Ack(relay.sequence))

    def _sync(self, now: int) -> None:
        """Exchanges views with one member, and looks for some that are lost: the dead, and seeds."""
        self._forget_the_long_gone(now)
        if not self.has_joined:
            jitter = self._rng.randrange(self._config.join_interval_ms)
            self._next_sync = now + self._config.join_interval_ms + jitter
            self._join()
            return
        self._next_sync = now + self._config.sync_interval_ms
        for member in self._sample(self._reachable(), 1):
            self._send(member, Sync(self.members, reply_wanted=True))
        lost = [member.address for member in self._others() if member.state is State.DEAD]
        for address in self._sample([*lost, *self._strange_seeds()], 1):
            self._send_to(address, "", Sync(self.members, reply_wanted=True))

    def _join(self) -> None:
        for address in self._strange_seeds():
            self._send_to(address, "", Sync(self.members, reply_wanted=True))

    def _strange_seeds(self) -> list[str]:
        known = {member.address for member in self._members.values() if member.is_in_ring}
        return [address for address in self._seeds if address not in known]

    def _leave(self, final: bool) -> None:
        state = State.LEFT if final else State.LEAVING
        if self._local.state is State.LEFT:
            return
        before = self._local.state
        self._set_local(replace(self._local, state=state, incarnation=self._local.incarnation + 1))
        self._out.append(Changed(self._local, before, "this node is about to stop"))
        for member in self._reachable():
            self._send(member, None)

    def _learn(self, news: Member, reason: str, now: int) -> None:
        """Takes over `news` if it is later than what is known, and passes it on."""
        if news.node_id == self._local.node_id:
            self._refute(news)
            return
        known = self._members.get(news.node_id)
        if known is None:
            if not news.is_in_ring or len(self._members) >= self._config.max_members:
                return
        elif not news.supersedes(known):
            return
        self._members[news.node_id] = news
        self._rumours.add(news)
        self._suspect_until.pop(news.node_id, None)
        self._gone_since.pop(news.node_id, None)
        if news.state is State.SUSPECT:
            self._suspect_until[news.node_id] = now + self._suspicion_ms()
        elif not news.is_in_ring:
            self._gone_since[news.node_id] = now
        before = known.state if known is not None else None
        if known is None or replace(known, epoch=news.epoch, incarnation=news.incarnation) != news:
            self._out.append(Changed(news, before, reason))

    def _refute(self, news: Member) -> None:
        """Answers later news of this node, which only this node may make, with later news still."""
        local = self._local
        if not news.supersedes(local):
            return
        if news.address != local.address and news.epoch != local.epoch and news.state is State.ALIVE:
            self._out.append(NameTaken(news.address))
        epoch = local.epoch if news.epoch == local.epoch else news.epoch + 1
        self._set_local(replace(local, epoch=epoch, incarnation=news.incarnation + 1))

    def _set_local(self, local: Member) -> None:
        self._local = self._members[local.node_id] = local
        self._rumours.add(local)

    def _forget_the_long_gone(self, now: int) -> None:
        forgotten = now - self._config.dead_retention_ms
        for node_id in [node_id for node_id, since in self._gone_since.items() if since < forgotten]:
            del self._gone_since[node_id]
            del self._members[node_id]

    def _others(self) -> list[Member]:
        return [member for member in self.members if member.node_id != self._local.node_id]

    def _reachable(self) -> list[Member]:
        return [member for member in self._others() if member.is_in_ring]

    def _sample(self, candidates: list[T], count: int) -> list[T]:
        return self._rng.sample(candidates, min(count, len(candidates)))

    def _suspicion_ms(self) -> int:
        scale = max(1.0, log10(len(self._reachable()) + 1))
        return int(self._config.suspicion_multiplier * scale * self._config.probe_interval_ms)

    def _send(self, to: Member, body: Body) -> None:
        self._send_to(to.address, to.node_id, body)

    def _send_to(self, address: str, node_id: str, body: Body) -> None:
        transmissions = self._config.retransmit_multiplier * ceil(log10(len(self._members) + 1))
        rumours = self._rumours.take(self._config.max_rumours, transmissions)
        self._out.append(Send(address, node_id, Message(body, rumours)))

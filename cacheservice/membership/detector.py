"""Finds out who does not answer: probes, direct and by way of others, and those made for others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from cacheservice.membership.config import MembershipConfig
from cacheservice.membership.health import LocalHealth
from cacheservice.membership.knowledge import Knowledge
from cacheservice.membership.member import Member, State
from cacheservice.membership.messages import Ack, Nack, Ping, PingRequest
from cacheservice.membership.outbox import Outbox


@dataclass(slots=True)
class _Probe:
    """A probe of a member: first direct, then by way of helpers, then failed."""

    member: Member
    sequence: int
    indirect_at: int
    failed_at: int
    helpers: frozenset[str] | None = None
    """Who was asked to probe it too; None before that."""
    nacks: set[str] = field(default_factory=set)
    """Which of them said that they got no answer either."""

    @property
    def due(self) -> int:
        return self.indirect_at if self.helpers is None else self.failed_at

    @property
    def silent_helpers(self) -> frozenset[str]:
        return (self.helpers or frozenset()) - self.nacks


@dataclass(frozen=True, slots=True)
class _Relay:
    """A probe made for `origin`, who knows it by `origin_sequence`."""

    node_id: str
    sequence: int
    origin: Member
    origin_sequence: int
    due: int


class Detector:
    """Probes one member each interval, and whoever else is said not to answer."""

    def __init__(
        self,
        knowledge: Knowledge,
        outbox: Outbox,
        health: LocalHealth,
        config: MembershipConfig,
        rng: Random,
        next_sequence: Callable[[], int],
        now: int,
    ) -> None:
        self._knowledge = knowledge
        self._view = knowledge.view
        self._outbox = outbox
        self._health = health
        self._config = config
        self._rng = rng
        self._next_sequence = next_sequence
        self._probes: dict[str, _Probe] = {}
        self._relays: dict[int, _Relay] = {}
        self._round: list[str] = []
        """Whom to probe in this round, the next at the end."""
        self._successor_is_next = False
        self._answered_at = now
        """When anybody last answered a probe or a request to probe."""
        self._next_probe = now + rng.randrange(config.probe_interval_ms)

    def due(self) -> int:
        """When `tick` is to be called next."""
        due = self._next_probe
        for probe in self._probes.values():
            due = min(due, probe.due)
        for relay in self._relays.values():
            due = min(due, relay.due)
        return due

    def tick(self, now: int) -> None:
        for probe in [probe for probe in self._probes.values() if probe.due <= now]:
            self._advance(probe, now)
        for relay in [relay for relay in self._relays.values() if relay.due <= now]:
            self._give_up(relay)
        if now >= self._next_probe:
            self._next_probe = now + self._health.scale(self._config.probe_interval_ms)
            self.probe(self._next_to_probe(), now)
            for suspect in self._knowledge.own_suspects()[: self._config.max_probes]:
                # With the suspicion on its back, so that it can refute that at once (Lifeguard's buddies).
                self._outbox.send(suspect, Ping(self._next_sequence()))

    def probe(self, member: Member | None, now: int) -> None:
        """Begins to probe the member, unless that is under way or out of place."""
        if member is None or member.node_id in self._probes or len(self._probes) >= self._config.max_probes:
            return
        if not member.is_reachable or member.node_id == self._view.local.node_id:
            return
        sequence = self._next_sequence()
        self._probes[member.node_id] = _Probe(
            member,
            sequence,
            now + self._health.scale(self._config.probe_timeout_ms),
            now + self._health.scale(self._config.probe_interval_ms),
        )
        self._outbox.send(member, Ping(sequence))

    def relay(self, origin: Member, request: PingRequest, now: int) -> None:
        """Probes somebody for `origin`, who will hear Ack or Nack."""
        if len(self._relays) >= self._config.max_probes:
            return
        sequence = self._next_sequence()
        due = now + self._config.nack_timeout_ms
        self._relays[sequence] = _Relay(request.node_id, sequence, origin, request.sequence, due)
        self._outbox.send_to(request.address, request.node_id, Ping(sequence))

    def acknowledged(self, sequence: int, now: int) -> None:
        self._answered_at = now
        relay = self._relays.pop(sequence, None)
        if relay is not None:
            self._outbox.send(relay.origin, Ack(relay.origin_sequence))
            return
        probe = self._probe_of(sequence)
        if probe is not None:
            del self._probes[probe.member.node_id]
            self._health.better()

    def not_acknowledged(self, sequence: int, helper: str, now: int) -> None:
        """`helper` is there, and got no answer. When all say so there is nothing more to wait for."""
        self._answered_at = now
        probe = self._probe_of(sequence)
        if probe is not None and probe.helpers is not None and helper in probe.helpers:
            probe.nacks.add(helper)
            if not probe.silent_helpers:
                self._fail(probe, now)

    def not_delivered(self, node_id: str, now: int) -> None:
        """No need to wait for an answer of somebody who is not at the address."""
        probe = self._probes.get(node_id)
        if probe is not None and probe.helpers is None:
            self._advance(probe, now)
        for relay in [relay for relay in self._relays.values() if relay.node_id == node_id]:
            self._give_up(relay)

    def _next_to_probe(self) -> Member | None:
        """By turns the next member on the circle, and one of all in an order shuffled for each round.

        The former bounds the time until a death is noticed, the latter finds out when neighbours on the
        circle die together (SWIM, section 4.3).
        """
        self._successor_is_next = not self._successor_is_next
        if self._successor_is_next:
            return self._view.successor()
        if not self._round:
            self._round = [member.node_id for member in self._view.peers()]
            self._rng.shuffle(self._round)
        while self._round:
            member = self._view.get(self._round.pop())
            if member is not None and member.is_reachable:
                return member
        return None

    def _advance(self, probe: _Probe, now: int) -> None:
        if probe.helpers is None:
            self._ask_helpers(probe)
        else:
            self._fail(probe, now)

    def _ask_helpers(self, probe: _Probe) -> None:
        member = self._still_probed(probe)
        if member is None:
            del self._probes[probe.member.node_id]
            return
        helpers = self._view.sample(
            self._rng,
            self._config.indirect_probes,
            lambda helper: helper.state is State.ALIVE and helper.node_id != member.node_id,
        )
        probe.helpers = frozenset(helper.node_id for helper in helpers)
        for helper in helpers:
            self._outbox.send(helper, PingRequest(probe.sequence, member.node_id, member.address))

    def _fail(self, probe: _Probe, now: int) -> None:
        """Suspects the member. When nobody else answers either, this node itself may be at fault."""
        del self._probes[probe.member.node_id]
        if now - self._answered_at >= self._config.probe_interval_ms:
            self._health.worse(len(probe.silent_helpers))
        member = self._still_probed(probe)
        if member is not None:
            self._knowledge.suspect(member, frozenset(probe.nacks), now)

    def _still_probed(self, probe: _Probe) -> Member | None:
        """The member as it is known now; None when it is gone, or somebody else than was probed."""
        member = self._view.get(probe.member.node_id)
        if member is None or not member.is_reachable:
            return None
        was = probe.member
        return member if (member.epoch, member.address) == (was.epoch, was.address) else None

    def _probe_of(self, sequence: int) -> _Probe | None:
        return next((probe for probe in self._probes.values() if probe.sequence == sequence), None)

    def _give_up(self, relay: _Relay) -> None:
        del self._relays[relay.sequence]
        self._outbox.send(relay.origin, Nack(relay.origin_sequence))

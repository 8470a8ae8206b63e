"""Who is in the cluster: SWIM as a state machine without I/O.

Das, Gupta and Motivala, "SWIM: Scalable Weakly-consistent Infection-style Process Group Membership
Protocol", DSN 2002, with the additions of Dadgar, Phillips and Currey, "Lifeguard", 2017, and these:

- Each message carries a digest of the sender's view. Views that stay different are exchanged whole.
- Every second probe goes to the next member on a circle of all, so that a death is noticed within two
  intervals.
- Helpers who get no answer either are evidence: with them a suspicion is short, without them long.
- Nobody dies by hearsay: who is told of a death begins, or confirms, a suspicion of its own.
- Time during which the process did not run counts against nobody.
- The dead, and seeds that are strange, are tried for ever at a low rate.

`handle(event, now)` returns what is to be sent and what has changed; `next_timer` says when to hand in
the next Timer. Time is monotonic milliseconds, randomness an argument.
"""

from __future__ import annotations

from itertools import count
from random import Random

from cacheservice.errors import ClusterIdMismatch, NodeIdMismatch
from cacheservice.membership.announcement import Announcement
from cacheservice.membership.config import MembershipConfig
from cacheservice.membership.detector import Detector
from cacheservice.membership.health import LocalHealth
from cacheservice.membership.knowledge import Knowledge
from cacheservice.membership.member import Member, Phase, State
from cacheservice.membership.messages import (
    Ack,
    Enter,
    Event,
    Leave,
    Nack,
    Output,
    PeerDiffers,
    PeerFailed,
    Ping,
    PingRequest,
    Received,
    SeedsResolved,
    SendFailed,
    Serve,
    Sync,
    Timer,
)
from cacheservice.membership.outbox import Outbox


class Membership:
    """One member's part in the protocol, and its knowledge of the others."""

    def __init__(self, local: Member, config: MembershipConfig, rng: Random, now: int) -> None:
        self._config = config
        self._rng = rng
        self._health = health = LocalHealth(config.worst_health)
        self._knowledge = knowledge = Knowledge(local, config, health, now)
        self._view = knowledge.view
        self._outbox = outbox = Outbox(knowledge, config)
        next_sequence = count(1).__next__
        self._detector = Detector(knowledge, outbox, health, config, rng, next_sequence, now)
        self._announcement = Announcement(knowledge.view, outbox, config, rng, next_sequence)
        self._seeds: tuple[str, ...] = ()
        self._now = now
        self._lost_ms = 0
        """Time that passed while the process did not run."""
        self._was_late = False
        self._agreed_at = self._reconciled_at = self._asked_at = now
        self._reconcile_pause = config.reconcile_interval_ms
        self._next_round = now
        self._next_sync = now + self._sync_interval()
        self._next_search = now + config.join_interval_ms
        self._join_pause = config.join_interval_ms

    @property
    def local(self) -> Member:
        return self._view.local

    @property
    def members(self) -> tuple[Member, ...]:
        """Everybody known, by node id, this node, the dead and those who left included."""
        return self._view.members

    @property
    def digest(self) -> int:
        """The same for all nodes that know the same of all that are reachable."""
        return self._view.digest

    @property
    def has_joined(self) -> bool:
        """Whether any other member is in the view."""
        return self._view.peer_count > 0

    @property
    def is_known_elsewhere(self) -> bool:
        """Whether any of them is not on this node's own host."""
        return any(not peer.is_beside(self.local) for peer in self._view.peers())

    @property
    def has_joined_others(self) -> bool:
        """Whether any of them is not one that is just starting on this node's own host, too."""
        return any(peer.is_in_ring or not peer.is_beside(self.local) for peer in self._view.peers())

    @property
    def is_heard(self) -> bool:
        """Whether enough others have confirmed that they know what this node said of itself last."""
        return self._announcement.is_heard

    @property
    def health(self) -> int:
        """0 when healthy; patience with others is multiplied by 1 + this."""
        return self._health.score

    def get(self, node_id: str) -> Member | None:
        return self._view.get(node_id)

    def next_timer(self) -> int:
        """When the next Timer event is due."""
        return self._due() + self._lost_ms

    def handle(self, event: Event, now: int) -> list[Output]:
        """Takes note of `event` at `now`; what has changed, and what is to be sent, in order.

        ClusterIdMismatch and NodeIdMismatch: the message is meant for somebody else, and nothing changed.
        """
        self._pass_time(now)
        if self._knowledge.is_superseded:
            return []
        match event:
            case Received():
                self._receive(event)
            case Timer():
                self._tick()
            case SendFailed(node_id):
                self._detector.not_delivered(node_id, self._now)
            case SeedsResolved(addresses):
                self._seeds = addresses
                self._join()
                self._join_pause = self._config.join_interval_ms
                self._next_search = min(self._next_search, self._now + self._join_pause)
            case PeerFailed(node_id):
                self._detector.probe(self._view.get(node_id), self._now)
            case PeerDiffers(node_id):
                self._peer_differs(node_id)
            case Enter():
                self._announce(Phase.WARMING)
            case Serve():
                self._announce(Phase.SERVING)
            case Leave(final):
                has_nothing = self.local.phase is Phase.JOINING
                self._announce(Phase.LEAVING, State.LEFT if final or has_nothing else State.ALIVE)
        if self._has_round():
            self._next_round = max(self._next_round, self._now)
        return [*self._knowledge.take_changes(), *self._outbox.take()]

    def _pass_time(self, now: int) -> None:
        """Leaves out the time during which this process stood still, or its clock jumped.

        And, the first time, a little more, in which it can read what came meanwhile before it judges
        anybody. For one that is always late time goes slowly, but it goes.
        """
        late = now - self._lost_ms - self._due()
        is_late = late > self._config.lag_ms
        if is_late:
            self._lost_ms += late + (0 if self._was_late else self._config.probe_timeout_ms)
            self._health.worse()
        self._was_late = is_late or (self._was_late and late < 0)
        self._now = max(self._now, now - self._lost_ms)

    def _due(self) -> int:
        if self._knowledge.is_superseded:
            return self._now + self._config.search_interval_ms
        due = min(self._detector.due(), self._next_search, self._next_sync)
        return min(due, self._next_round) if self._has_round() else due

    def _has_round(self) -> bool:
        """Whether there is anything to do each gossip_interval_ms."""
        knowledge = self._knowledge
        return bool(len(knowledge.rumours) or knowledge.has_suspects or not self._announcement.is_heard)

    def _receive(self, event: Received) -> None:
        if event.cluster_id != self._config.cluster_id:
            raise ClusterIdMismatch.of(self._config.cluster_id, event.cluster_id)
        if event.to_node not in ("", self.local.node_id):
            raise NodeIdMismatch.of(self.local.node_id, event.to_node)
        sender, message = event.sender, event.message
        self._knowledge.learn(sender, sender.node_id, self._now)
        for rumour in message.rumours:
            self._knowledge.learn(rumour.member, sender.node_id, self._now, rumour.accusers)
        match message.body:
            case Ping(sequence):
                self._outbox.send(sender, Ack(sequence))
            case Ack(sequence):
                self._detector.acknowledged(sequence, self._now)
                self._announcement.acknowledged(sequence)
            case Nack(sequence):
                self._detector.not_acknowledged(sequence, sender.node_id, self._now)
            case PingRequest() as request:
                self._detector.relay(sender, request, self._now)
            case Sync(members, reply_wanted):
                self._merge(sender, members)
                if reply_wanted:
                    self._outbox.send(sender, Sync(self.members, reply_wanted=False))
            case None:
                pass
        self._compare(sender, message.digest)

    def _announce(self, phase: Phase, state: State = State.ALIVE) -> None:
        self._knowledge.speak_for_itself(self._now, phase, state)
        self._announcement.begin()

    def _tick(self) -> None:
        self._detector.tick(self._now)
        if self._now >= self._next_round:
            self._next_round = self._now + self._config.gossip_interval_ms
            self._knowledge.judge(self._now)
            self._announcement.tick()
            self._gossip()
        if self._now >= self._next_search:
            self._search()
        if self._now >= self._next_sync:
            self._next_sync = self._now + self._sync_interval()
            for member in self._view.sample(self._rng, 1):
                self._outbox.send(member, Sync(self.members, reply_wanted=True))

    def _gossip(self) -> None:
        for member in self._view.sample(self._rng, self._config.gossip_fanout):
            if len(self._knowledge.rumours):
                self._outbox.send(member, None)

    def _merge(self, sender: Member, members: tuple[Member, ...]) -> None:
        """Takes over a whole view; the first one need not be passed on, for those in it have it."""
        is_first = self._view.peer_count <= 1
        for member in members:
            self._knowledge.learn(member, sender.node_id, self._now, pass_on=not is_first)

    def _compare(self, sender: Member, digest: int) -> None:
        """Exchanges views with a member whose view differs although there has been no news for a while.

        Or although views have differed for long, when there is always news.
        """
        config = self._config
        if digest == self._view.digest:
            self._agreed_at = self._now
            self._reconcile_pause = config.reconcile_interval_ms
            return
        is_quiet = self._now - self._knowledge.changed_at >= config.reconcile_interval_ms
        is_overdue = self._now - self._agreed_at >= config.search_interval_ms
        if (is_quiet or is_overdue) and self._now - self._reconciled_at >= self._reconcile_pause:
            self._reconciled_at = self._now
            self._reconcile_pause = min(2 * self._reconcile_pause, config.search_interval_ms)
            self._outbox.send(sender, Sync(self.members, reply_wanted=True))

    def _peer_differs(self, node_id: str) -> None:
        member = self._view.get(node_id)
        if member is not None and self._now - self._asked_at >= self._config.reconcile_interval_ms:
            self._asked_at = self._now
            self._outbox.send(member, Sync(self.members, reply_wanted=True))

    def _sync_interval(self) -> int:
        """The larger the cluster, the longer, so that it takes no more of the network."""
        interval = self._config.sync_interval_ms * (1 + self._view.peer_count // 100)
        return interval // 2 + self._rng.randrange(interval)

    def _search(self) -> None:
        """Tries seeds while the host is alone, ever more rarely; later, now and then, one of the strange
        seeds and one of the dead."""
        seeds, dead = self._strange_seeds(), self._view.dead()
        is_joining = not (self.is_known_elsewhere if seeds else self.has_joined)
        config = self._config
        interval = self._join_pause if is_joining else config.search_interval_ms
        longer = min(2 * self._join_pause, config.search_interval_ms)
        self._join_pause = longer if is_joining else config.join_interval_ms
        self._next_search = self._now + interval // 2 + self._rng.randrange(interval)
        if is_joining:
            self._join()
        elif seeds:
            self._call(self._rng.choice(seeds))
        if dead:
            # Those who died last are the likeliest to be back.
            recent = dead[-config.recent_dead :]
            self._call(self._rng.choice(recent if self._rng.random() < 0.5 else dead).address)

    def _join(self) -> None:
        for address in self._strange_seeds():
            self._call(address)

    def _call(self, address: str) -> None:
        self._outbox.send_to(address, "", Sync(self.members, reply_wanted=True))

    def _strange_seeds(self) -> list[str]:
        known = {self.local.address, *(member.address for member in self._view.peers())}
        return [address for address in self._seeds if address not in known]

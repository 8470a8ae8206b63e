"""What a node believes of all members, and why: news, suspicions, and what is to be passed on."""

from __future__ import annotations

from dataclasses import replace

from cacheservice.membership.config import MembershipConfig
from cacheservice.membership.health import LocalHealth
from cacheservice.membership.member import Member, Phase, State
from cacheservice.membership.messages import Changed, NameTaken, Refuted, Rumour
from cacheservice.membership.rumours import RumourQueue
from cacheservice.membership.suspicion import Suspicion
from cacheservice.membership.view import View

NOBODY: frozenset[str] = frozenset()
OWN_ACCOUNT = "by its own account"


class Knowledge:
    """The view, and the rules by which news changes it. `now` is the caller's time in milliseconds."""

    def __init__(self, local: Member, config: MembershipConfig, health: LocalHealth, now: int) -> None:
        self._config = config
        self._health = health
        self._suspicions: dict[str, Suspicion] = {}
        self._accused_at: int | None = None
        """When this node was last taken for anything but alive."""
        self._changes: list[Changed | Refuted | NameTaken] = []
        self.view = View(local, config.max_members, config.max_gone)
        self.rumours = RumourQueue()
        self.rumours.add(Rumour(local), urgent=True)
        self.changed_at = now
        """When the view changed last."""
        self.is_superseded = False
        """Whether a process that started later has this node's id."""

    @property
    def local(self) -> Member:
        return self.view.local

    @property
    def has_suspects(self) -> bool:
        return bool(self._suspicions)

    def own_suspects(self) -> list[Member]:
        """Whom this node itself has got no answer from."""
        own = [node_id for node_id, some in self._suspicions.items() if self.local.node_id in some.accusers]
        return list(filter(None, map(self.view.get, own)))

    def take_changes(self) -> list[Changed | Refuted | NameTaken]:
        changes, self._changes = self._changes, []
        return changes

    def rumour_of(self, member: Member) -> Rumour:
        suspicion = self._suspicions.get(member.node_id)
        return Rumour(member, frozenset(suspicion.accusers) if suspicion is not None else NOBODY)

    def learn(
        self,
        news: Member,
        teller: str,
        now: int,
        accusers: frozenset[str] = NOBODY,
        *,
        pass_on: bool = True,
    ) -> None:
        """Takes over `news` if it is later than what is known, and has it passed on."""
        if news.node_id == self.local.node_id:
            self._refute(news, teller, now)
            return
        known = self.view.get(news.node_id)
        if known is None:
            if self.view.can_take(news):
                self._take(news, None, teller, now, accusers, pass_on=pass_on)
        elif news.supersedes(known):
            if news.state is State.DEAD and known.is_reachable:
                self._doubt(news, known, teller, now)
            else:
                self._take(news, known, teller, now, accusers, pass_on=pass_on)
        elif news.state is State.SUSPECT and news == known:
            self._confirm(news, accusers)

    def suspect(self, member: Member, helpers: frozenset[str], now: int) -> None:
        """To be called when the member has not answered this node, nor those `helpers`."""
        accusers = helpers | {self.local.node_id}
        self.learn(member.with_state(State.SUSPECT), self.local.node_id, now, accusers)

    def judge(self, now: int) -> None:
        """Takes those for dead who have not refuted in time; one that was leaving has left."""
        ended = [node_id for node_id, some in self._suspicions.items() if self._end(some) <= now]
        for member in filter(None, map(self.view.get, ended)):
            gone = State.LEFT if member.phase is Phase.LEAVING else State.DEAD
            self._take(member.with_state(gone), member, self.local.node_id, now)

    def speak_for_itself(self, now: int, phase: Phase, state: State = State.ALIVE) -> None:
        """Makes the node's own word known to all. LEFT is its last."""
        before = self.local
        if before.state is State.LEFT or (before.state, before.phase) == (state, phase):
            return
        after = replace(before, phase=phase, state=state, incarnation=before.incarnation + 1)
        self._set_local(after, now)
        self._changes.append(Changed(after, before, OWN_ACCOUNT))

    def _confirm(self, suspect: Member, accusers: frozenset[str]) -> None:
        if self._suspicions[suspect.node_id].confirm(accusers):
            self._pass_on(suspect)

    def _doubt(self, news: Member, known: Member, teller: str, now: int) -> None:
        """Gives somebody who was declared dead elsewhere the time to refute that here, too."""
        suspect = news.with_state(State.SUSPECT)
        if suspect.supersedes(known):
            self._take(suspect, known, teller, now)
        self._suspicions[news.node_id].is_certain = True

    def _take(
        self,
        news: Member,
        known: Member | None,
        teller: str,
        now: int,
        accusers: frozenset[str] = NOBODY,
        *,
        pass_on: bool = True,
    ) -> None:
        suspicion = self._suspicions.pop(news.node_id, None)
        self.view.put(news)
        self.changed_at = now
        if news.state is State.SUSPECT:
            self._suspicions[news.node_id] = self._suspicion(accusers, now)
        if pass_on:
            self._pass_on(news)
        if known is None and not news.is_reachable:
            return
        if known is None or replace(known, incarnation=news.incarnation) != news:
            if suspicion is not None and not news.is_reachable and teller == self.local.node_id:
                reason = _verdict(suspicion, now)
            else:
                reason = _reason(news, known, accusers, teller)
            self._changes.append(Changed(news, known, reason))

    def _suspicion(self, accusers: frozenset[str], now: int) -> Suspicion:
        shortest = self._config.refutable_ms(self.view.peer_count + 1)
        helpers = max(0, self.view.peer_count - 1)
        return Suspicion(
            since=now,
            min_ms=shortest,
            max_ms=self._config.doubtful_multiplier * shortest,
            needed=min(self._config.indirect_probes, helpers),
            accusers=set(accusers),
        )

    def _end(self, suspicion: Suspicion) -> int:
        """An unhealthy node waits as long as it can, unless somebody else has waited in vain.

        One that was lately accused itself does not go by its own word alone.
        """
        if suspicion.is_certain:
            return suspicion.since + suspicion.min_ms
        since = suspicion.since
        if self._accused_at is not None and suspicion.accusers <= {self.local.node_id}:
            since = max(since, self._accused_at)
        return since + min(self._health.scale(suspicion.timeout_ms()), suspicion.max_ms)

    def _pass_on(self, member: Member) -> None:
        self.rumours.add(self.rumour_of(member), urgent=member.state is State.LEFT)

    def _refute(self, news: Member, teller: str, now: int) -> None:
        """Answers later news of this node, which only this node may make, with later news still.

        Of two processes with one name the one that started last has it: one that is just joining outdoes
        its former life, whose clock may have been ahead; any other gives way to a later one, whatever
        others believe of that.
        """
        local = self.local
        if not news.supersedes(local):
            return
        if news.epoch > local.epoch:
            if news.address != local.address and local.phase is not Phase.JOINING:
                self.is_superseded = True
                self._changes.append(NameTaken(news.address))
                return
            later = replace(local, epoch=news.epoch + 1, incarnation=0)
        else:
            later = replace(local, incarnation=news.incarnation + 1)
        if news.state in (State.DEAD, State.LEFT) and local.is_in_ring:
            later = replace(later, phase=Phase.WARMING, absences=local.absences + 1)
            self._changes.append(Changed(later, local, f"taken for {news.label} by {teller}"))
        if news.state is not State.ALIVE:
            self._health.worse()
            self._accused_at = now
            self._changes.append(Refuted(news.label, teller))
        self._set_local(later, now)

    def _set_local(self, local: Member, now: int) -> None:
        self.view.put(local)
        self.changed_at = now
        self.rumours.add(Rumour(local), urgent=True)


def _verdict(suspicion: Suspicion, now: int) -> str:
    silent_to = ", ".join(sorted(suspicion.accusers)) or "others"
    return f"silent to {silent_to}, and did not refute that within {(now - suspicion.since) / 1_000:.1f} s"


def _reason(news: Member, known: Member | None, accusers: frozenset[str], teller: str) -> str:
    told = "" if teller == news.node_id or teller in accusers else f", told by {teller}"
    if not news.is_reachable:
        return f"{OWN_ACCOUNT if news.state is State.LEFT else 'silent to others'}{told}"
    if news.state is State.SUSPECT:
        return f"silent to {', '.join(sorted(accusers)) or teller}{told}"
    if known is not None and known.epoch != news.epoch:
        return f"started anew{told}"
    if known is not None and not known.is_reachable:
        return f"back{told}"
    if known is not None and known.state is State.SUSPECT:
        return f"refuted the suspicion{told}"
    return f"{OWN_ACCOUNT}{told}"

"""What a node says of itself, said in such a way that others know of it."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from cacheservice.membership.config import MembershipConfig
from cacheservice.membership.member import State
from cacheservice.membership.messages import Ping
from cacheservice.membership.outbox import Outbox
from cacheservice.membership.view import View

_MAX_TOLD = 100


class Announcement:
    """Tells others directly, more of them each round, until enough have confirmed it."""

    def __init__(
        self,
        view: View,
        outbox: Outbox,
        config: MembershipConfig,
        rng: Random,
        next_sequence: Callable[[], int],
    ) -> None:
        self._view = view
        self._outbox = outbox
        self._config = config
        self._rng = rng
        self._next_sequence = next_sequence
        self._is_open = False
        self._told: dict[int, str] = {}
        self._confirmed: set[str] = set()

    @property
    def is_heard(self) -> bool:
        """Whether there is nothing to announce, or enough others know of it."""
        if not self._is_open:
            return True
        alive = sum(peer.state is State.ALIVE for peer in self._view.peers())
        return len(self._confirmed) >= min(self._config.witnesses, alive)

    def begin(self) -> None:
        self._is_open = True
        self._told.clear()
        self._confirmed.clear()
        self.tick()

    def tick(self) -> None:
        if self.is_heard:
            self._is_open = False
            return
        told = {*self._told.values(), *self._confirmed}
        untold = self._view.sample(self._rng, self._config.witnesses, lambda peer: peer.node_id not in told)
        for member in untold or self._view.sample(self._rng, self._config.witnesses):
            sequence = self._next_sequence()
            self._told[sequence] = member.node_id
            if len(self._told) > _MAX_TOLD:
                del self._told[next(iter(self._told))]
            self._outbox.send(member, Ping(sequence))

    def acknowledged(self, sequence: int) -> None:
        if sequence in self._told:
            self._confirmed.add(self._told.pop(sequence))

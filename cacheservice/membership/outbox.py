"""Messages on their way out, each with rumours on its back."""

from __future__ import annotations

from cacheservice.membership.config import MembershipConfig
from cacheservice.membership.knowledge import Knowledge
from cacheservice.membership.member import Member, State
from cacheservice.membership.messages import Body, Message, Rumour, Send


class Outbox:
    def __init__(self, knowledge: Knowledge, config: MembershipConfig) -> None:
        self._knowledge = knowledge
        self._config = config
        self._sends: list[Send] = []

    def send(self, to: Member, body: Body) -> None:
        """To a member; if it is taken for anything but alive it is told so, and can refute."""
        known = self._knowledge.view.get(to.node_id)
        if known is None or known.state is State.ALIVE:
            self.send_to(to.address, to.node_id, body)
        else:
            self.send_to(to.address, to.node_id, body, (self._knowledge.rumour_of(known),))

    def send_to(self, address: str, node_id: str, body: Body, rumours: tuple[Rumour, ...] = ()) -> None:
        """To whoever is at the address; `node_id` is "" when that is not known."""
        view = self._knowledge.view
        transmissions = self._config.transmissions(view.peer_count + 1)
        rumours += self._knowledge.rumours.take(self._config.max_rumours, transmissions)
        self._sends.append(Send(address, node_id, Message(body, rumours, view.digest)))

    def take(self) -> list[Send]:
        sends, self._sends = self._sends, []
        return sends

"""What members say to each other, what happens to a membership core, and what it asks for."""

from __future__ import annotations

from dataclasses import dataclass

from cacheservice.membership.member import Member


@dataclass(frozen=True, slots=True)
class Ping:
    sequence: int


@dataclass(frozen=True, slots=True)
class Ack:
    sequence: int


@dataclass(frozen=True, slots=True)
class Nack:
    """The answer to a PingRequest whose member has not answered in time: the asked one is there, though."""

    sequence: int


@dataclass(frozen=True, slots=True)
class PingRequest:
    """A request to ping another member and to pass its Ack on."""

    sequence: int
    node_id: str
    address: str


@dataclass(frozen=True, slots=True)
class Sync:
    """Everything that the sender knows, itself included."""

    members: tuple[Member, ...]
    reply_wanted: bool


Body = Ping | Ack | Nack | PingRequest | Sync | None


@dataclass(frozen=True, slots=True)
class Rumour:
    """News of a member and, when it is suspect, who got no answer from it."""

    member: Member
    accusers: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Message:
    """A body, or none, with rumours on its back, and the digest of the sender's view."""

    body: Body = None
    rumours: tuple[Rumour, ...] = ()
    digest: int = 0


@dataclass(frozen=True, slots=True)
class Received:
    """Event: a message came. `sender` is the sender as it describes itself."""

    cluster_id: str
    sender: Member
    to_node: str
    message: Message


@dataclass(frozen=True, slots=True)
class SendFailed:
    """Event: a message could not be delivered: nobody is at the address, or somebody else."""

    to_node: str


@dataclass(frozen=True, slots=True)
class Timer:
    """Event: the time that `next_timer` named has come."""


@dataclass(frozen=True, slots=True)
class SeedsResolved:
    """Event: these addresses may belong to members."""

    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PeerFailed:
    """Event: a data request to the member got no answer."""

    node_id: str


@dataclass(frozen=True, slots=True)
class PeerDiffers:
    """Event: a data request showed that the member has another ring."""

    node_id: str


@dataclass(frozen=True, slots=True)
class Enter:
    """Event: this node is ready to own keys."""


@dataclass(frozen=True, slots=True)
class Serve:
    """Event: this node holds what it owns."""


@dataclass(frozen=True, slots=True)
class Leave:
    """Event: this node is about to stop; `final` once it no longer serves its keys."""

    final: bool


Event = Received | SendFailed | Timer | SeedsResolved | PeerFailed | PeerDiffers | Enter | Serve | Leave


@dataclass(frozen=True, slots=True)
class Send:
    """Output: give `message` to whoever is at `address`, who should be `to_node` ("" when not known)."""

    address: str
    to_node: str
    message: Message


@dataclass(frozen=True, slots=True)
class Changed:
    """Output: `member` is now what it is, was `before` (None: it is new), and why."""

    member: Member
    before: Member | None
    reason: str


@dataclass(frozen=True, slots=True)
class Refuted:
    """Output: `teller` took this node for suspect or dead, as `label` says, and is being told otherwise."""

    label: str
    teller: str


@dataclass(frozen=True, slots=True)
class NameTaken:
    """Output: a process that started later, at `address`, goes by this node's id, and has its place."""

    address: str


Output = Send | Changed | Refuted | NameTaken

"""What members say to each other, what happens to a membership core, and what it asks for."""

from __future__ import annotations

from dataclasses import dataclass

from cacheservice.membership.member import Member, State


@dataclass(frozen=True, slots=True)
class Ping:
    sequence: int


@dataclass(frozen=True, slots=True)
class Ack:
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


Body = Ping | Ack | PingRequest | Sync | None


@dataclass(frozen=True, slots=True)
class Message:
    """A body, or none, with rumours on its back."""

    body: Body = None
    rumours: tuple[Member, ...] = ()


@dataclass(frozen=True, slots=True)
class Received:
    """Event: a message came. `sender` is the sender as it describes itself."""

    cluster_id: str
    sender: Member
    to_node: str
    message: Message


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
class Leave:
    """Event: this node is about to stop; `final` once it no longer serves its keys."""

    final: bool


Event = Received | Timer | SeedsResolved | PeerFailed | Leave


@dataclass(frozen=True, slots=True)
class Send:
    """Output: give `message` to whoever is at `address`, who should be `to_node` ("" when not known)."""

    address: str
    to_node: str
    message: Message


@dataclass(frozen=True, slots=True)
class Changed:
    """Output: `member` is now in another state than `before` (None: it is new), and why."""

    member: Member
    before: State | None
    reason: str


@dataclass(frozen=True, slots=True)
class NameTaken:
    """Output: another process, at `address`, goes by this node's id. One of them must be renamed."""

    address: str


Output = Send | Changed | NameTaken

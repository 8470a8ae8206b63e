"""Gives the membership core its time, its seeds and its network, and the node its view."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import grpc

from cacheservice.clock import Clock
from cacheservice.errors import CacheServiceError, ClusterSettingsMismatch, DeadlineExceeded
from cacheservice.membership import Member, Membership, Phase, State
from cacheservice.membership.messages import (
    Changed,
    Enter,
    Event,
    Leave,
    NameTaken,
    Output,
    PeerDiffers,
    PeerFailed,
    Received,
    Refuted,
    SeedsResolved,
    Send,
    SendFailed,
    Serve,
    Timer,
)
from cacheservice.server import gossip_codec
from cacheservice.server.channels import PeerChannels
from cacheservice.server.seeds import Seeds
from cacheservice.server.supervision import for_ever
from cacheservice.v1 import peer_pb2
from cacheservice.wire import from_rpc_error

_log = logging.getLogger(__name__)

_SEND_TIMEOUT_SECONDS = 1.0
_MAX_SENDS = 256
_MAX_COMPLAINTS = 100
_ANNOUNCEMENT_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class RingSettings:
    """What all nodes of a cluster must have in common to place keys alike."""

    virtual_nodes: int
    replication_factor: int

    def __str__(self) -> str:
        return f"{self.virtual_nodes} virtual nodes and replication factor {self.replication_factor}"


class Gossip:
    """Drives the core: one task for its timer, one for the seeds' names, one for each message on its way.

    `on_change` is called after every change of the members, `on_name_taken` with the address of a process
    that was started later and has this node's id: this one has to stop. More than _MAX_SENDS messages on
    their way at a time are dropped, as a network would.
    """

    def __init__(
        self,
        core: Membership,
        cluster_id: str,
        ring_settings: RingSettings,
        seeds: Sequence[str],
        siblings: Sequence[str],
        channels: PeerChannels,
        clock: Clock,
        on_change: Callable[[], None],
        on_name_taken: Callable[[str], None],
    ) -> None:
        self._core = core
        self._cluster_id = cluster_id
        self._ring_settings = ring_settings
        self._seeds = Seeds(seeds, siblings, lambda addresses: self._handle(SeedsResolved(addresses)))
        self._channels = channels
        self._clock = clock
        self._on_change = on_change
        self._on_name_taken = on_name_taken
        self._reasons: dict[str, str] = {}
        self._complaints: dict[str, str] = {}
        self._sends: set[asyncio.Task[None]] = set()
        self._loops: list[asyncio.Task[None]] = []
        self._wake = asyncio.Event()
        self._changed = asyncio.Event()
        self._acknowledged = asyncio.Event()

    @property
    def members(self) -> tuple[Member, ...]:
        return self._core.members

    def start(self) -> None:
        loops = {"gossip": self._run_timer, "seeds": self._seeds.watch}
        self._loops = [asyncio.create_task(for_ever(name, work)) for name, work in loops.items()]

    def complaints(self) -> str:
        """What kept the seeds from answering, for the log."""
        problems = {**self._seeds.problems, **self._complaints}
        return "".join(f"; {address}: {why}" for address, why in sorted(problems.items()))

    def reason(self, node_id: str) -> str:
        """Why the member is believed to be in its state."""
        return self._reasons.get(node_id, "")

    async def joined(self, timeout: float, *, others: bool) -> bool:
        """Waits until another member is known, for at most `timeout` seconds; with `others` one that is not
        just starting on this host, too."""
        try:
            async with asyncio.timeout(timeout):
                while not (self._core.has_joined_others if others else self._core.has_joined):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True

    def receive(self, request: peer_pb2.GossipRequest) -> peer_pb2.GossipResponse:
        """Takes in a peer's messages; what is to be said to it at once is in the response."""
        self._check_ring_settings(request)
        sender = gossip_codec.member_from_proto(request.sender)
        outputs = self._handle_messages(request.cluster_id, sender, request.to_node, request.messages)
        replies: list[Send] = []
        others: list[Output] = []
        for output in outputs:
            if isinstance(output, Send) and output.to_node == sender.node_id:
                replies.append(output)
            else:
                others.append(output)
        self._perform(others)
        return peer_pb2.GossipResponse(
            cluster_id=self._cluster_id,
            sender=gossip_codec.member_to_proto(self._core.local),
            messages=[gossip_codec.message_to_proto(reply.message) for reply in replies],
        )

    def peer_failed(self, node_id: str) -> None:
        """Tells the core that a data request to the node got no answer."""
        self._handle(PeerFailed(node_id))

    def peer_differs(self, node_id: str) -> None:
        """Tells the core that the node has another ring."""
        self._handle(PeerDiffers(node_id))

    async def enter(self) -> None:
        """Tells the others that this node is ready to own keys, as `leave` tells them that it is not."""
        await self._announce(Enter())

    def settled(self) -> None:
        """Tells the others that this node has been given what it owns, unless they know."""
        if self._core.local.phase is Phase.WARMING:
            self._handle(Serve())

    async def leave(self, *, final: bool) -> None:
        """Tells the others that this node is about to stop or, `final`, has stopped serving its keys.

        Returns when some of them have confirmed it, or after a bounded time in vain.
        """
        await self._announce(Leave(final))

    async def stop(self) -> None:
        tasks = [*self._loops, *self._sends]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run_timer(self) -> None:
        while True:
            self._wake.clear()
            wait_ms = self._core.next_timer() - self._clock.now_ms()
            if wait_ms > 0:
                try:
                    async with asyncio.timeout(wait_ms / 1_000):
                        await self._wake.wait()
                except TimeoutError:
                    pass
                else:
                    continue
            self._handle(Timer())

    def _check_ring_settings(self, request: peer_pb2.GossipRequest) -> None:
        ours = self._ring_settings
        theirs = RingSettings(request.virtual_nodes, request.replication_factor)
        if request.cluster_id == self._cluster_id and theirs != ours:
            raise ClusterSettingsMismatch(f"this cluster has {ours}, not {theirs}")

    async def _announce(self, event: Enter | Leave) -> None:
        self._handle(event)
        try:
            async with asyncio.timeout(_ANNOUNCEMENT_SECONDS):
                while not self._core.is_heard:
                    self._acknowledged.clear()
                    await self._acknowledged.wait()
        except TimeoutError:
            _log.warning("nobody has confirmed that this node is %s", self._core.local.label)

    def _handle(self, event: Event) -> None:
        self._perform(self._core.handle(event, self._clock.now_ms()))

    def _handle_messages(
        self,
        cluster_id: str,
        sender: Member,
        to_node: str,
        messages: Iterable[peer_pb2.GossipMessage],
    ) -> list[Output]:
        now = self._clock.now_ms()
        parsed = [gossip_codec.message_from_proto(message) for message in messages]
        return [
            output
            for message in parsed
            for output in self._core.handle(Received(cluster_id, sender, to_node, message), now)
        ]

    def _perform(self, outputs: Iterable[Output]) -> None:
        changed = False
        for output in outputs:
            match output:
                case Send():
                    self._start_send(output)
                case Changed(member, before, reason):
                    changed = True
                    self._reasons[member.node_id] = reason
                    _log_change(member, before, reason)
                case Refuted(label, teller):
                    _log.warning("%s took this node for %s, and is told otherwise", teller, label)
                case NameTaken(address):
                    self._on_name_taken(address)
        if changed:
            self._forget_reasons()
            self._on_change()
            self._changed.set()
        self._wake.set()
        self._acknowledged.set()

    def _forget_reasons(self) -> None:
        members = self._core.members
        if len(self._reasons) > len(members):
            known = {member.node_id for member in members}
            self._reasons = {name: why for name, why in self._reasons.items() if name in known}

    def _start_send(self, send: Send) -> None:
        if len(self._sends) >= _MAX_SENDS or send.address == self._core.local.address:
            return
        task = asyncio.create_task(self._send(send))
        self._sends.add(task)
        task.add_done_callback(self._sends.discard)

    async def _send(self, send: Send) -> None:
        request = peer_pb2.GossipRequest(
            cluster_id=self._cluster_id,
            sender=gossip_codec.member_to_proto(self._core.local),
            to_node=send.to_node,
            messages=[gossip_codec.message_to_proto(send.message)],
            virtual_nodes=self._ring_settings.virtual_nodes,
            replication_factor=self._ring_settings.replication_factor,
        )
        keep = self._is_at(send)
        # Who is looked for at a seed's IP address need only have a certificate for the seed's name.
        host = "" if send.to_node else self._seeds.host_of(send.address)
        try:
            async with self._channels.gossip_stub(send.address, keep=keep, host=host) as stub:
                response = await stub.Gossip(request, timeout=_SEND_TIMEOUT_SECONDS)
            sender = gossip_codec.member_from_proto(response.sender)
            local = self._core.local.node_id
            self._perform(self._handle_messages(response.cluster_id, sender, local, response.messages))
        except grpc.aio.AioRpcError as error:
            self._not_delivered(send, from_rpc_error(error))
        except CacheServiceError as error:
            self._not_delivered(send, error)

    def _is_at(self, send: Send) -> bool:
        """Whether the message goes to a member at its own address, not to one that is only looked for."""
        member = self._core.get(send.to_node)
        return member is not None and member.is_reachable and member.address == send.address

    def _not_delivered(self, send: Send, error: CacheServiceError) -> None:
        if not send.to_node:
            self._complain(send.address, error)
        elif not isinstance(error, DeadlineExceeded):
            # Nobody is there, or somebody else. A deadline says no such thing: the answer may be late.
            self._handle(SendFailed(send.to_node))

    def _complain(self, address: str, error: CacheServiceError) -> None:
        """Notes why somebody at an address that was tried is of no use."""
        self._complaints.pop(address, None)
        self._complaints[address] = error.message
        if len(self._complaints) > _MAX_COMPLAINTS:
            del self._complaints[next(iter(self._complaints))]


def _log_change(member: Member, before: Member | None, reason: str) -> None:
    level = logging.WARNING if member.state in (State.SUSPECT, State.DEAD) else logging.INFO
    _log.log(
        level,
        "member %s at %s: %s -> %s (%s)",
        member.node_id,
        member.address,
        before.label if before else "unknown",
        member.label,
        reason,
    )

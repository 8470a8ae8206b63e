"""Gives the membership core its time, its seeds and its network, and the node its view."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import grpc

from cacheservice.address import join_address, split_address
from cacheservice.clock import Clock
from cacheservice.errors import CacheServiceError, ClusterSettingsMismatch
from cacheservice.membership import Member, Membership, State
from cacheservice.membership.messages import (
    Changed,
    Event,
    Leave,
    NameTaken,
    Output,
    PeerFailed,
    Received,
    SeedsResolved,
    Send,
    Timer,
)
from cacheservice.server import peer_codec
from cacheservice.server.channels import PeerChannels
from cacheservice.server.supervision import for_ever
from cacheservice.v1 import peer_pb2
from cacheservice.wire import from_rpc_error

_log = logging.getLogger(__name__)

_SEND_TIMEOUT_SECONDS = 1.0
_MAX_SENDS = 256
_MAX_COMPLAINTS = 100
_RESOLVE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class RingSettings:
    """What all nodes of a cluster must have in common to place keys alike."""

    virtual_nodes: int
    replication_factor: int

    def __str__(self) -> str:
        return f"{self.virtual_nodes} virtual nodes and replication factor {self.replication_factor}"


class Gossip:
    """Drives the core: one task for its timer, one for the seeds' names, one for each message on its way.

    `on_change` is called after every change of the members. More than _MAX_SENDS messages on their way
    at a time are dropped, as a network would.
    """

    def __init__(
        self,
        core: Membership,
        cluster_id: str,
        ring_settings: RingSettings,
        seeds: Sequence[str],
        channels: PeerChannels,
        clock: Clock,
        on_change: Callable[[], None],
    ) -> None:
        self._core = core
        self._cluster_id = cluster_id
        self._ring_settings = ring_settings
        self._seeds = seeds
        self._channels = channels
        self._clock = clock
        self._on_change = on_change
        self._complaints: dict[str, str] = {}
        self._sends: set[asyncio.Task[None]] = set()
        self._loops: list[asyncio.Task[None]] = []
        self._wake = asyncio.Event()
        self._joined = asyncio.Event()

    @property
    def members(self) -> tuple[Member, ...]:
        return self._core.members

    def start(self) -> None:
        loops = {"gossip": self._run_timer, "seeds": self._resolve_seeds}
        self._loops = [asyncio.create_task(for_ever(name, work)) for name, work in loops.items()]

    def complaints(self) -> str:
        """What kept the seeds from answering, for the log."""
        return "".join(f"; {address}: {why}" for address, why in sorted(self._complaints.items()))

    async def joined(self, timeout: float) -> bool:
        """Waits until another member is known, for at most `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                await self._joined.wait()
        except TimeoutError:
            return False
        return True

    def receive(self, request: peer_pb2.GossipRequest) -> peer_pb2.GossipResponse:
        """Takes in a peer's messages; what is to be said to it at once is in the response."""
        self._check_ring_settings(request)
        sender = peer_codec.member_from_proto(request.sender)
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
            sender=peer_codec.member_to_proto(self._core.local),
            messages=[peer_codec.message_to_proto(reply.message) for reply in replies],
        )

    def peer_failed(self, node_id: str) -> None:
        """Tells the core that a data request to the node got no answer."""
        self._handle(PeerFailed(node_id))

    async def leave(self, *, final: bool) -> None:
        """Tells the others that this node is about to stop or, `final`, has stopped serving its keys."""
        self._handle(Leave(final))
        await asyncio.gather(*self._sends, return_exceptions=True)

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

    async def _resolve_seeds(self) -> None:
        resolved: tuple[str, ...] = ()
        while True:
            found = await asyncio.gather(*map(self._resolve, self._seeds))
            addresses = tuple(sorted({address for some in found for address in some}))
            # Names that cannot be resolved for a while do not make the addresses of before wrong.
            if addresses and addresses != resolved:
                resolved = addresses
                self._handle(SeedsResolved(addresses))
            await asyncio.sleep(_RESOLVE_SECONDS)

    def _check_ring_settings(self, request: peer_pb2.GossipRequest) -> None:
        ours = self._ring_settings
        theirs = RingSettings(request.virtual_nodes, request.replication_factor)
        if request.cluster_id == self._cluster_id and theirs != ours:
            raise ClusterSettingsMismatch(f"this cluster has {ours}, not {theirs}")

    async def _resolve(self, seed: str) -> list[str]:
        """The addresses that the name of a seed has now; none when it cannot be resolved."""
        host, port = split_address(seed)
        try:
            loop = asyncio.get_running_loop()
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            self._complaints[seed] = str(error)
            return []
        self._complaints.pop(seed, None)
        return [join_address(str(to[0]), port) for *_, to in found]

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
        parsed = [peer_codec.message_from_proto(message) for message in messages]
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
                    _log_change(member, before, reason)
                case NameTaken(address):
                    _log.warning("a process at %s calls itself %s too", address, self._core.local.node_id)
        if changed:
            self._on_change()
            if self._core.has_joined:
                self._joined.set()
        self._wake.set()

    def _start_send(self, send: Send) -> None:
        if len(self._sends) >= _MAX_SENDS or send.address == self._core.local.address:
            return
        task = asyncio.create_task(self._send(send))
        self._sends.add(task)
        task.add_done_callback(self._sends.discard)

    async def _send(self, send: Send) -> None:
        request = peer_pb2.GossipRequest(
            cluster_id=self._cluster_id,
            sender=peer_codec.member_to_proto(self._core.local),
            to_node=send.to_node,
            messages=[peer_codec.message_to_proto(send.message)],
            virtual_nodes=self._ring_settings.virtual_nodes,
            replication_factor=self._ring_settings.replication_factor,
        )
        try:
            stub = self._channels.stub(send.address)
            response = await stub.Gossip(request, timeout=_SEND_TIMEOUT_SECONDS)
            sender = peer_codec.member_from_proto(response.sender)
            local = self._core.local.node_id
            self._perform(self._handle_messages(response.cluster_id, sender, local, response.messages))
        except grpc.aio.AioRpcError as error:
            if not send.to_node:
                self._complain(send.address, from_rpc_error(error))
        except CacheServiceError as error:
            self._complain(send.address, error)

    def _complain(self, address: str, error: CacheServiceError) -> None:
        """Notes why somebody at a seed's address is of no use. Bounded by the seeds' addresses."""
        if len(self._complaints) < _MAX_COMPLAINTS:
            self._complaints[address] = error.message


def _log_change(member: Member, before: State | None, reason: str) -> None:
    level = logging.WARNING if member.state in (State.SUSPECT, State.DEAD) else logging.INFO
    _log.log(
        level,
        "member %s at %s: %s -> %s (%s)",
        member.node_id,
        member.address,
        before.name.lower() if before else "unknown",
        member.state.name.lower(),
        reason,
    )

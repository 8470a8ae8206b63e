"""One node, put together from its parts, and its life from the first socket to the last answer."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from cacheservice.address import join_address, split_address
from cacheservice.clock import SystemClock
from cacheservice.config import PEER_SLACK, NamespaceSettings, Replication, Settings
from cacheservice.errors import NodeIdTaken
from cacheservice.http2.server import Server
from cacheservice.membership import Member, Membership, MembershipConfig, Phase
from cacheservice.node.batches import Batches
from cacheservice.node.namespaces import NamespacePolicy, Namespaces
from cacheservice.node.node import Node, NodeConfig
from cacheservice.node.shard import Shard
from cacheservice.node.view import ViewBuilder
from cacheservice.server.admin_service import AdminServicer
from cacheservice.server.admission import Admission
from cacheservice.server.cache_service import CacheServicer
from cacheservice.server.channels import PeerChannels
from cacheservice.server.cluster_scan import ClusterScan
from cacheservice.server.cluster_service import ClusterServicer
from cacheservice.server.decode import Bounds
from cacheservice.server.drained import Drained
from cacheservice.server.exchange import Exchange, requests
from cacheservice.server.gossip import Gossip, RingSettings
from cacheservice.server.health import Health
from cacheservice.server.memory import MemoryKeeper, resident_bytes, settle_allocator, settle_collector
from cacheservice.server.methods import Methods
from cacheservice.server.peer_service import PeerServicer
from cacheservice.server.stop_signals import ignore_stop_signals, on_stop_signal
from cacheservice.server.streams import Streams
from cacheservice.server.supervision import for_ever
from cacheservice.server.transport import GrpcTransport
from cacheservice.server.watches import Watches
from cacheservice.store import PartitionedStore, Store
from cacheservice.v1 import admin_pb2, cache_pb2, cluster_pb2, peer_pb2
from cacheservice.v1.admin_pb2_grpc import add_AdminServiceServicer_to_server
from cacheservice.v1.cache_pb2_grpc import add_CacheServiceServicer_to_server
from cacheservice.v1.cluster_pb2_grpc import add_ClusterServiceServicer_to_server
from cacheservice.v1.peer_pb2_grpc import add_PeerServiceServicer_to_server
from cacheservice.wire import EXCHANGE, PEER_EXCHANGE

_log = logging.getLogger(__name__)

READINESS = "readiness"
LIVENESS = "liveness"

_UPKEEP_PAUSE_SECONDS = 0.05
_FINISH_SECONDS = 5.0
"""For requests under way when the node stops."""

_REFLECTION_V1 = "grpc.reflection.v1.ServerReflection"

_SERVICES = (
    cache_pb2.DESCRIPTOR.services_by_name["CacheService"].full_name,
    cluster_pb2.DESCRIPTOR.services_by_name["ClusterService"].full_name,
    admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name,
    peer_pb2.DESCRIPTOR.services_by_name["PeerService"].full_name,
    health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
    reflection.SERVICE_NAME,
)


class NodeServer:
    """A node and everything that serves it. `start`, `join`, and at any time after that `stop`."""

    def __init__(self, settings: Settings, siblings: Sequence[str] = ()) -> None:
        """`siblings`: addresses of the other nodes on this host that its parent runs."""
        self._settings = settings
        self._siblings = siblings
        self._clock = SystemClock()
        self._health = Health()
        max_message_bytes = settings.max_message_bytes + PEER_SLACK
        self._certificates = settings.certificates()
        self._channels = PeerChannels(max_message_bytes, self._certificates)
        tls = None
        if self._certificates is not None:
            ask_clients = settings.tls_client_auth == "require"
            tls = partial(self._certificates.server_context, ask_clients=ask_clients)
        self._methods, self._health_methods = Methods(), Methods()
        self._server = Server(self._methods.handlers, max_message_bytes, tls)
        self._health_server = Server(self._health_methods.handlers, max_message_bytes)
        self._admission = Admission(settings.max_in_flight)
        self._streams = Streams()
        self._loops: list[asyncio.Task[None]] = []
        self._draining: asyncio.Task[Drained] | None = None
        self._starts: dict[str, int] = {}
        """By address of a member: when its process started, by its own account."""
        self.port = 0
        self.health_port = 0
        self.name_taken: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """The address of a process that was started later and has this node's id."""

    async def start(self) -> str:
        """Binds, and takes part in gossip; the address at which the others reach it.

        OSError when the address cannot be bound.
        """
        settings = self._settings
        clock = self._clock
        address = self._bind()
        local = Member(
            settings.node_id,
            address,
            phase=Phase.JOINING,
            zone=settings.zone,
            weight=settings.weight,
            version=version("cacheservice"),
            epoch=clock.wall_ms(),
            host=settings.host,
        )
        core = Membership(local, MembershipConfig(settings.cluster_id), random.Random(), clock.now_ms())
        self._core = core
        self._transport = GrpcTransport(
            settings.cluster_id,
            settings.node_id,
            self._channels,
            clock,
            lambda: self._node.ring_epoch,
            Bounds(settings.max_value_bytes, settings.replication_factor),
        )
        self._gossip = Gossip(
            core,
            settings.cluster_id,
            RingSettings(settings.vnodes, settings.replication_factor),
            settings.seeds,
            self._siblings,
            self._channels,
            clock,
            self._members_changed,
            self.name_taken.set_result,
        )
        self._views = ViewBuilder(settings.vnodes)
        store = _store(settings, clock.now_ms())
        self._node = Node(
            _node_config(settings),
            Shard(settings.node_id, store, clock, _namespaces(settings), random.Random()),
            clock,
            self._transport,
            self._views.view_of(core.members),
            self._gossip.peer_failed,
            self._settled,
        )
        self._add_servicers()
        self._health.set({"": True, LIVENESS: True, READINESS: False})
        self._server.start()
        self._health_server.start()
        self._gossip.start()
        loops = {
            "store": lambda: self._keep_store(store),
            "catching up": self._node.keep_others_up,
            "handoff": self._node.handoff.run,
        }
        self._loops = [asyncio.create_task(for_ever(name, work)) for name, work in loops.items()]
        return address

    async def join(self) -> None:
        """Waits for another member, or in vain for join_timeout_seconds, and then serves clients."""
        settings = self._settings
        seconds, others = settings.join_timeout_seconds, bool(settings.seeds)
        has_seeds = others or bool(self._siblings)
        if has_seeds and not await self._gossip.joined(seconds, others=others):
            _log.warning("no seed has answered; serving alone until one does%s", self._gossip.complaints())
        self._admission.is_open = True
        await self._gossip.enter()
        self._health.set({READINESS: True})

    def own_process(self) -> None:
        """Takes it that whatever the process occupies is this node's, and keeps that within its memory."""
        settle_collector()
        store = self._node.shard.store
        keeping = for_ever("memory", lambda: self._keep_memory(store))
        self._loops.append(asyncio.create_task(keeping))

    async def drain(self, seconds: float) -> Drained:
        """Hands over what this node holds, for at most so long, and leaves the cluster; answers meanwhile.

        A second call waits for the first.
        """
        if self._draining is None:
            self._draining = asyncio.create_task(self._drain(seconds))
        return await asyncio.shield(self._draining)

    async def stop(self) -> None:
        """Drains, lets requests under way finish, and closes everything."""
        try:
            await self.drain(self._settings.drain_seconds)
        finally:
            self._streams.close()
            self._watches.close()
            self._cluster.close()
            self._server.go_away()
            await asyncio.gather(
                self._methods.finish(_FINISH_SECONDS),
                self._health_methods.finish(0),
                self._streams.finished(_FINISH_SECONDS),
            )
            await asyncio.gather(self._server.close(), self._health_server.close())
            for task in self._loops:
                task.cancel()
            await self._gossip.stop()
            await self._channels.close()

    def _bind(self) -> str:
        settings = self._settings
        try:
            self.port = _bound(self._server, settings.listen)
            if settings.health_listen is not None:
                self.health_port = _bound(self._health_server, settings.health_listen)
        except OSError:
            self._server.go_away()
            raise
        if settings.advertise is not None:
            return settings.advertise
        host, _ = split_address(settings.listen)
        return join_address(host, self.port)

    def _add_servicers(self) -> None:
        settings, node, clock = self._settings, self._node, self._clock
        admission = self._admission
        cluster_scan = ClusterScan(settings.node_id, node, self._transport, settings.max_message_bytes)
        exchange = Exchange(Batches(node), admission, settings, node.standing.ring_epoch)
        self._watches = Watches(settings.node_id, node.events, self._channels, clock)
        server: Any = self._methods
        add_CacheServiceServicer_to_server(
            CacheServicer(node, settings, admission, cluster_scan, self._watches), server
        )
        self._cluster = ClusterServicer(node, self._gossip, settings, admission)
        add_ClusterServiceServicer_to_server(self._cluster, server)
        add_AdminServiceServicer_to_server(
            AdminServicer(node, settings, admission, clock, self.drain), server
        )
        peer = PeerServicer(node, self._gossip, clock, settings, admission, cluster_scan)
        add_PeerServiceServicer_to_server(peer, server)
        _add_reflection(self._methods)
        health_server: Any = self._health_methods
        for serving in (server, health_server):
            health_pb2_grpc.add_HealthServicer_to_server(self._health, serving)
        # Of streams what is ready is answered within the callback in which it came.
        self._methods.handlers[EXCHANGE] = self._streams.handler(
            cache_pb2.ExchangeRequest.FromString, exchange.begin, requests
        )
        self._methods.handlers[PEER_EXCHANGE] = self._streams.handler(
            peer_pb2.PeerServiceExchangeRequest.FromString, peer.requests.begin
        )

    async def _drain(self, seconds: float) -> Drained:
        self._health.set({"": False, READINESS: False})
        await self._gossip.leave(final=False)
        handoff = self._node.handoff
        try:
            async with asyncio.timeout(seconds):
                await handoff.completed()
                await self._node.owner.replay_hints()
        except TimeoutError:
            _log.warning("the time to drain is over")
        drained = Drained(handoff.handed_off, handoff.left_behind())
        await self._gossip.leave(final=True)
        _log.info("handed off %d entries, left %d behind", drained.handed_off, drained.left_behind)
        return drained

    def _settled(self) -> None:
        """The others learn of it after what is being dealt with now."""
        asyncio.get_running_loop().call_soon(self._gossip.settled)

    def _members_changed(self) -> None:
        """Hands the members to routing. Suspicion moves no keys; only joining, leaving and dying do."""
        reachable = [member for member in self._core.members if member.is_reachable]
        addresses = {member.node_id: member.address for member in reachable}
        self._transport.set_addresses(addresses)
        # Who has started anew at its old address is connected to at once, not when gRPC would try again.
        starts = {member.address: member.epoch for member in reachable}
        self._channels.retain({to for to, epoch in starts.items() if self._starts.get(to, epoch) == epoch})
        self._starts = starts
        epoch = self._node.ring_epoch
        view = self._views.view_of(self._core.members)
        if view.ring.epoch != epoch:
            names = ", ".join(member.node_id for member in view.ring.members)
            _log.info("ring %d: %s", view.ring.epoch, names or "nobody")
        self._node.set_view(view)
        ring = {member.node_id for member in view.ring.members} - {self._settings.node_id}
        self._watches.follow({name: address for name, address in addresses.items() if name in ring})
        self._cluster.changed()

    async def _keep_store(self, store: Store | PartitionedStore) -> None:
        while True:
            more = store.upkeep(self._clock.now_ms())
            await asyncio.sleep(0 if more else _UPKEEP_PAUSE_SECONDS)

    async def _keep_memory(self, store: Store | PartitionedStore) -> None:
        memory = MemoryKeeper(store)
        while True:
            memory.check(resident_bytes())
            more = memory.compact()
            await asyncio.sleep(0 if more else _UPKEEP_PAUSE_SECONDS)


async def serve(
    settings: Settings, siblings: Sequence[str] = (), on_start: Callable[[], None] = lambda: None
) -> None:
    """Runs one node until SIGTERM or SIGINT; `on_start` is called once its address is bound."""
    settle_allocator()
    stopped = asyncio.Event()
    on_stop_signal(stopped.set)
    server = NodeServer(settings, siblings)
    address = await server.start()
    on_start()
    server.own_process()
    told_to_stop = asyncio.create_task(stopped.wait())
    joining = asyncio.create_task(server.join())
    await asyncio.wait((told_to_stop, joining, server.name_taken), return_when=asyncio.FIRST_COMPLETED)
    if joining.done():
        await joining
        names = settings.node_id, address, settings.cluster_id
        _log.info("ready node=%s address=%s cluster=%s tls=%s", *names, _tls(settings))
    else:
        joining.cancel()
    await asyncio.wait((told_to_stop, server.name_taken), return_when=asyncio.FIRST_COMPLETED)
    gives_way = server.name_taken.done() and not stopped.is_set()
    told_to_stop.cancel()
    ignore_stop_signals()
    _log.info("stopping")
    await server.stop()
    _log.info("stopped")
    if gives_way:
        raise NodeIdTaken(
            f"a process that was started later, at {server.name_taken.result()}, has the id "
            f"{settings.node_id!r}; node ids must be distinct"
        )


def _tls(settings: Settings) -> str:
    """For the log: whether callers need a certificate, or TLS at all."""
    if settings.tls_cert is None:
        return "off"
    return "required" if settings.tls_client_auth == "require" else "on"


def _add_reflection(methods: Methods) -> None:
    """Serves reflection as v1alpha, which grpcio has, and as v1, whose messages are the same."""
    servicer = reflection.aio.ReflectionServicer(_SERVICES)
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    for service in (reflection.SERVICE_NAME, _REFLECTION_V1):
        methods.add_registered_method_handlers(service, {"ServerReflectionInfo": handler})


def _node_config(settings: Settings) -> NodeConfig:
    return NodeConfig(
        settings.node_id,
        settings.replication_factor,
        settings.min_members,
        replication_timeout_ms=round(settings.replication_timeout_seconds * 1_000),
        forward_timeout_ms=round(settings.forward_timeout_seconds * 1_000),
        handoff_bytes_per_second=settings.handoff_rate,
        most_waiting=settings.max_in_flight // 2,
    )


def _store(settings: Settings, now: int) -> Store | PartitionedStore:
    by_namespace = {
        name: Store(int(settings.max_memory * some.share), some.policy or settings.policy, now=now)
        for name, some in settings.namespaces.items()
        if some.share
    }
    shared = settings.max_memory - sum(store.max_bytes for store in by_namespace.values())
    default = Store(shared, settings.policy, now=now)
    return PartitionedStore(default, by_namespace) if by_namespace else default


def _namespaces(settings: Settings) -> Namespaces:
    names = NamespaceSettings.model_fields.keys() & Settings.model_fields.keys() - {"policy"}
    default = NamespaceSettings.model_construct(**{name: getattr(settings, name) for name in names})
    return Namespaces(
        _policy(default, settings.replication),
        {name: _policy(some, settings.replication) for name, some in settings.namespaces.items()},
    )


def _policy(settings: NamespaceSettings, replication: Replication) -> NamespacePolicy:
    return NamespacePolicy(
        default_ttl_ms=round(settings.default_ttl_seconds * 1_000),
        max_ttl_ms=round(settings.max_ttl_seconds * 1_000),
        ttl_jitter=settings.ttl_jitter,
        stale_ms=round(settings.stale_seconds * 1_000),
        stale_if_error_ms=round(settings.stale_if_error_seconds * 1_000),
        absent_ttl_ms=round(settings.absent_ttl_seconds * 1_000),
        early_refresh=settings.early_refresh,
        lease_ms=round(settings.lease_seconds * 1_000),
        retry_ms=round(settings.retry_seconds * 1_000),
        is_async=(settings.replication or replication) == "async",
    )


def _bound(server: Server, listen: str) -> int:
    """The port. OSError, in the system's words, when the address cannot be bound."""
    try:
        return server.bind(*split_address(listen))
    except (OSError, UnicodeError) as error:
        problem = getattr(error, "strerror", None) or str(error)
        raise OSError(f"cannot listen on {listen}: {problem}") from None

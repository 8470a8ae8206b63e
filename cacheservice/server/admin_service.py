"""AdminService: figures of this node."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from cacheservice.clock import Clock
from cacheservice.config import Settings
from cacheservice.errors import ClusterIdMismatch
from cacheservice.node.fences import Kind
from cacheservice.node.node import Node
from cacheservice.server import decode
from cacheservice.server.admission import Admission
from cacheservice.server.drained import Drained
from cacheservice.server.guard import Context, not_yet, time_left_ms
from cacheservice.store import FACTORS, Store
from cacheservice.v1 import admin_pb2 as pb
from cacheservice.v1.admin_pb2_grpc import AdminServiceServicer

NAMESPACES_TOLD = 100


class AdminServicer(AdminServiceServicer):
    def __init__(
        self,
        node: Node,
        settings: Settings,
        admission: Admission,
        clock: Clock,
        drain: Callable[[float], Awaitable[Drained]],
    ) -> None:
        self._settings = settings
        self._drain = drain
        self._node = node
        self._admission = admission
        self._clock = clock
        self._started = clock.now_ms()

    async def Stats(self, request: pb.StatsRequest, context: Context) -> pb.StatsResponse:
        parts = self._node.shard.store.parts
        stores = list(parts.values())
        usage = await self._node.sweeps.usage(NAMESPACES_TOLD)
        leases = self._node.shard.leases.stats
        return pb.StatsResponse(
            node_id=self._settings.node_id,
            uptime_seconds=(self._clock.now_ms() - self._started) / 1_000,
            entries=sum(map(len, stores)),
            bytes=sum(store.bytes for store in stores),
            max_bytes=sum(store.max_bytes for store in stores),
            policy=parts[""].policy,
            hits=sum(store.stats.hits for store in stores),
            misses=sum(store.stats.misses for store in stores),
            sets=sum(store.stats.sets for store in stores),
            deletes=sum(store.stats.deletes for store in stores),
            evictions=sum(store.stats.evictions for store in stores),
            expirations=sum(store.stats.expirations for store in stores),
            forwarded=self._node.stats.forwarded,
            failovers=self._node.stats.failovers,
            replication_failures=self._node.owner.replicator.failures,
            refused=self._admission.refused,
            tombstones=self._node.shard.tombstones,
            hints=len(self._node.owner.replicator.hints),
            handed_off=self._node.handoff.handed_off,
            too_far_ahead=self._node.shard.too_far_ahead,
            leases_granted=leases.granted,
            early_refreshes=leases.early,
            fills_refused=leases.refused,
            loads_failed=leases.failed,
            waiting=self._node.fill_waits.waiting,
            let_go=self._node.handoff.let_go,
            left_to_hand_off=self._node.handoff.left_behind(),
            parts=[_part(namespace, store) for namespace, store in parts.items()],
            namespaces=[
                pb.NamespaceUsage(namespace=namespace, entries=entries, bytes=size)
                for namespace, (entries, size) in usage.items()
            ],
            ring_epoch=self._node.ring_epoch,
        )

    async def Drain(self, request: pb.DrainRequest, context: Context) -> pb.DrainResponse:
        drained = await self._drain(decode.drain_seconds(request) or self._settings.drain_seconds)
        return pb.DrainResponse(
            handed_off=drained.handed_off,
            left_behind=drained.left_behind,
            ring_epoch=self._node.ring_epoch,
        )

    async def Flush(self, request: pb.FlushRequest, context: Context) -> pb.FlushResponse:
        if request.cluster_id != self._settings.cluster_id:
            raise ClusterIdMismatch.of(self._settings.cluster_id, request.cluster_id)
        with self._admission:
            timeout_ms = time_left_ms(context, round(self._settings.default_timeout_seconds * 1_000))
            done = await self._node.invalidations.invalidate(Kind.PREFIX, "", timeout_ms)
        return pb.FlushResponse(
            removed=done.removed, unreachable=done.unreachable, ring_epoch=self._node.ring_epoch
        )

    async def HotKeys(self, request: pb.HotKeysRequest, context: Context) -> pb.HotKeysResponse:
        limit = decode.hot_keys_limit(request)
        return pb.HotKeysResponse(
            keys=[
                pb.HotKey(key=key, operations_per_second=rate)
                for key, rate in self._node.shard.hot.top(limit, self._clock.now_ms())
            ],
            ring_epoch=self._node.ring_epoch,
        )

    Snapshot = not_yet("Snapshot")


def _part(namespace: str, store: Store) -> pb.StorePart:
    stats = store.stats
    hit_ratio = stats.hits / stats.reads if stats.reads else 0.0
    return pb.StorePart(
        namespace=namespace,
        policy=store.policy,
        entries=len(store),
        bytes=store.bytes,
        max_bytes=store.max_bytes,
        limit_bytes=store.limit,
        hits=stats.hits,
        misses=stats.misses,
        sets=stats.sets,
        deletes=stats.deletes,
        evictions=stats.evictions,
        expired_on_access=stats.expired_on_access,
        expired_unseen=stats.expired_unseen,
        invalidated=stats.invalidated,
        estimates=[
            pb.MemoryEstimate(factor=factor, hit_ratio=store.curve.estimate(factor, hit_ratio))
            for factor in FACTORS
            if factor != 1 and stats.reads
        ],
    )

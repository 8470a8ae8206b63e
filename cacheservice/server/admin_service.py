"""AdminService: figures of this node."""

from __future__ import annotations

from cacheservice.clock import Clock
from cacheservice.node.node import Node
from cacheservice.node.sweeps import Sweeps
from cacheservice.server.guard import Admission, Context, guarded, not_yet
from cacheservice.store import FACTORS, Store
from cacheservice.v1 import admin_pb2 as pb
from cacheservice.v1.admin_pb2_grpc import AdminServiceServicer

NAMESPACES_TOLD = 100


class AdminServicer(AdminServiceServicer):
    def __init__(self, node_id: str, node: Node, sweeps: Sweeps, admission: Admission, clock: Clock) -> None:
        self._node_id = node_id
        self._node = node
        self._admission = admission
        self._clock = clock
        self._sweeps = sweeps
        self._started = clock.now_ms()

    @guarded
    async def Stats(self, request: pb.StatsRequest, context: Context) -> pb.StatsResponse:
        parts = self._node.shard.store.parts
        stores = list(parts.values())
        usage = await self._sweeps.usage(NAMESPACES_TOLD)
        return pb.StatsResponse(
            node_id=self._node_id,
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
            replication_failures=self._node.replication_failures,
            refused=self._admission.refused,
            tombstones=self._node.shard.tombstones,
            hints=self._node.hints,
            parts=[_part(namespace, store) for namespace, store in parts.items()],
            namespaces=[
                pb.NamespaceUsage(namespace=namespace, entries=entries, bytes=size)
                for namespace, (entries, size) in usage.items()
            ],
            ring_epoch=self._node.ring_epoch,
        )

    Drain = not_yet("Drain")
    HotKeys = not_yet("HotKeys")
    Snapshot = not_yet("Snapshot")
    Flush = not_yet("Flush")


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

"""AdminService: figures of this node."""

from __future__ import annotations

from cacheservice.clock import Clock
from cacheservice.node.node import Node
from cacheservice.server.guard import Admission, Context, not_yet, unary
from cacheservice.v1 import admin_pb2 as pb
from cacheservice.v1.admin_pb2_grpc import AdminServiceServicer


class AdminServicer(AdminServiceServicer):
    def __init__(self, node_id: str, node: Node, admission: Admission, clock: Clock) -> None:
        self._node_id = node_id
        self._node = node
        self._admission = admission
        self._clock = clock
        self._started = clock.now_ms()

    @unary
    async def Stats(self, request: pb.StatsRequest, context: Context) -> pb.StatsResponse:
        store = self._node.shard.store
        return pb.StatsResponse(
            node_id=self._node_id,
            uptime_seconds=(self._clock.now_ms() - self._started) / 1_000,
            entries=len(store),
            bytes=store.bytes,
            max_bytes=store.max_bytes,
            policy=store.policy,
            hits=store.stats.hits,
            misses=store.stats.misses,
            sets=store.stats.sets,
            deletes=store.stats.deletes,
            evictions=store.stats.evictions,
            expirations=store.stats.expirations,
            forwarded=self._node.stats.forwarded,
            failovers=self._node.stats.failovers,
            replication_failures=self._node.replication_failures,
            refused=self._admission.refused,
            tombstones=self._node.shard.tombstones,
            hints=self._node.hints,
            ring_epoch=self._node.ring_epoch,
        )

    Drain = not_yet("Drain")
    HotKeys = not_yet("HotKeys")
    Snapshot = not_yet("Snapshot")
    Flush = not_yet("Flush")

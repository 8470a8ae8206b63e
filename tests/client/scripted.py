"""Nodes that the tests play."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc

from cacheservice.errors import CacheServiceError
from cacheservice.ring import Ring, RingMember
from cacheservice.v1 import cache_pb2 as pb
from cacheservice.v1 import cluster_pb2
from cacheservice.v1.cache_pb2_grpc import CacheServiceServicer
from cacheservice.v1.cluster_pb2_grpc import ClusterServiceServicer

Answer = pb.ExchangeResponse | list[pb.ExchangeResponse] | CacheServiceError | None
Script = Callable[[pb.ExchangeRequest], Answer]


class ScriptedNode(CacheServiceServicer):
    """Answers each batch as its script says: with a response, with several, which have their batch_id, with
    nothing, or by ending the stream; and not before it may."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.requests: list[pb.ExchangeRequest] = []
        self.released: list[tuple[str, bytes]] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.streams = 0
        """That are open."""

    async def Exchange(self, requests: Any, context: Any) -> None:  # type: ignore[override]  # noqa: N802
        await context.send_initial_metadata(())
        self.streams += 1
        try:
            async for request in requests:
                self.requests.append(request)
                await self.may_answer.wait()
                answer = self.script(request)
                if isinstance(answer, CacheServiceError):
                    await context.abort(grpc.StatusCode.UNAVAILABLE, answer.message)
                elif isinstance(answer, list):
                    for each in answer:
                        await context.write(each)
                elif answer is not None:
                    answer.batch_id = request.batch_id
                    await context.write(answer)
        finally:
            self.streams -= 1

    async def ReleaseLease(self, request: Any, context: Any) -> pb.ReleaseLeaseResponse:  # noqa: N802
        self.released.append((request.key, request.lease_token))
        return pb.ReleaseLeaseResponse()


class Teller(ClusterServiceServicer):
    """Tells clients of a cluster: of members by address, each with its state."""

    def __init__(self) -> None:
        self._states: dict[str, cluster_pb2.MemberState.ValueType] = {}
        self._changed = asyncio.Event()

    def tell(self, states: dict[str, cluster_pb2.MemberState.ValueType]) -> None:
        self._states = states
        self._changed.set()

    async def Describe(self, request: Any, context: Any) -> cluster_pb2.DescribeResponse:  # noqa: N802
        return cluster_pb2.DescribeResponse(topology=self.topology())

    async def WatchTopology(self, request: Any, context: Any) -> None:  # type: ignore[override]  # noqa: N802
        while True:
            self._changed.clear()
            await context.write(cluster_pb2.WatchTopologyResponse(topology=self.topology()))
            await self._changed.wait()

    def topology(self) -> cluster_pb2.Topology:
        alive = [name for name, state in self._states.items() if state == cluster_pb2.MEMBER_STATE_ALIVE]
        ring = Ring(RingMember(name) for name in alive)
        members = [
            cluster_pb2.Member(
                node_id=name,
                address=name,
                weight=1,
                state=state,
                phase=cluster_pb2.MEMBER_PHASE_SERVING,
            )
            for name, state in self._states.items()
        ]
        return cluster_pb2.Topology(
            members=members,
            ring_epoch=ring.epoch,
            virtual_nodes=ring.virtual_nodes,
            replication_factor=1,
        )

"""ClusterService: the cluster as this node sees it."""

from __future__ import annotations

import asyncio

from cacheservice.config import Settings
from cacheservice.errors import NotReady
from cacheservice.node.node import Node
from cacheservice.server import gossip_codec
from cacheservice.server.admission import Admission
from cacheservice.server.gossip import Gossip
from cacheservice.server.guard import Context
from cacheservice.v1 import cluster_pb2 as pb
from cacheservice.v1.cluster_pb2_grpc import ClusterServiceServicer


class ClusterServicer(ClusterServiceServicer):
    """`changed` is to be called after every change of the view, and `close` before the node stops."""

    def __init__(self, node: Node, gossip: Gossip, settings: Settings, admission: Admission) -> None:
        self._admission = admission
        self._node = node
        self._gossip = gossip
        self._settings = settings
        self._watchers: set[asyncio.Event] = set()
        self._closed = False

    def changed(self) -> None:
        for watcher in self._watchers:
            watcher.set()

    def close(self) -> None:
        self._closed = True
        self.changed()

    async def Describe(self, request: pb.DescribeRequest, context: Context) -> pb.DescribeResponse:
        return pb.DescribeResponse(topology=self._topology(), ring_epoch=self._node.ring_epoch)

    async def WatchTopology(self, request: pb.WatchTopologyRequest, context: Context) -> None:  # type: ignore[override]
        """Changes that come while one is being sent are sent as one."""
        self._admission.check_open()
        watcher = asyncio.Event()
        self._watchers.add(watcher)
        sent = None
        try:
            while not self._closed:
                watcher.clear()
                topology = self._topology()
                if topology != sent:
                    sent = topology
                    await context.write(
                        pb.WatchTopologyResponse(topology=topology, ring_epoch=self._node.ring_epoch)
                    )
                else:
                    await watcher.wait()
        finally:
            self._watchers.discard(watcher)
        raise NotReady("this node is about to stop")

    def _topology(self) -> pb.Topology:
        return pb.Topology(
            cluster_id=self._settings.cluster_id,
            ring_epoch=self._node.ring_epoch,
            node_id=self._settings.node_id,
            virtual_nodes=self._settings.vnodes,
            replication_factor=self._settings.replication_factor,
            members=[
                gossip_codec.member_to_proto(member, self._gossip.reason(member.node_id))
                for member in self._gossip.members
            ],
        )

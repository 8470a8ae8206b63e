"""ClusterService: the cluster as this node sees it."""

from __future__ import annotations

from cacheservice.config import Settings
from cacheservice.errors import NotReady
from cacheservice.node.node import Node
from cacheservice.server import gossip_codec
from cacheservice.server.admission import Admission
from cacheservice.server.changes import Changes
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
        self._changes = Changes()
        self.changed = self._changes.changed
        self.close = self._changes.close

    async def Describe(self, request: pb.DescribeRequest, context: Context) -> pb.DescribeResponse:
        return pb.DescribeResponse(topology=self._topology(), ring_epoch=self._node.ring_epoch)

    async def WatchTopology(self, request: pb.WatchTopologyRequest, context: Context) -> None:  # type: ignore[override]
        self._admission.check_open()

        async def send(topology: pb.Topology) -> None:
            await context.write(pb.WatchTopologyResponse(topology=topology, ring_epoch=self._node.ring_epoch))

        await self._changes.tell(self._topology, send)
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

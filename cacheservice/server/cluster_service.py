"""ClusterService: the cluster as this node sees it."""

from __future__ import annotations

from cacheservice.config import Settings
from cacheservice.node.node import Node
from cacheservice.server import peer_codec
from cacheservice.server.gossip import Gossip
from cacheservice.server.guard import Context, not_yet_streaming, unary
from cacheservice.v1 import cluster_pb2 as pb
from cacheservice.v1.cluster_pb2_grpc import ClusterServiceServicer


class ClusterServicer(ClusterServiceServicer):
    def __init__(self, node: Node, gossip: Gossip, settings: Settings) -> None:
        self._node = node
        self._gossip = gossip
        self._settings = settings

    @unary
    async def Describe(self, request: pb.DescribeRequest, context: Context) -> pb.DescribeResponse:
        topology = pb.Topology(
            cluster_id=self._settings.cluster_id,
            ring_epoch=self._node.ring_epoch,
            node_id=self._settings.node_id,
            virtual_nodes=self._settings.vnodes,
            replication_factor=self._settings.replication_factor,
            members=map(peer_codec.member_to_proto, self._gossip.members),
        )
        return pb.DescribeResponse(topology=topology, ring_epoch=self._node.ring_epoch)

    WatchTopology = not_yet_streaming("WatchTopology")

"""What heads each request to a peer: who asks whom, in which cluster, and with which ring."""

from __future__ import annotations

from collections.abc import Callable

from cacheservice.v1 import peer_pb2


class PeerHeaders:
    """Those of one node."""

    def __init__(self, cluster_id: str, node_id: str, ring_epoch: Callable[[], int]) -> None:
        self._cluster_id = cluster_id
        self._node_id = node_id
        self._ring_epoch = ring_epoch

    def to(self, node_id: str) -> peer_pb2.PeerHeader:
        header = peer_pb2.PeerHeader()
        self.fill(header, node_id)
        return header

    def fill(self, header: peer_pb2.PeerHeader, node_id: str) -> None:
        """As `to`, in its place in a request: protobuf copies what is put there later."""
        header.cluster_id = self._cluster_id
        header.from_node = self._node_id
        header.to_node = node_id
        header.ring_epoch = self._ring_epoch()

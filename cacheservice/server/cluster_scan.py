"""Scan over all nodes: one after the other, each lists what it is the first to own."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from cacheservice.errors import InvalidArgument
from cacheservice.node.node import Node
from cacheservice.node.sweeps import Limits
from cacheservice.node.transport import PeerUnreachable
from cacheservice.server import decode, encode
from cacheservice.server.transport import GrpcTransport
from cacheservice.v1 import cache_pb2 as pb

_TOKEN = re.compile(r"([A-Za-z0-9._-]{1,253}):([0-9a-f-]*):((?:[A-Za-z0-9._-]{1,253},?)*)")
TIMEOUT_MS = 2_000


@dataclass(frozen=True, slots=True)
class _Cursor:
    """Where the next page begins: at which node, where there, and who could not be reached before."""

    node_id: str
    token: str
    skipped: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.node_id}:{self.token}:{','.join(self.skipped)}"

    @classmethod
    def parse(cls, text: str) -> _Cursor:
        if not text:
            return cls("", "", ())
        match = _TOKEN.fullmatch(text)
        if not match:
            raise InvalidArgument.of("page_token", "empty or a next_page_token", repr(text[:64]))
        return cls(match[1], match[2], tuple(filter(None, match[3].split(","))))


class ClusterScan:
    """Pages of all entries, and those of this node alone for others who ask on behalf of their callers.

    A node that gives no answer is passed over, and from there on its entries are listed by the next of
    their owners.
    """

    def __init__(self, node_id: str, node: Node, transport: GrpcTransport, max_answer_bytes: int) -> None:
        self._node_id = node_id
        self._node = node
        self._transport = transport
        self._max_bytes = max_answer_bytes // 2

    async def page(self, request: pb.ScanRequest) -> pb.ScanResponse:
        cursor = _Cursor.parse(request.page_token)
        skipped = list(cursor.skipped)
        names = [member.node_id for member in self._node.ring.members if member.node_id >= cursor.node_id]
        response = pb.ScanResponse()
        while names and not response.entries:
            asked = names[0]
            wanted = pb.ScanRequest()
            wanted.CopyFrom(request)
            wanted.page_token = cursor.token if asked == cursor.node_id else ""
            try:
                response = await self._ask(asked, wanted, skipped)
            except PeerUnreachable:
                skipped.append(asked)
            if response.next_page_token:
                cursor = _Cursor(asked, response.next_page_token, tuple(skipped))
                break
            names.pop(0)
            cursor = _Cursor(names[0] if names else "", "", tuple(skipped))
        response.next_page_token = str(cursor) if names else ""
        response.unreachable[:] = skipped
        response.ring_epoch = self._node.ring_epoch
        return response

    async def page_here(self, request: pb.ScanRequest, skipped: Collection[str]) -> pb.ScanResponse:
        """A page of those entries that this node is the first to own, but for the nodes `skipped`."""
        scan = decode.scan(request)
        limits = Limits(scan.page_size, self._max_bytes, request.include_values)
        page = await self._node.sweeps.scan(
            scan.prefix, scan.start, limits, lambda key: self._node.answers_for(key, skipped)
        )
        return encode.page(page, self._node.ring_epoch, with_values=request.include_values)

    async def _ask(self, node_id: str, request: pb.ScanRequest, skipped: Collection[str]) -> pb.ScanResponse:
        if node_id == self._node_id:
            return await self.page_here(request, skipped)
        return await self._transport.scan(node_id, request, skipped, timeout_ms=TIMEOUT_MS)

"""Batches that other nodes send to the owner of all their keys."""

from __future__ import annotations

from cacheservice.config import Settings
from cacheservice.errors import CacheServiceError, InvalidArgument, WrongOwner
from cacheservice.node.columns import Errors, rows_of
from cacheservice.node.later import Soon, then
from cacheservice.node.own_batches import OwnBatches
from cacheservice.server import column_codec as codec
from cacheservice.server.decode import Bounds
from cacheservice.v1 import cache_pb2 as pb
from cacheservice.wire import to_status


class OwnedBatches:
    """Does what is asked for only if it is all this node's own."""

    def __init__(self, batches: OwnBatches, settings: Settings) -> None:
        self._batches = batches
        self._bounds = Bounds(settings.max_value_bytes, settings.replication_factor)
        self._max_answer_bytes = int(settings.max_message_bytes)

    def begin(self, batch: pb.ExchangeRequest, timeout_ms: int) -> Soon[pb.ExchangeResponse]:
        """The response; refused unless this node is sure of the keys."""
        match batch.WhichOneof("batch"):
            case "get":
                keys = codec.keys(batch.get.keys)
                _check(keys.refused)
                reads = self._batches.get(keys.keys, values_only=batch.get.values_only)
                if reads is None:
                    return _wrong_owner()
                return codec.reads(reads, self._max_answer_bytes)
            case "set":
                entries = codec.entries(batch.set, self._bounds)
                _check(entries.refused)
                rows = rows_of(entries.keys, entries.values, entries.ttl_ms, entries.stale_ms)
                writes = self._batches.set(rows, timeout_ms)
                if writes is None:
                    return _wrong_owner()
                return then(writes, codec.writes)
            case _:
                raise InvalidArgument.of("batch", "a get or a set", "neither")


def _check(refused: Errors) -> None:
    """Raises the first error."""
    error: CacheServiceError
    for error in refused.values():
        raise error


def _wrong_owner() -> pb.ExchangeResponse:
    return pb.ExchangeResponse(
        refused=to_status(WrongOwner("this node is not sure to own all of these keys"))
    )

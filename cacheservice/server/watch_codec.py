"""News of a node between its store's events and the messages of Watch."""

from __future__ import annotations

from collections.abc import Sequence

from cacheservice.errors import InvalidArgument
from cacheservice.node.events import Changed, Lost, News
from cacheservice.node.fences import Kind
from cacheservice.server.decode import key_
from cacheservice.v1 import cache_pb2 as pb

MAX_PREFIXES = 100


def prefixes(request: pb.WatchRequest) -> Sequence[str]:
    """The prefixes to watch, checked."""
    if len(request.prefixes) > MAX_PREFIXES:
        raise InvalidArgument.of("prefixes", f"at most {MAX_PREFIXES}", str(len(request.prefixes)))
    return [key_(prefix, f"prefixes[{index}]") for index, prefix in enumerate(request.prefixes)]


def to_proto(news: News, sequence: int) -> pb.WatchResponse:
    message = pb.WatchResponse(
        node=news.node_id, sequence=sequence, moment_ms=news.at_ms, ring_epoch=news.ring_epoch
    )
    match news.what:
        case None:
            message.heartbeat.SetInParent()
        case Lost(count):
            message.gap.SetInParent()
            message.gap.lost = count
        case Changed(kind, name, version):
            message.invalidation.version = version
            match kind:
                case None:
                    message.invalidation.key = name
                case Kind.TAG:
                    message.invalidation.tag = name
                case Kind.PREFIX:
                    message.invalidation.prefix = name
    return message


def what_of(message: pb.WatchResponse) -> Changed | Lost | None:
    """What the message tells; None for a heartbeat."""
    match message.WhichOneof("event"):
        case "gap":
            return Lost(message.gap.lost)
        case "invalidation":
            invalidation = message.invalidation
            match invalidation.WhichOneof("target"):
                case "tag":
                    return Changed(Kind.TAG, invalidation.tag, invalidation.version)
                case "prefix":
                    return Changed(Kind.PREFIX, invalidation.prefix, invalidation.version)
                case _:
                    return Changed(None, invalidation.key, invalidation.version)
        case _:
            return None

"""cacheservice: a self-hosted gRPC cache cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cacheservice.client import (
        Client,
        Codec,
        JsonCodec,
        MsgspecCodec,
        NearCache,
        PickleCodec,
        SyncClient,
        Tls,
    )

__all__ = ["Client", "Codec", "JsonCodec", "MsgspecCodec", "NearCache", "PickleCodec", "SyncClient", "Tls"]


def __getattr__(name: str) -> Any:
    """Imports the client at its first use, so that a node's logic can be imported without gRPC."""
    if name in __all__:
        from cacheservice import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

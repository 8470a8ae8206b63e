"""cacheservice: a self-hosted gRPC cache cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cacheservice.client import Client

__all__ = ["Client"]


def __getattr__(name: str) -> Any:
    """Imports the client at its first use, so that a node's logic can be imported without gRPC."""
    if name == "Client":
        from cacheservice.client import Client

        return Client
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

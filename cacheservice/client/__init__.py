"""The client for Python applications."""

from cacheservice.certificates import Tls
from cacheservice.client.client import Client
from cacheservice.client.codecs import Codec, JsonCodec, MsgspecCodec, PickleCodec
from cacheservice.client.near_cache import NearCache
from cacheservice.client.results import EntryInfo, Invalidated, Lookup, Outcome, SetResult
from cacheservice.client.scan import Scan, SyncScan
from cacheservice.client.sync_client import SyncClient

__all__ = [
    "Client",
    "Codec",
    "EntryInfo",
    "Invalidated",
    "JsonCodec",
    "Lookup",
    "MsgspecCodec",
    "NearCache",
    "Outcome",
    "PickleCodec",
    "Scan",
    "SetResult",
    "SyncClient",
    "SyncScan",
    "Tls",
]

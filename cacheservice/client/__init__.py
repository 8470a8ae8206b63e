"""The client for Python applications."""

from cacheservice.client.client import Client
from cacheservice.client.results import EntryInfo, Invalidated, Lookup, Outcome, SetResult
from cacheservice.client.scan import Scan, SyncScan
from cacheservice.client.sync_client import SyncClient

__all__ = [
    "Client",
    "EntryInfo",
    "Invalidated",
    "Lookup",
    "Outcome",
    "Scan",
    "SetResult",
    "SyncClient",
    "SyncScan",
]

"""The client for Python applications."""

from cacheservice.client.client import Client
from cacheservice.client.results import Lookup, Outcome, SetResult
from cacheservice.client.sync_client import SyncClient

__all__ = ["Client", "Lookup", "Outcome", "SetResult", "SyncClient"]

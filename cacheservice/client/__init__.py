"""The client for Python applications."""

from cacheservice.client.client import Client
from cacheservice.client.results import Lookup, Outcome, SetResult

__all__ = ["Client", "Lookup", "Outcome", "SetResult"]

"""cacheservice: a self-hosted gRPC cache cluster."""

from importlib.metadata import version

from cacheservice.client import Client

__version__ = version("cacheservice")

__all__ = ["Client", "__version__"]

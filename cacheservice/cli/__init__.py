"""The command line."""

import os

# gRPC reads these when it is first imported. Its core reports every lost connection on stderr, which in a
# cluster is no news; and the command line never forks.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

"""How a server tells callers of a stream where to call it at less cost: a port for streams alone.

In the manner of Alt-Svc (RFC 7838), but for one process: a caller who finds another one at that port, as it
may behind a load balancer, is refused by the token, and stays where it is.
"""

from __future__ import annotations

from typing import NamedTuple

OFFER = "cacheservice-streams"
"""In the first headers of an answer: the port and the token."""
TOKEN = "cacheservice-token"
"""In the headers of a call at that port."""


class Alternative(NamedTuple):
    """Where a process serves its streams, at the address at which it was called."""

    port: int
    token: str

    def offer(self) -> tuple[str, str]:
        """The header that tells of it."""
        return (OFFER, f"{self.port} {self.token}")


def offered(headers: dict[str, str]) -> Alternative | None:
    """What the headers offer, if anything."""
    port, _, token = headers.get(OFFER, "").partition(" ")
    is_port = port.isascii() and port.isdigit() and 0 < int(port) <= 65_535
    return Alternative(int(port), token) if is_port and token else None

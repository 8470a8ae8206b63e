"""What nodes missed, told to them once they can be reached again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from cacheservice.node.hints import Hints
from cacheservice.node.operations import Change
from cacheservice.node.peers import Peers
from cacheservice.node.transport import PeerUnreachable, Transport

HINTS_AT_A_TIME = 500


async def replay(
    node_id: str,
    hints: Hints,
    change_of: Callable[[str], Change | None],
    transport: Transport,
    peers: Peers,
    timeout_ms: int,
) -> None:
    """Sends the node what it missed, as `change_of` a key has it now, until it gives no answer."""
    while keys := hints.take(node_id, HINTS_AT_A_TIME):
        changes = [change for change in map(change_of, keys) if change is not None]
        try:
            if changes:
                await transport.replicate(node_id, changes, timeout_ms=timeout_ms)
        except (PeerUnreachable, asyncio.CancelledError) as failure:
            for key in keys:
                hints.add(node_id, key)
            if isinstance(failure, asyncio.CancelledError):
                raise
            peers.failed(failure, timeout_ms)
            return
        peers.answered(node_id)

"""What all nodes of a cluster have to say."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import grpc

from cacheservice.cli.connecting import open_client
from cacheservice.cli.output import fail, split_targets
from cacheservice.client.channel import NodeStubs
from cacheservice.client.placement import is_in_ring
from cacheservice.wire import from_rpc_error

Answer = TypeVar("Answer")


async def ask_all(
    target: str, ask: Callable[[NodeStubs], Awaitable[Answer]]
) -> tuple[dict[str, Answer], dict[str, str]]:
    """The answers by node, and the nodes that gave none, with the reason. Ends the process when none does."""
    async with open_client(split_targets(target)) as client:
        topology = await client.nodes.topology()
        asked = list(filter(is_in_ring, topology.members))
        answers = await asyncio.gather(
            *(ask(client.nodes.at(member.address)) for member in asked), return_exceptions=True
        )
    found: dict[str, Answer] = {}
    silent: dict[str, str] = {}
    for member, answer in zip(asked, answers, strict=True):
        if isinstance(answer, grpc.aio.AioRpcError):
            silent[member.node_id] = str(from_rpc_error(answer))
        elif isinstance(answer, BaseException):
            raise answer
        else:
            found[member.node_id] = answer
    if not found:
        fail("no member answered: " + "; ".join(silent.values()))
    return found, silent

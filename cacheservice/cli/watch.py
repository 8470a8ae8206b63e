"""watch: what changes in the cluster, as it happens."""

from __future__ import annotations

import asyncio
import json as jsonlib
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Annotated, Any

import grpc
import typer

from cacheservice.cli.connecting import open_client
from cacheservice.cli.output import DEFAULT_TARGET, Json, Target, run, split_targets
from cacheservice.v1.cache_pb2 import Gap, WatchRequest, WatchResponse
from cacheservice.wire import from_rpc_error

_RETRY_SECONDS = 1.0
_REFUSED = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED)


def watch(
    prefixes: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PREFIX]...", help="What the keys begin with; all by default."),
    ] = None,
    target: Target = DEFAULT_TARGET,
    json: Json = False,
) -> None:
    """Print writes, removals and invalidations on all nodes, one a line and node, until Ctrl-C."""

    async def work() -> None:
        async for message in _messages(split_targets(target), prefixes or []):
            if not message.HasField("heartbeat"):
                _show(message, json)

    try:
        run(work())
    except KeyboardInterrupt:
        raise typer.Exit from None


async def _messages(targets: Sequence[str], prefixes: Sequence[str]) -> AsyncIterator[WatchResponse]:
    """Of one node, then of the next, for ever. An error when none answers at first, or one refuses."""
    async with open_client(targets) as client:
        has_begun = False
        while True:
            for address in targets:
                try:
                    async for message in client.nodes.at(address).cache.Watch(
                        WatchRequest(prefixes=prefixes)
                    ):
                        has_begun = True
                        yield message
                except grpc.aio.AioRpcError as error:
                    if error.code() in _REFUSED or (address == targets[-1] and not has_begun):
                        raise from_rpc_error(error) from None
                if has_begun:
                    yield WatchResponse(gap=Gap())
            await asyncio.sleep(_RETRY_SECONDS)


def _show(message: WatchResponse, json: bool) -> None:
    time = datetime.now().astimezone()
    event = _as_dict(message)
    if json:
        print(jsonlib.dumps({"time": time.isoformat(), **event}, ensure_ascii=False), flush=True)
        return
    moment = time.strftime("%H:%M:%S.%f")[:-3]
    node = message.node or "all nodes"
    if message.HasField("gap"):
        lost = f"{message.gap.lost} events are missing" if message.gap.lost else "events may be missing"
        print(f"{moment} {node}: {lost}", flush=True)
    else:
        what, name = event["kind"], event["name"]
        shown = name if name.isprintable() else jsonlib.dumps(name, ensure_ascii=False)
        print(f"{moment} {node}: {what} {shown} version {event['version']}", flush=True)


def _as_dict(message: WatchResponse) -> dict[str, Any]:
    if message.HasField("gap"):
        return {"node": message.node, "kind": "gap", "lost": message.gap.lost}
    kind = message.invalidation.WhichOneof("target") or ""
    return {
        "node": message.node,
        "kind": kind,
        "name": getattr(message.invalidation, kind, ""),
        "version": str(message.invalidation.version),
    }

"""drain: have a node leave."""

from __future__ import annotations

from typing import Annotated

import grpc
import typer

from cacheservice.cli.connecting import open_client
from cacheservice.cli.output import (
    DEFAULT_TARGET,
    Json,
    counted,
    fail,
    print_json,
    run,
    split_targets,
)
from cacheservice.v1.admin_pb2 import DrainRequest, DrainResponse
from cacheservice.wire import from_rpc_error


def drain(
    deadline: Annotated[
        float,
        typer.Option("--deadline", help="Seconds that it may take at most; 0 for the node's drain_seconds."),
    ] = 0,
    target: Annotated[
        str, typer.Option("--target", envvar="CACHESERVICE_TARGET", help="HOST:PORT of the node.")
    ] = DEFAULT_TARGET,
    json: Json = False,
) -> None:
    """Have one node hand over what it holds, and leave the cluster. Its process then waits to be stopped."""
    addresses = split_targets(target)
    if len(addresses) != 1:
        fail("--target: drain is for one node", code=2)

    async def work() -> DrainResponse:
        async with open_client(addresses) as client:
            try:
                return await client.nodes.at(addresses[0]).admin.Drain(
                    DrainRequest(deadline_seconds=deadline)
                )
            except grpc.aio.AioRpcError as error:
                raise from_rpc_error(error) from None

    done = run(work())
    if json:
        print_json({"handed_off": done.handed_off, "left_behind": done.left_behind})
    else:
        entries = counted(done.handed_off, "entry", "entries")
        print(f"handed off {entries}, left {done.left_behind} behind")

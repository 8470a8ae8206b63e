"""members: who is in the cluster, and what becomes of them."""

from __future__ import annotations

import asyncio
import json as jsonlib
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated, Any

import grpc
import typer

from cacheservice.cli.connecting import open_client
from cacheservice.cli.output import (
    DEFAULT_TARGET,
    Json,
    Target,
    print_json,
    print_table,
    run,
    split_targets,
)
from cacheservice.client.placement import is_in_ring
from cacheservice.v1.cluster_pb2 import Member, MemberState, Topology, WatchTopologyRequest

_COLUMNS = ("node_id", "address", "state", "zone", "host", "weight", "version", "reason")
_STATE_PREFIX = "MEMBER_STATE_"
_RETRY_SECONDS = 1.0


def members(
    target: Target = DEFAULT_TARGET,
    json: Json = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Go on, and print every change, until Ctrl-C.")
    ] = False,
) -> None:
    """List the members of the cluster, as one node sees them, and why it believes that."""
    if watch:
        try:
            run(_watch(split_targets(target), json))
        except KeyboardInterrupt:
            raise typer.Exit from None
    else:
        _show(run(topology_of(target)), json)


async def topology_of(target: str) -> Topology:
    """The cluster as some node sees it."""
    async with open_client(split_targets(target)) as client:
        return await client.nodes.topology()


def state_of(member: Member) -> str:
    return MemberState.Name(member.state).removeprefix(_STATE_PREFIX).lower()


def _show(topology: Topology, json: bool) -> None:
    found = list(map(_as_dict, topology.members))
    if json:
        print_json(
            {
                "cluster_id": topology.cluster_id,
                "ring_epoch": str(topology.ring_epoch),
                "seen_by": topology.node_id,
                "members": found,
            }
        )
    else:
        print_table(_COLUMNS, [[member[column] for column in _COLUMNS] for member in found])


def _as_dict(member: Member) -> dict[str, Any]:
    return {
        "node_id": member.node_id,
        "address": member.address,
        "state": state_of(member),
        "zone": member.zone,
        "host": member.host,
        "weight": member.weight,
        "version": member.version,
        "incarnation": member.incarnation,
        "reason": member.reason,
    }


async def _watch(targets: list[str], json: bool) -> None:
    known: dict[str, dict[str, Any]] | None = None
    async for topology in _topologies(targets):
        found = {member.node_id: _as_dict(member) for member in topology.members}
        if known is None:
            _show(topology, json)
        else:
            for node_id in sorted(found.keys() | known.keys()):
                _show_change(topology.node_id, known.get(node_id), found.get(node_id), json)
        known = found


def _show_change(
    seen_by: str, before: dict[str, Any] | None, after: dict[str, Any] | None, json: bool
) -> None:
    """One line, unless nothing has changed that a person would call a change."""
    shown = [(some["state"], some["address"], some["version"]) if some else None for some in (before, after)]
    member = after or before
    if member is None or shown[0] == shown[1]:
        return
    was, now = before["state"] if before else "unknown", after["state"] if after else "forgotten"
    time = datetime.now().astimezone()
    if json:
        change = {"time": time.isoformat(), "seen_by": seen_by, "before": was, **member, "state": now}
        print(jsonlib.dumps(change, ensure_ascii=False), flush=True)
    else:
        why = f" ({member['reason']})" if after and member["reason"] else ""
        moment = time.strftime("%H:%M:%S.%f")[:-3]
        print(
            f"{moment} {seen_by}: {member['node_id']} at {member['address']} {was} -> {now}{why}", flush=True
        )


async def _topologies(targets: list[str]) -> AsyncIterator[Topology]:
    """The view of one node after each change, then that of the next, for ever. Unavailable when none answers
    at first."""
    async with open_client(targets) as client:
        topology = await client.nodes.topology()
        while True:
            client.nodes.learn([member.address for member in filter(is_in_ring, topology.members)])
            for address in list(client.nodes.addresses):
                stream = client.nodes.at(address).cluster.WatchTopology(WatchTopologyRequest())
                try:
                    async for response in stream:
                        topology = response.topology
                        yield topology
                except grpc.aio.AioRpcError:
                    continue
            await asyncio.sleep(_RETRY_SECONDS)

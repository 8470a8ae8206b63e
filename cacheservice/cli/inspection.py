"""ring, stats: look at a cluster."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from google.protobuf.message import Message

from cacheservice.cli.all_nodes import ask_all
from cacheservice.cli.members import topology_of
from cacheservice.cli.output import (
    DEFAULT_TARGET,
    Json,
    Target,
    counted,
    print_json,
    print_table,
    run,
)
from cacheservice.client.placement import is_in_ring
from cacheservice.ring import Ring, RingMember
from cacheservice.v1 import admin_pb2

_TIMEOUT_SECONDS = 2.0
_NAMESPACES_SHOWN = 10
_PART_COLUMNS = (
    "node",
    "part",
    "policy",
    "full",
    "hits with half the memory",
    "hits",
    "with twice",
    "evicted",
    "expired",
)


def ring(
    key: Annotated[str | None, typer.Option("--key", help="Show which nodes hold this key.")] = None,
    target: Target = DEFAULT_TARGET,
    json: Json = False,
) -> None:
    """Show how much of the ring each node owns, and which nodes hold a key."""
    topology = run(topology_of(target))
    in_ring = list(filter(is_in_ring, topology.members))
    whole = Ring(
        [RingMember(member.node_id, member.zone, member.weight, member.host) for member in in_ring],
        topology.virtual_nodes,
    )
    shares = whole.shares()
    owners = whole.owners(key, topology.replication_factor) if key else ()
    if json:
        print_json(
            {
                "ring_epoch": str(topology.ring_epoch),
                "virtual_nodes": topology.virtual_nodes,
                "replication_factor": topology.replication_factor,
                "nodes": [{"node_id": node_id, "share": share} for node_id, share in shares.items()],
                **({"key": key, "owners": list(owners)} if key else {}),
            }
        )
        return
    copies = min(topology.replication_factor, whole.host_count)
    print(f"ring {topology.ring_epoch}, each entry on {counted(copies, 'node')}")
    print_table(("node_id", "share"), [(node_id, f"{share:.1%}") for node_id, share in shares.items()])
    if owners:
        print(f"{key}: owner {owners[0]}, replicas {', '.join(owners[1:]) or 'none'}")


def stats(target: Target = DEFAULT_TARGET, json: Json = False) -> None:
    """Show the figures of every node that answers."""
    request = admin_pb2.StatsRequest()
    answers, silent = run(ask_all(target, lambda node: node.admin.Stats(request, timeout=_TIMEOUT_SECONDS)))
    found = list(answers.values())
    nodes = [_as_dict(answer) for answer in found]
    hits, misses = sum(answer.hits for answer in found), sum(answer.misses for answer in found)
    hit_ratio = hits / (hits + misses) if hits + misses else None
    if json:
        print_json({"nodes": nodes, "hit_ratio": hit_ratio, "silent": silent})
        return
    names = [name for name in (nodes[0] if nodes else ()) if name not in ("node_id", "parts", "namespaces")]
    rows = [[name, *(_rounded(node[name]) for node in nodes)] for name in names]
    print_table(("", *(node["node_id"] for node in nodes)), rows)
    print()
    print_table(_PART_COLUMNS, [_part_row(answer.node_id, part) for answer in found for part in answer.parts])
    if any(answer.namespaces for answer in found):
        print()
        print_table(
            ("node", "namespace", "entries", "bytes"),
            [
                (answer.node_id, usage.namespace or "(none)", f"{usage.entries}", f"{usage.bytes}")
                for answer in found
                for usage in answer.namespaces[:_NAMESPACES_SHOWN]
            ],
        )
    print(f"hit ratio of the stores: {'-' if hit_ratio is None else f'{hit_ratio:.2%}'}")
    for node_id, why in silent.items():
        print(f"{node_id} gave no answer: {why}")


def _as_dict(message: Message) -> dict[str, Any]:
    """The message's fields but for ring_epoch, as they go into JSON."""
    return {
        field.name: [_as_dict(each) for each in getattr(message, field.name)]
        if field.message_type
        else getattr(message, field.name)
        for field in message.DESCRIPTOR.fields
        if field.name != "ring_epoch"
    }


def _part_row(node_id: str, part: admin_pb2.StorePart) -> tuple[str, ...]:
    reads = part.hits + part.misses
    estimates = {estimate.factor: f"{estimate.hit_ratio:.1%}" for estimate in part.estimates}
    return (
        node_id,
        part.namespace or "(shared)",
        part.policy,
        f"{part.bytes / part.max_bytes:.0%}",
        estimates.get(0.5, "-"),
        f"{part.hits / reads:.1%}" if reads else "-",
        estimates.get(2.0, "-"),
        f"{part.evictions}",
        f"{part.expired_on_access + part.expired_unseen}",
    )


def _rounded(value: Any) -> Any:
    return f"{value:,.1f}" if isinstance(value, float) else value

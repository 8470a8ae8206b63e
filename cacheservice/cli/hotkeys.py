"""hotkeys: which keys a cluster serves most."""

from __future__ import annotations

from typing import Annotated

import typer

from cacheservice.cli.all_nodes import ask_all
from cacheservice.cli.output import DEFAULT_TARGET, Json, Target, print_json, print_table, run
from cacheservice.v1 import admin_pb2

_TIMEOUT_SECONDS = 2.0


def hotkeys(
    limit: Annotated[
        int,
        typer.Option("--limit", min=1, max=1_000, help="How many to show, and to ask each node for."),
    ] = 20,
    target: Target = DEFAULT_TARGET,
    json: Json = False,
) -> None:
    """Show the keys that are asked for most, with operations a second, in all and at each node."""
    request = admin_pb2.HotKeysRequest(limit=limit)
    found, silent = run(ask_all(target, lambda node: node.admin.HotKeys(request, timeout=_TIMEOUT_SECONDS)))
    keys = merged(found)[:limit]
    if json:
        print_json(
            {
                "keys": [
                    {"key": key, "operations_per_second": sum(rates.values()), "nodes": rates}
                    for key, rates in keys
                ],
                "silent": silent,
            }
        )
        return
    rows = [
        (
            key,
            round(sum(rates.values())),
            ", ".join(f"{node_id} {rate:,.0f}" for node_id, rate in rates.items()),
        )
        for key, rates in keys
    ]
    print_table(("key", "operations a second", "nodes"), rows)
    for node_id, why in silent.items():
        print(f"{node_id} gave no answer: {why}")


def merged(found: dict[str, admin_pb2.HotKeysResponse]) -> list[tuple[str, dict[str, float]]]:
    """The keys, the hottest in the whole cluster first, with the rate at each node that named the key."""
    rates: dict[str, dict[str, float]] = {}
    for node_id, answer in found.items():
        for hot in answer.keys:
            rates.setdefault(hot.key, {})[node_id] = hot.operations_per_second
    return sorted(rates.items(), key=lambda item: -sum(item[1].values()))

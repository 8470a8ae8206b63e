"""invalidate, flush, scan: many entries at once."""

from __future__ import annotations

import json as jsonlib
import sys
from typing import Annotated, Any

import typer

from cacheservice.cli.connecting import open_client
from cacheservice.cli.output import (
    DEFAULT_TARGET,
    Json,
    Target,
    as_text,
    counted,
    print_json,
    run,
    split_targets,
)
from cacheservice.client import EntryInfo, Invalidated
from cacheservice.v1.admin_pb2 import FlushRequest

_TIMEOUT_SECONDS = 60.0
"""For all entries of a node to be looked through, and for some nodes that give no answer."""


def invalidate(
    tag: Annotated[str | None, typer.Option("--tag", help="Of entries with this tag.")] = None,
    prefix: Annotated[
        str | None, typer.Option("--prefix", help="Of entries whose key begins with this.")
    ] = None,
    target: Target = DEFAULT_TARGET,
    json: Json = False,
) -> None:
    """Remove entries by tag or prefix on all nodes. Exit code 1 when a node could not be reached."""
    if (tag is None) == (prefix is None):
        raise typer.BadParameter("either --tag or --prefix is needed")

    async def work() -> Invalidated:
        async with open_client(split_targets(target), timeout=_TIMEOUT_SECONDS) as client:
            if tag is not None:
                return await client.invalidate_tag(tag)
            return await client.invalidate_prefix(prefix or "")

    _show_removed(run(work()), json)


def flush(
    cluster_id: Annotated[
        str, typer.Option("--cluster-id", help="The id of the cluster, to say that it is meant.")
    ],
    target: Target = DEFAULT_TARGET,
    json: Json = False,
) -> None:
    """Remove all entries on all nodes. Exit code 1 when a node could not be reached."""

    async def work() -> Invalidated:
        async with open_client(split_targets(target), timeout=_TIMEOUT_SECONDS) as client:
            request = FlushRequest(cluster_id=cluster_id)
            response = await client.nodes.call(
                lambda node, timeout: node.admin.Flush(request, timeout=timeout), repeatable=True
            )
            return Invalidated(response.removed, tuple(response.unreachable))

    _show_removed(run(work()), json)


def scan(
    prefix: Annotated[str, typer.Argument(help="What the keys begin with; all by default.")] = "",
    values: Annotated[bool, typer.Option("--values", help="Print the values too.")] = False,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Print so many entries at most.")
    ] = None,
    target: Target = DEFAULT_TARGET,
    json: Json = False,
) -> None:
    """List entries, one a line, with tabs between key, bytes, seconds to live (0: for ever) and version."""

    async def work() -> tuple[str, ...]:
        async with open_client(split_targets(target), timeout=_TIMEOUT_SECONDS) as client:
            found = client.scan(prefix, values=values)
            shown = 0
            async for entry in found:
                print(jsonlib.dumps(_as_dict(entry), ensure_ascii=False) if json else _line(entry))
                shown += 1
                if shown == limit:
                    break
            return found.unreachable

    for node_id in run(work()):
        print(f"{node_id} could not be reached; some of its entries may be missing", file=sys.stderr)


def _show_removed(done: Invalidated, json: bool) -> None:
    if json:
        print_json({"removed": done.removed, "unreachable": list(done.unreachable)})
    else:
        print(f"removed {counted(done.removed, 'entry', 'entries')}")
    for node_id in done.unreachable:
        print(f"{node_id} could not be reached, and is told as soon as it can be", file=sys.stderr)
    if done.unreachable:
        raise typer.Exit(1)


def _line(entry: EntryInfo) -> str:
    cells = [_printable(entry.key), f"{entry.size}", f"{entry.ttl:g}", f"{entry.version}"]
    if entry.value is not None:
        [text] = as_text(entry.value).values()
        cells.append(_printable(text))
    return "\t".join(cells)


def _printable(text: str) -> str:
    """The text, or how JSON writes it if it would not stay on its line."""
    return text if text.isprintable() else jsonlib.dumps(text, ensure_ascii=False)


def _as_dict(entry: EntryInfo) -> dict[str, Any]:
    return {
        "key": entry.key,
        "bytes": entry.size,
        "ttl_seconds": entry.ttl,
        "version": str(entry.version),
        "age_seconds": entry.age,
        "stale_seconds": entry.stale,
        "load_seconds": entry.load,
        "tags": list(entry.tags),
        **({} if entry.value is None else as_text(entry.value)),
    }

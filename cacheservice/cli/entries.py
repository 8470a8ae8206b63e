"""get, set, delete, touch, incr: one operation each."""

from __future__ import annotations

import os
import sys
from typing import Annotated

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
from cacheservice.client import Lookup, SetResult

Key = Annotated[str, typer.Argument(help="The key.")]
Ttl = Annotated[float, typer.Option("--ttl", help="Seconds to live; 0 as the namespace says, or for ever.")]


def get(key: Key, target: Target = DEFAULT_TARGET, json: Json = False) -> None:
    """Print the value of a key. Without an entry nothing is printed, and the exit code is 0 all the same."""

    async def work() -> Lookup:
        async with open_client(split_targets(target)) as client:
            return await client.lookup(key)

    found = run(work())
    if json:
        print_json(
            {
                "key": key,
                "outcome": found.outcome.value,
                **({} if found.value is None else as_text(found.value)),
                "version": str(found.version),
                "ttl_seconds": found.ttl,
                "age_seconds": found.age,
                "served_by": found.served_by,
                "hops": found.hops,
                "from_replica": found.from_replica,
            }
        )
    elif found.value is None:
        print(f"there is no entry {key!r}", file=sys.stderr)
    else:
        # In a pipe exactly the value; on a terminal the prompt goes to the next line.
        sys.stdout.buffer.write(found.value + (b"\n" if sys.stdout.isatty() else b""))
        sys.stdout.flush()


def set_(
    key: Key,
    value: Annotated[str, typer.Argument(help="The value; - reads it from standard input.")],
    ttl: Ttl = 0,
    if_absent: Annotated[bool, typer.Option("--if-absent", help="Only when there is no entry.")] = False,
    if_present: Annotated[bool, typer.Option("--if-present", help="Only when there is one.")] = False,
    if_version: Annotated[
        int | None, typer.Option("--if-version", help="Only when the entry has this version.")
    ] = None,
    target: Target = DEFAULT_TARGET,
    json: Json = False,
) -> None:
    """Write a value."""
    content = sys.stdin.buffer.read() if value == "-" else os.fsencode(value)
    if [if_absent, if_present, if_version is not None].count(True) > 1:
        raise typer.BadParameter("of --if-absent, --if-present and --if-version only one may be given")

    async def work() -> SetResult:
        async with open_client(split_targets(target)) as client:
            return await client.set(
                key, content, ttl, if_absent=if_absent, if_present=if_present, if_version=if_version
            )

    done = run(work())
    if json:
        print_json({"stored": done.stored, "version": str(done.version), "replicas": done.replicas})
    elif done.stored:
        print(f"stored on {counted(done.replicas, 'node')}, version {done.version}")
    elif done.version:
        print(f"not stored: the entry has version {done.version}")
    else:
        print("not stored: there is no entry")


def delete(key: Key, target: Target = DEFAULT_TARGET, json: Json = False) -> None:
    """Remove an entry."""

    async def work() -> bool:
        async with open_client(split_targets(target)) as client:
            return await client.delete(key)

    deleted = run(work())
    if json:
        print_json({"deleted": deleted})
    else:
        print("deleted" if deleted else "not found")


def touch(
    key: Key,
    ttl: Annotated[float, typer.Argument(help="Seconds to live from now; 0 as for --ttl of set.")],
    target: Target = DEFAULT_TARGET,
    json: Json = False,
) -> None:
    """Give an entry a new time to live."""

    async def work() -> bool:
        async with open_client(split_targets(target)) as client:
            return await client.touch(key, ttl)

    touched = run(work())
    if json:
        print_json({"touched": touched})
    else:
        print("touched" if touched else "not found")


def incr(
    key: Key,
    delta: Annotated[int, typer.Argument(help="What to add.")] = 1,
    initial: Annotated[int, typer.Option("--initial", help="Where an absent counter begins.")] = 0,
    ttl: Ttl = 0,
    target: Target = DEFAULT_TARGET,
    json: Json = False,
) -> None:
    """Add to a counter."""

    async def work() -> int:
        async with open_client(split_targets(target)) as client:
            return await client.incr(key, delta, initial=initial, ttl=ttl)

    value = run(work())
    if json:
        print_json({"value": value})
    else:
        print(value)

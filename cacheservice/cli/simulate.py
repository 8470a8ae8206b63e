"""simulate: an access log against the store itself, without network."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ByteSize, TypeAdapter, ValidationError

from cacheservice.cli.output import Json, fail, print_json
from cacheservice.cli.trace import Request, read_trace
from cacheservice.errors import EntryTooLarge, Overloaded
from cacheservice.store import POLICIES, Entry, Store, cost_of_one, pack

Trace = Annotated[
    Path, typer.Option("--trace", help="The access log.", exists=True, dir_okay=False, readable=True)
]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Stop after this many requests.")]

MS_PER_REQUEST = 1
UPKEEP_MS = 1_000


@dataclass(slots=True)
class Outcome:
    requests: int = 0
    hits: int = 0

    @property
    def miss_ratio(self) -> float:
        return 1 - self.hits / self.requests if self.requests else 0.0


def simulate(
    trace: Trace,
    policy: Annotated[str, typer.Option("--policy", help=f"One of {', '.join(POLICIES)}.")] = "lru",
    max_entries: Annotated[
        int | None, typer.Option("--max-entries", min=1, help="Capacity in entries.")
    ] = None,
    max_memory: Annotated[
        str | None, typer.Option("--max-memory", help="Capacity in bytes, for instance 64MiB.")
    ] = None,
    limit: Limit = None,
    json: Json = False,
) -> None:
    """Replay an access log against the store, to choose a policy and a size.

    A request takes 1 ms of the time in which entries expire. Values of unknown size are empty.
    """
    if policy not in POLICIES:
        raise typer.BadParameter(f"{policy!r} is not one of {', '.join(POLICIES)}", param_hint="--policy")
    if (max_entries is None) == (max_memory is None):
        raise typer.BadParameter("give either --max-entries or --max-memory")
    if max_entries is None:
        store = Store(_bytes(max_memory or ""), policy, now=0)
    else:
        store = Store(max_entries, policy, now=0, cost=cost_of_one)
    try:
        outcome = run_trace(store, read_trace(trace, limit))
    except ValueError as error:
        fail(str(error))
    if not outcome.requests:
        fail(f"{trace} holds no requests to count")
    if json:
        print_json(
            {
                "policy": policy,
                "requests": outcome.requests,
                "hits": outcome.hits,
                "miss_ratio": outcome.miss_ratio,
                "evictions": store.stats.evictions,
                "expirations": store.stats.expirations,
            }
        )
    else:
        ratio = f"miss ratio {outcome.miss_ratio:.2%}"
        print(f"{policy}: {outcome.requests:,} requests, {outcome.hits:,} hits, {ratio}")


def run_trace(store: Store, requests: Iterable[Request]) -> Outcome:
    """Has each request done by the store: a get that misses fills; only gets count."""
    outcome = Outcome()
    now = 0
    version = 0
    for key, size, ttl, op in requests:
        now += MS_PER_REQUEST
        version += 1
        if now % UPKEEP_MS == 0:
            while store.upkeep(now):
                pass
        if op == "delete":
            store.delete(key)
            continue
        if op == "get":
            outcome.requests += 1
            if store.get(key, now) is not None:
                outcome.hits += 1
                continue
        expires = now + round(ttl * 1_000) if ttl else 0
        _set(store, key, pack(Entry(bytes(size or 0), version, now, expires)), now)
    return outcome


def _set(store: Store, key: str, packed: bytes, now: int) -> None:
    try:
        store.set(key, packed)
    except EntryTooLarge:
        store.delete(key)
    except Overloaded:
        while store.upkeep(now):
            pass
        store.set(key, packed)


def _bytes(text: str) -> int:
    try:
        size = TypeAdapter(ByteSize).validate_python(text)
    except ValidationError:
        raise typer.BadParameter(f"{text!r} is no size", param_hint="--max-memory") from None
    if size < 1:
        raise typer.BadParameter("must be at least 1 byte", param_hint="--max-memory")
    return int(size)

"""A process with many callers of `get_or_load`; test_loading.py starts several.

Its input are groups of lines: an Order, then keys, each of which all callers want at the same time, then an
empty line. It prints a line once it is connected, and for each key, as one line of JSON, how many callers
were given which value, or which error.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from typing import TypedDict

from cacheservice.client import Client
from cacheservice.client.client import Routing
from cacheservice.errors import CacheServiceError
from tests.integration.origin import load_from

CALLERS = 50
TIMEOUT = 5.0


class Order(TypedDict):
    """As one line of JSON."""

    targets: list[str]
    routing: Routing
    origin_port: int


async def serve(order: Order) -> None:
    async def load(_: str) -> bytes | None:
        return await load_from(order["origin_port"])

    async def outcome(cache: Client, key: str) -> str:
        try:
            return (await cache.get_or_load(key, load) or b"none").decode()
        except CacheServiceError as error:
            return repr(error)

    async with Client(order["targets"], routing=order["routing"], timeout=TIMEOUT) as cache:
        await cache.get("warm-up")
        print("ready", flush=True)
        while key := await read_line():
            found = await asyncio.gather(*(outcome(cache, key) for _ in range(CALLERS)))
            print(json.dumps(Counter(found)), flush=True)


async def read_line() -> str:
    line: str = await asyncio.to_thread(sys.stdin.readline)
    return line.strip()


async def main() -> None:
    while order := await read_line():
        await serve(json.loads(order))


if __name__ == "__main__":
    asyncio.run(main())

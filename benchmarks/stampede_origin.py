"""The origin of the stampede: SQLite behind a server with a limited number of workers.

    python -m benchmarks.stampede_origin SOCKET

prints a line once it serves at the unix socket, and when its input ends, as JSON, the times of
time.monotonic at which queries came. Each query keeps one of 50 workers busy for 10 ms, whatever SQLite needs
of that: 5,000 queries a second. What comes while all are busy waits in a queue, so that more load means more
latency.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import sys
import time
from array import array
from itertools import count, cycle

import uvloop

WORKERS = 50
QUERY_SECONDS = 0.01
CAPACITY = round(WORKERS / QUERY_SECONDS)
"""Queries a second."""
MAX_QUEUED = 50_000
"""Queries that wait for a worker; more are refused."""
PRODUCTS = 1_000
REVIEWS_EACH = 100
CONNECTIONS = 4
"""Of each reader process; queries share them."""

_TABLE = "CREATE TABLE reviews (product INTEGER, stars INTEGER, text TEXT)"
_INDEX = "CREATE INDEX by_product ON reviews (product)"
_QUERY = "SELECT count(*), avg(stars), sum(length(text)) FROM reviews WHERE product = ?"


class Refused(Exception):
    """The origin's queue is full."""


class Origin:
    """The server, at work within `serve`."""

    def __init__(self) -> None:
        self.arrivals = array("d")
        self._queue: asyncio.Queue[tuple[int, int, asyncio.StreamWriter]] = asyncio.Queue(MAX_QUEUED)
        self._database = sqlite3.connect(":memory:", isolation_level=None)
        self._fill()

    async def serve(self, path: str) -> None:
        """Answers until standard input ends."""
        workers = [asyncio.create_task(self._work()) for _ in range(WORKERS)]
        server = await asyncio.start_unix_server(self._accept, path)
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)
        server.close()
        for worker in workers:
            worker.cancel()
        await asyncio.wait(workers)
        self._database.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            self.arrivals.append(time.monotonic())
            number, product = map(int, line.split())
            try:
                self._queue.put_nowait((number, product, writer))
            except asyncio.QueueFull:
                writer.write(f"{number}\n".encode())
        writer.close()

    async def _work(self) -> None:
        while True:
            number, product, writer = await self._queue.get()
            until = time.monotonic() + QUERY_SECONDS
            reviews, stars, length = self._database.execute(_QUERY, (product,)).fetchone()
            await asyncio.sleep(until - time.monotonic())
            writer.write(f"{number} {reviews} reviews, {stars:.2f} stars, {length} characters\n".encode())

    def _fill(self) -> None:
        database = self._database
        database.execute(_TABLE)
        rows = (
            (product, (product + review) % 5 + 1, f"review {review}" * 5)
            for product in range(PRODUCTS)
            for review in range(REVIEWS_EACH)
        )
        database.execute("BEGIN")
        database.executemany("INSERT INTO reviews VALUES (?, ?, ?)", rows)
        database.execute(_INDEX)
        database.execute("COMMIT")


class OriginClient:
    """Queries an origin over a few connections."""

    def __init__(self) -> None:
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        self._numbers = count()
        self._readers: list[asyncio.Task[None]] = []
        self._writers: list[asyncio.StreamWriter] = []

    async def open(self, path: str) -> None:
        for _ in range(CONNECTIONS):
            reader, writer = await asyncio.open_unix_connection(path)
            self._writers.append(writer)
            self._readers.append(asyncio.create_task(self._receive(reader)))
        self._turns = cycle(self._writers)

    async def query(self, product: int) -> bytes:
        """A summary of the product's reviews. Refused when too many wait already."""
        number = next(self._numbers)
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        next(self._turns).write(f"{number} {product}\n".encode())
        return await future

    async def close(self) -> None:
        for reader in self._readers:
            reader.cancel()
        await asyncio.wait(self._readers)
        for writer in self._writers:
            writer.close()

    async def _receive(self, reader: asyncio.StreamReader) -> None:
        while line := await reader.readline():
            number, _, answer = line.rstrip().partition(b" ")
            future = self._waiting.pop(int(number))
            if future.done():
                continue
            if answer:
                future.set_result(answer)
            else:
                future.set_exception(Refused())


def main() -> None:
    origin = Origin()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(origin.serve(sys.argv[1]))
    print(json.dumps(origin.arrivals.tolist()))


if __name__ == "__main__":
    main()

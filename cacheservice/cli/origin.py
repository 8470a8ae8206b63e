"""The database of record behind a replay: one table of its own in SQLite."""

from __future__ import annotations

import asyncio
import functools
import sqlite3
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path
from typing import ParamSpec, TypeVar

TABLE = "cacheservice_replay"
DEFAULT_VALUE_BYTES = 100
_INSERT = f"INSERT OR REPLACE INTO {TABLE} VALUES (?, ?)"

Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")


def value_of(key: str, size: int | None) -> bytes:
    """What the origin holds for the key: made from it, so that a wrong answer can be told."""
    length = DEFAULT_VALUE_BYTES if size is None else size
    seed = blake2b(key.encode()).digest()
    return (seed * (length // len(seed) + 1))[:length]


class SqliteOrigin:
    """Queries run one after another in a thread of their own, as SQLite has it; `queries` counts them."""

    def __init__(self, path: Path) -> None:
        self.queries = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="origin")
        self._database = self._thread.submit(
            sqlite3.connect, path, isolation_level=None, cached_statements=8
        ).result()

    async def fill(self, rows: Iterable[tuple[str, int | None]]) -> None:
        """Makes the table anew, with a row for each (key, size)."""
        await self._run(self._fill, rows)

    async def load(self, key: str) -> bytes | None:
        """The value of record."""
        self.queries += 1
        return await self._run(self._load, key)

    async def store(self, key: str, value: bytes) -> None:
        self.queries += 1
        await self._run(self._execute, _INSERT, (key, value))

    async def remove(self, key: str) -> None:
        self.queries += 1
        await self._run(self._execute, f"DELETE FROM {TABLE} WHERE key = ?", (key,))

    async def close(self) -> None:
        await self._run(self._database.close)
        self._thread.shutdown()

    async def _run(
        self,
        function: Callable[Arguments, Result],
        *arguments: Arguments.args,
        **named: Arguments.kwargs,
    ) -> Result:
        call = functools.partial(function, *arguments, **named)
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    def _fill(self, rows: Iterable[tuple[str, int | None]]) -> None:
        database = self._database
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute(f"DROP TABLE IF EXISTS {TABLE}")
        database.execute(f"CREATE TABLE {TABLE} (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID")
        database.execute("BEGIN")
        database.executemany(
            _INSERT,
            ((key, value_of(key, size)) for key, size in rows),
        )
        database.execute("COMMIT")

    def _load(self, key: str) -> bytes | None:
        row = self._database.execute(f"SELECT value FROM {TABLE} WHERE key = ?", (key,)).fetchone()
        return None if row is None else row[0]

    def _execute(self, statement: str, arguments: tuple[object, ...]) -> None:
        self._database.execute(statement, arguments)

"""Access logs: one request a line, `key[,size[,ttl[,op]]]`, plain, .gz or .zst."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TextIO

import zstandard

OPERATIONS = ("get", "set", "delete")


class Request(NamedTuple):
    """One line. `size` in bytes and `ttl` in seconds, where known; a get fills the cache on a miss."""

    key: str
    size: int | None
    ttl: float
    op: str


def read_trace(path: Path, limit: int | None = None) -> Iterator[Request]:
    """The requests of the log, at most `limit`. ValueError names the first line that is malformed."""
    with _open(path) as lines:
        for number, line in enumerate(islice(lines, limit), 1):
            yield _parse(line.rstrip("\r\n"), path, number)


def _parse(line: str, path: Path, number: int) -> Request:
    key, *rest = line.split(",")
    size, ttl, op, *surplus = [*rest, "", "", ""]
    try:
        request = Request(key, int(size) if size else None, float(ttl) if ttl else 0.0, op or "get")
    except ValueError:
        raise ValueError(f"{path}, line {number}: {line!r} is not key[,size[,ttl[,op]]]") from None
    if not key or request.op not in OPERATIONS or any(surplus) or (request.size or 0) < 0 or request.ttl < 0:
        raise ValueError(f"{path}, line {number}: {line!r} is not key[,size[,ttl[,op]]]")
    return request


@contextmanager
def _open(path: Path) -> Iterator[TextIO]:
    with path.open("rb") as raw:
        match path.suffix:
            case ".zst":
                yield io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(raw), "utf-8")
            case ".gz":
                yield io.TextIOWrapper(gzip.GzipFile(fileobj=raw), "utf-8")
            case _:
                yield io.TextIOWrapper(raw, "utf-8")

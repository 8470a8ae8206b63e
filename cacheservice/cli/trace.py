"""Access logs: one request a line, `key[,size[,ttl[,op]]]`, plain, .gz or .zst."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Generator, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import zstandard

from cacheservice.limits import MAX_TTL_SECONDS

OPERATIONS = ("get", "set", "delete")
MAX_SIZE = 1 << 30
_CHUNK_BYTES = 1 << 16


class Request(NamedTuple):
    """One line. `size` in bytes and `ttl` in seconds, where known; a get fills the cache on a miss."""

    key: str
    size: int | None
    ttl: float
    op: str


def read_trace(path: Path, limit: int | None = None) -> Iterator[Request]:
    """The requests of the log, at most `limit`.

    ValueError names the first line that is malformed, or says that the file is damaged or cut off.
    """
    with closing(_lines(path)) as lines:
        yield from _requests(path, enumerate(islice(lines, limit), 1))


def _requests(path: Path, lines: Iterator[tuple[int, str]]) -> Iterator[Request]:
    while True:
        try:
            number, line = next(lines)
        except StopIteration:
            return
        except (EOFError, OSError, UnicodeDecodeError, zlib.error, zstandard.ZstdError) as error:
            raise ValueError(f"{path} cannot be read to its end: {error}") from None
        yield _parse(line.rstrip("\r\n"), path, number)


def _parse(line: str, path: Path, number: int) -> Request:
    key, *rest = line.split(",")
    size, ttl, op, *surplus = [*rest, "", "", ""]
    try:
        request = Request(key, int(size) if size else None, float(ttl) if ttl else 0.0, op or "get")
    except ValueError:
        raise _malformed(line, path, number) from None
    in_bounds = 0 <= (request.size or 0) <= MAX_SIZE and 0 <= request.ttl <= MAX_TTL_SECONDS
    if not key or request.op not in OPERATIONS or any(surplus) or not in_bounds:
        raise _malformed(line, path, number)
    return request


def _malformed(line: str, path: Path, number: int) -> ValueError:
    form = "key[,size[,ttl[,op]]], with a size of at most 1 GiB and a ttl of at most ten years"
    return ValueError(f"{path}, line {number}: {line[:100]!r} is not {form}")


def _lines(path: Path) -> Generator[str, None, None]:
    with path.open("rb") as raw:
        unpacked: BinaryIO
        match path.suffix:
            case ".zst":
                unpacked = io.BufferedReader(_ZstdFile(raw))
            case ".gz":
                unpacked = io.BufferedReader(gzip.GzipFile(fileobj=raw))
            case _:
                unpacked = raw
        with io.TextIOWrapper(unpacked, "utf-8") as text:
            yield from text


class _ZstdFile(io.RawIOBase):
    """The content of a .zst file, frame after frame. EOFError when the last one is cut off."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._packed = b""
        self._content = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._content:
            self._packed = self._packed or self._raw.read(_CHUNK_BYTES)
            if not self._packed:
                if self._frame is not None:
                    raise EOFError("the file is cut off")
                return 0
            if self._frame is None:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
            self._content = memoryview(self._frame.decompress(self._packed))
            self._packed = self._frame.unused_data
            if self._frame.eof:
                self._frame = None
        count = min(len(buffer), len(self._content))
        buffer[:count] = self._content[:count]
        self._content = self._content[count:]
        return count

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from cacheservice.cli.trace import Request, read_trace

TEXT = "a\nb,10\nc,,5\nd,1,2.5,set\ne,,,delete\n"
REQUESTS = [
    Request("a", None, 0, "get"),
    Request("b", 10, 0, "get"),
    Request("c", None, 5, "get"),
    Request("d", 1, 2.5, "set"),
    Request("e", None, 0, "delete"),
]


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.csv.zst"])
def test_reads_every_format(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    match path.suffix:
        case ".gz":
            path.write_bytes(gzip.compress(TEXT.encode()))
        case ".zst":
            path.write_bytes(zstandard.compress(TEXT.encode()))
        case _:
            path.write_text(TEXT)
    assert list(read_trace(path)) == REQUESTS
    assert list(read_trace(path, 2)) == REQUESTS[:2]


def test_reads_several_frames(tmp_path: Path) -> None:
    path = tmp_path / "t.csv.zst"
    path.write_bytes(zstandard.compress(b"a\n") + zstandard.compress(b"b\n"))
    assert [request.key for request in read_trace(path)] == ["a", "b"]


@pytest.mark.parametrize("name", ["t.csv.gz", "t.csv.zst"])
@pytest.mark.parametrize(
    "damage", [lambda packed: packed[: len(packed) // 2], lambda packed: b"junk" + packed]
)
def test_a_file_that_is_cut_off_or_damaged_is_no_shorter_log(
    tmp_path: Path, name: str, damage: Callable[[bytes], bytes]
) -> None:
    text = "".join(f"{number},{number * 7919 % 1000}\n" for number in range(100_000)).encode()
    packed = gzip.compress(text) if name.endswith(".gz") else zstandard.compress(text)
    path = tmp_path / name
    path.write_bytes(packed)
    assert sum(1 for _ in read_trace(path)) == 100_000
    path.write_bytes(damage(packed))
    with pytest.raises(ValueError, match="cannot be read to its end"):
        list(read_trace(path))


def test_a_log_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"a\nb\n\xff\xfe\n")
    with pytest.raises(ValueError, match="cannot be read"):
        list(read_trace(path))


@pytest.mark.parametrize(
    "line",
    [
        *("", "a,x", "a,1,y", "a,1,2,fly", "a,-1", "a,1,-2", "a,1,2,get,more", ",1"),
        *("a,99999999999999", "a,1,nan", "a,1,inf", "a,1,1e300"),
    ],
)
def test_names_the_line_that_is_wrong(tmp_path: Path, line: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"fine\n{line}\n")
    with pytest.raises(ValueError, match="line 2"):
        list(read_trace(path))

"""What the commands print, and how they fail."""

from __future__ import annotations

import asyncio
import json
import sys
from base64 import b64encode
from collections.abc import Awaitable, Iterable, Sequence
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cacheservice.address import split_address
from cacheservice.errors import CacheServiceError

DEFAULT_TARGET = "127.0.0.1:7700"

Target = Annotated[
    str,
    typer.Option(
        "--target",
        envvar="CACHESERVICE_TARGET",
        help="HOST:PORT of one node, or of several separated by commas.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

Result = TypeVar("Result")


def fail(message: str, code: int = 1) -> NoReturn:
    """Prints the message to stderr and ends the process."""
    print(f"error: {message}", file=sys.stderr)
    raise typer.Exit(code)


def run(work: Awaitable[Result]) -> Result:
    """Runs the coroutine; an error of the cluster ends the process with a message and code 1."""

    async def awaited() -> Result:
        return await work

    try:
        return asyncio.run(awaited())
    except CacheServiceError as error:
        fail(f"{error.reason or 'UNKNOWN'}: {error.message}")


def split_targets(target: str) -> list[str]:
    """The addresses, checked; ends the process with code 2 when one is none."""
    targets = [part.strip() for part in target.split(",") if part.strip()]
    try:
        for part in targets:
            split_address(part)
    except ValueError as error:
        fail(f"--target: {error}", code=2)
    return targets or [DEFAULT_TARGET]


def counted(count: int, noun: str, plural: str = "") -> str:
    """The number with its noun in the right number."""
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False), flush=True)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Prints a table: numbers to the right, text to the left."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    kept = list(rows)
    for index, column in enumerate(columns):
        numeric = bool(kept) and all(isinstance(row[index], int | float) for row in kept)
        table.add_column(column, justify="right" if numeric else "left", no_wrap=True)
    for row in kept:
        table.add_row(*(Text(f"{cell:,}" if isinstance(cell, int) else str(cell)) for cell in row))
    console = Console()
    if not console.is_terminal:
        console = Console(width=10_000)
    console.print(table)


def as_text(value: bytes) -> dict[str, str]:
    """A value for JSON: as text where it is UTF-8, else in base64."""
    try:
        return {"value": value.decode()}
    except UnicodeDecodeError:
        return {"value_base64": b64encode(value).decode()}

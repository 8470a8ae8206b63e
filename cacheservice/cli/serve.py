"""serve: one node, or several workers. Its flags are the settings of config.py, one for one."""

from __future__ import annotations

import asyncio
import inspect
import logging
import sys
from collections.abc import Callable, Sequence
from tomllib import TOMLDecodeError
from typing import Annotated, Any

import typer
import uvloop
from pydantic import ValidationError
from pydantic_settings import SettingsError

from cacheservice.cli.output import fail
from cacheservice.cli.workers import run_workers
from cacheservice.config import Settings, flag_of, meaning_of
from cacheservice.errors import NodeIdTaken
from cacheservice.server.app import serve as serve_node

LOG_FORMAT = "%(asctime)s %(levelname)s {}%(name)s: %(message)s"


def serve(**flags: str | None) -> None:
    """Run one node, or several workers, until SIGTERM or Ctrl-C. Each flag can also be a variable or stand in
    the file."""
    try:
        settings = Settings(**{name: value for name, value in flags.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        fail(problems(error), code=2)
    except (SettingsError, TOMLDecodeError, OSError) as error:
        fail(str(error), code=2)
    if settings.workers > 1:
        _settle_logging(settings, settings.node_id)
        raise typer.Exit(asyncio.run(run_workers(settings)))
    try:
        run_node(settings)
    except (OSError, NodeIdTaken) as error:
        fail(str(error))


def problems(error: ValidationError, *, within: tuple[str, ...] = ()) -> str:
    """What is wrong with which settings, which are `within` what was checked."""
    return "; ".join(_problem(detail, len(within)) for detail in error.errors())


def run_node(
    settings: Settings,
    siblings: Sequence[str] = (),
    *,
    name: str = "",
    on_start: Callable[[], None] = lambda: None,
) -> None:
    """Runs the node until it is told to stop. Each line of its log has its `name`, if it is given.

    OSError when its address cannot be bound, NodeIdTaken when somebody else has its id.
    """
    _settle_logging(settings, name)
    uvloop.run(serve_node(settings, siblings, on_start))


def _settle_logging(settings: Settings, name: str) -> None:
    form = LOG_FORMAT.format(f"{name} " if name else "")
    logging.basicConfig(level=settings.log_level.upper(), format=form, stream=sys.stderr)
    logging.getLogger("grpc").setLevel(logging.WARNING)


def _problem(detail: Any, depth: int) -> str:
    where = ".".join(str(part) for part in detail["loc"][depth:])
    message = detail["msg"].removeprefix("Value error, ")
    got = f" (got {detail['input']!r})" if not message.startswith(repr(detail["input"])) else ""
    return f"{where}: {message}{got}" if where else message


def _flags() -> inspect.Signature:
    """One text flag for each setting; `Settings` itself reads and checks them."""
    return inspect.Signature(
        [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[
                    str | None,
                    typer.Option(flag_of(name), help=meaning_of(name)),
                ],
            )
            for name in Settings.model_fields
            if name != "namespaces"
        ]
    )


serve.__signature__ = _flags()  # type: ignore[attr-defined]

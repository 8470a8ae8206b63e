"""serve: one node. Its flags are the settings of config.py, one for one."""

from __future__ import annotations

import inspect
import logging
import sys
from tomllib import TOMLDecodeError
from typing import Annotated, Any

import typer
import uvloop
from pydantic import ValidationError
from pydantic_settings import SettingsError

from cacheservice.cli.output import fail
from cacheservice.config import Settings, flag_of, meaning_of
from cacheservice.errors import NodeIdTaken
from cacheservice.server.app import serve as run_node

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def serve(**flags: str | None) -> None:
    """Run one node until SIGTERM or Ctrl-C. Each flag can also be a variable or stand in the file."""
    try:
        settings = Settings(**{name: value for name, value in flags.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        fail("; ".join(_problem(detail) for detail in error.errors()), code=2)
    except (SettingsError, TOMLDecodeError, OSError) as error:
        fail(str(error), code=2)
    logging.basicConfig(level=settings.log_level.upper(), format=LOG_FORMAT, stream=sys.stderr)
    logging.getLogger("grpc").setLevel(logging.WARNING)
    try:
        uvloop.run(run_node(settings))
    except (OSError, NodeIdTaken) as error:
        fail(str(error))


def _problem(detail: Any) -> str:
    where = ".".join(str(part) for part in detail["loc"])
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

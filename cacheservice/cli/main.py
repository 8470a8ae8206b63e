"""The command `cacheservice`."""

from __future__ import annotations

import os
import sys
from importlib.metadata import version
from typing import Annotated

import typer

from cacheservice.cli import (
    bench,
    cluster,
    drain,
    entries,
    hotkeys,
    inspection,
    members,
    replay,
    serve,
    simulate,
    sweeps,
    watch,
)
from cacheservice.cli.connecting import connected

app = typer.Typer(
    help="A self-hosted gRPC cache cluster.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


@app.callback(invoke_without_command=True)
def common(
    context: typer.Context,
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True)
    ] = False,
) -> None:
    if show_version:
        print(version("cacheservice"))
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(2)


app.command()(serve.serve)
app.command()(cluster.cluster)
app.command()(connected(entries.get))
app.command("set")(connected(entries.set_))
app.command()(connected(entries.delete))
app.command()(connected(entries.touch))
app.command()(connected(entries.incr))
app.command()(connected(sweeps.scan))
app.command()(connected(sweeps.invalidate))
app.command()(connected(sweeps.flush))
app.command()(connected(watch.watch))
app.command()(connected(members.members))
app.command()(connected(inspection.ring))
app.command()(connected(inspection.stats))
app.command()(connected(hotkeys.hotkeys))
app.command()(connected(drain.drain))
app.command()(simulate.simulate)
app.command()(connected(replay.replay))
app.command()(connected(bench.bench))


def main() -> None:
    try:
        app(prog_name="cacheservice")
    except BrokenPipeError:
        # Whoever read the output has enough, as in `cacheservice stats | head -3`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)

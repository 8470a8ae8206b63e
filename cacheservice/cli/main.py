"""The command `cacheservice`."""

from __future__ import annotations

import typer

from cacheservice.cli import cluster, entries, inspection, replay, serve, simulate

app = typer.Typer(
    help="A self-hosted gRPC cache cluster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(serve.serve)
app.command()(cluster.cluster)
app.command()(entries.get)
app.command("set")(entries.set_)
app.command()(entries.delete)
app.command()(entries.touch)
app.command()(entries.incr)
app.command()(inspection.members)
app.command()(inspection.ring)
app.command()(inspection.stats)
app.command()(simulate.simulate)
app.command()(replay.replay)


def main() -> None:
    app(prog_name="cacheservice")

"""`arsandbox`: the commands, in the order in which a new user meets them.

Nothing heavy is imported here: `arsandbox --help` must stay fast.
"""

from __future__ import annotations

import gc
import os
from typing import Annotated

import typer

from arsandbox.cli import admin, caches, demo, evidence, history, images, loop, policy, rerun, run, setup
from arsandbox.cli.boundary import application, guarded

app = application(help="Run untrusted edits of training code in throw-away containers; promote the winners into git.")


@app.callback(invoke_without_command=True)
def _main(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        from importlib.metadata import version as installed

        typer.echo(f"arsandbox {installed('arsandbox')}")
        raise typer.Exit


app.command("demo")(demo.demo)
app.command("init")(setup.init)
app.command("prepare")(setup.prepare)
app.command("run")(run.run)
app.command("loop")(loop.loop)
app.command("confirm")(run.confirm)
app.command("promote")(run.promote)
app.command("history")(history.history)
app.command("show")(history.show)
app.command("diff")(history.diff)
app.command("logs")(history.logs)
app.command("rerun")(rerun.rerun)
app.command("audit")(rerun.audit)
app.command("export")(evidence.export)
app.command("verify")(evidence.verify)
app.command("doctor")(admin.doctor)
app.command("gc")(admin.gc)
app.add_typer(images.app, name="image")
app.add_typer(caches.app, name="cache")
app.add_typer(policy.app, name="policy")
app.add_typer(evidence.key, name="key")


def main() -> None:
    """The console script."""
    # No third party's plugin is loaded into the controller; looking for them costs start-up time, too.
    os.environ["PYDANTIC_DISABLE_PLUGINS"] = "__all__"
    # What imports make stays: looking for cycles in it again and again, and once more at the end, is a fifth of the
    # processor time of a short command.
    gc.set_threshold(10_000, 10, 10)
    code = guarded(lambda: app(standalone_mode=False))
    gc.freeze()
    raise SystemExit(code)

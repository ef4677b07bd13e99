"""`arsandbox doctor` and `gc`: is the machine able, and is anything left."""

from __future__ import annotations

import json as encoder
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from arsandbox.cli.boundary import last_words
from arsandbox.cli.options import Json, MachineEngine, open_engine

if TYPE_CHECKING:
    from arsandbox.sandbox.doctor.rows import Row


def doctor(
    engine: MachineEngine = "docker",
    probe: Annotated[
        bool, typer.Option("--probe", help="Attack a real sandbox from inside, by the containment checklist.")
    ] = False,
    gpu: Annotated[
        bool, typer.Option("--gpu", help="Also start a small container with a GPU, asked for as a run would.")
    ] = False,
    json: Json = False,
) -> int:
    """Say whether this machine can run sandboxes, and what to do where it cannot: exit 4, or 0.

    With --probe instead: run the containment checklist in a real sandbox under the policy that holds here.
    """
    from arsandbox.sandbox.doctor import examine

    if probe:
        return _probe(engine, as_json=json)

    rows = examine(engine, try_gpu=gpu)
    with last_words():
        if json:
            sys.stdout.write(encoder.dumps([row.model_dump() for row in rows]) + "\n")
        else:
            _say(rows)
    return 4 if any(row.status == "missing" for row in rows) else 0


def _say(rows: list[Row]) -> None:
    from rich.console import Console
    from rich.markup import escape

    from arsandbox.sandbox.state import printable

    console = Console(highlight=False)
    colours = {"ok": "green", "warning": "yellow", "missing": "red"}
    for row in rows:
        detail, fix = escape(printable(row.detail)), escape(printable(row.fix))
        console.print(f"[{colours[row.status]}]{row.status:8}[/] {row.name:12} {detail}", soft_wrap=True)
        if fix:
            console.print(f"{'':8} {'':12} fix: {fix}", soft_wrap=True)


def _probe(name: str, *, as_json: bool) -> int:
    """The checklist's rows; 4 where one of them fails."""
    from arsandbox.cli.options import image_finder
    from arsandbox.sandbox.config import ProjectConfig
    from arsandbox.sandbox.policy_sources import stage_policies
    from arsandbox.sandbox.probe.checklist import examine
    from arsandbox.sandbox.state import printable

    engine, project = open_engine(name), ProjectConfig()
    rows = examine(engine, image_finder(name)(project.image), stage_policies(project)["train"].policy.limits)
    with last_words():
        if as_json:
            sys.stdout.write(encoder.dumps([row.model_dump() for row in rows]) + "\n")
        for row in () if as_json else rows:
            sys.stdout.write(f"{row.status:12} {row.row:3}  {row.title:52} {printable(row.detail)}\n")
    return 4 if any(row.status == "fail" for row in rows) else 0


def gc(engine: MachineEngine = "docker", json: Json = False) -> None:
    """Find and remove what dead controllers left: containers, volumes, mounts, directories."""
    from arsandbox.sandbox.recovery import collect_garbage

    done = collect_garbage(open_engine(engine))
    if json:
        sys.stdout.write(encoder.dumps({"removed": done}) + "\n")
        return
    for line in done:
        sys.stdout.write(f"removed {line}\n" if not line.startswith("experiment") else f"{line}\n")
    if not done:
        sys.stderr.write("nothing was left\n")

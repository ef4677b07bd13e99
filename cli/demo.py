"""`arsandbox demo`: the main job on a real, small training task."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from arsandbox.cli.options import Json, image_finder, open_engine

if TYPE_CHECKING:
    from arsandbox.sandbox.engines.port import Engine


def demo(
    directory: Annotated[Path | None, typer.Option(help="Make the demo repository here (default: a new one).")] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            envvar="ARSANDBOX_ENGINE",
            help="What runs the sandboxes (default: docker, or embedded where no Docker daemon answers).",
        ),
    ] = None,
    json: Json = False,
) -> int:
    """Tell the story with real runs: a baseline, a winner, a loser, a cheat and a memory bomb."""
    from arsandbox.cli.listing import history_table
    from arsandbox.cli.render import ProgressListener
    from arsandbox.sandbox import story
    from arsandbox.sandbox.errors import MachineError
    from arsandbox.sandbox.imaging import build_and_pin
    from arsandbox.sandbox.summary import Summary

    listener = ProgressListener(quiet=json)
    name, opened = _engine(engine)
    find_image = image_finder(name)
    try:
        image = find_image(story.IMAGE)
        built = opened.has_image(image.digest)
    except MachineError:
        built = False
    if not built:
        build_and_pin(story.IMAGE, opened, listener)
        image = find_image(story.IMAGE)
    story.require_packages(opened)
    place = directory or Path(tempfile.mkdtemp(prefix="arsandbox-demo-"))
    records = []
    for record in story.tell(place, image, opened, listener):
        records.append(record)
        if json:
            sys.stdout.write(record.model_dump_json() + "\n")
            sys.stdout.flush()
    if not json:
        listener.console.print()
        listener.console.print(history_table(Summary.of(record) for record in reversed(records)))
        listener.console.print(f"\nthe repository is in {place}; look around:", soft_wrap=True)
        for command in ("history", f"show {records[1].id}", f"diff {records[3].id}"):
            listener.console.print(f"  arsandbox {command} --repo {place}", soft_wrap=True)
        listener.console.print(f"  git -C {place} log --all --oneline", soft_wrap=True)
    unexpected = story.unexpected(records)
    for line in unexpected:
        listener.note(line)
    return 1 if unexpected else 0


def _engine(name: str | None) -> tuple[str, Engine]:
    """The engine that was asked for; else Docker, or the embedded one where no Docker daemon answers."""
    from arsandbox.sandbox.errors import MachineError

    if name is not None:
        return name, open_engine(name)
    try:
        return "docker", open_engine("docker")
    except MachineError as error:
        sys.stderr.write(f"{error.message}: this demo runs on the embedded engine\n")
        return "embedded", open_engine("embedded")

"""`arsandbox demo`: the main job on a real, small training task."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from arsandbox.cli.options import EngineName, Json, catalogue, find_image, open_engine

if TYPE_CHECKING:
    from arsandbox.sandbox.engines.port import Engine
    from arsandbox.sandbox.events import Listener


def demo(
    directory: Annotated[Path | None, typer.Option(help="Make the demo repository here (default: a new one).")] = None,
    engine: EngineName = "docker",
    json: Json = False,
) -> int:
    """Tell the story with real runs: a baseline, a winner, a loser, a cheat and a memory bomb."""
    from arsandbox.cli.render import ProgressListener, history_table
    from arsandbox.sandbox import story
    from arsandbox.sandbox.errors import MachineError

    listener = ProgressListener(quiet=json)
    opened = open_engine(engine)
    try:
        image = find_image(story.IMAGE)
        built = opened.has_image(image.digest)
    except MachineError:
        built = False
    if not built:
        _build_image(opened, listener)
        image = find_image(story.IMAGE)
    place = directory or Path(tempfile.mkdtemp(prefix="arsandbox-demo-"))
    records = []
    for record in story.tell(place, image, opened, listener):
        records.append(record)
        if json:
            sys.stdout.write(record.model_dump_json() + "\n")
            sys.stdout.flush()
    if not json:
        listener.console.print()
        listener.console.print(history_table(reversed(records)))
        listener.console.print(f"\nthe repository is in {place}; look around:", soft_wrap=True)
        for command in ("history", f"show {records[1].id}", f"diff {records[3].id}"):
            listener.console.print(f"  arsandbox {command} --repo {place}", soft_wrap=True)
        listener.console.print(f"  git -C {place} log --all --oneline", soft_wrap=True)
    unexpected = story.unexpected(records)
    for line in unexpected:
        listener.note(line)
    return 1 if unexpected else 0


def _build_image(engine: Engine, listener: Listener) -> None:
    from arsandbox.images.build import build_image
    from arsandbox.images.recipe import load_recipe
    from arsandbox.sandbox.state import home
    from arsandbox.sandbox.story import IMAGE

    built = build_image(
        load_recipe(IMAGE),
        cache=home() / "image-layers",
        load=engine.load_image,
        progress=listener.note,
    )
    catalogue().pin(built)

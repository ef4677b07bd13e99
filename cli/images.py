"""`arsandbox image`: base images by name, pinned by digest."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from arsandbox.cli.boundary import application
from arsandbox.cli.options import EngineName, Json, open_engine

app = application(help="Build and list base images.")


@app.command("list")
def list_images(json: Json = False) -> None:
    """List the images that can be built, and what is pinned here."""
    import json as encoder

    from arsandbox.images.recipe import available
    from arsandbox.sandbox.imaging import catalogue
    from arsandbox.sandbox.quantities import format_size

    pinned = {entry.name: entry for entry in catalogue().entries()}
    if json:
        rows = [{"name": n, "pinned": pinned[n].model_dump() if n in pinned else None} for n in available()]
        sys.stdout.write(encoder.dumps(rows) + "\n")
        return
    for name in available():
        entry = pinned.get(name)
        state = f"{entry.digest}  {format_size(entry.size_bytes)}  {entry.built_at}" if entry else "not built"
        sys.stdout.write(f"{name:12} {state}\n")


@app.command("build")
def build(
    name: Annotated[str, typer.Argument(help="An image of `arsandbox image list`.")],
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Make every layer anew.")] = False,
    engine: EngineName = "docker",
    json: Json = False,
) -> None:
    """Build a base image from packages, load it into the engine and pin its digest."""
    from arsandbox.cli.render import ProgressListener
    from arsandbox.cli.transfers import Transfers
    from arsandbox.sandbox.imaging import build_and_pin
    from arsandbox.sandbox.quantities import format_duration, format_size

    listener = ProgressListener(quiet=json)
    with Transfers(listener.console, quiet=json) as transfers:
        built = build_and_pin(name, open_engine(engine), listener, transfer=transfers.arrived, use_cache=not no_cache)
    if json:
        sys.stdout.write(built.model_dump_json() + "\n")
        return
    took = format_duration(built.built_seconds)
    sys.stdout.write(f"{built.name} {built.digest} {format_size(built.size_bytes)}, built in {took}\n")

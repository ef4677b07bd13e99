"""`arsandbox image`: base images by name, pinned by digest."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from arsandbox.cli.boundary import application, last_words
from arsandbox.cli.options import Json, MachineEngine, Repo, open_engine

if TYPE_CHECKING:
    from arsandbox.images.build import BuiltImage

app = application(help="Build, add, lock and verify base images.")
Names = Annotated[list[str] | None, typer.Argument(help="Images by name.")]


@app.command("list")
def list_images(json: Json = False) -> None:
    """List the images that can be built, and what is pinned here."""
    import json as encoder

    from arsandbox.images.recipe import available
    from arsandbox.sandbox.imaging import catalogue
    from arsandbox.sandbox.quantities import format_size

    pinned = {entry.name: entry for entry in catalogue().entries()}
    names = sorted({*available(), *pinned})
    if json:
        lists = {"packages", "wheels"}  # long: arsandbox.lock has them
        rows = [{"name": n, "pinned": pinned[n].model_dump(exclude=lists) if n in pinned else None} for n in names]
        sys.stdout.write(encoder.dumps(rows) + "\n")
        return
    for name in names:
        entry = pinned.get(name)
        state = f"{entry.digest}  {format_size(entry.size_bytes)}  {entry.built_at}" if entry else "not built"
        sys.stdout.write(f"{name:12} {state}\n")


@app.command("build")
def build(
    name: Annotated[str, typer.Argument(help="An image of `arsandbox image list`.")],
    base: Annotated[
        str | None,
        typer.Option("--from", metavar="REF", help="Install the wheels on this image instead, REPOSITORY@sha256:HEX."),
    ] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Make every layer anew.")] = False,
    engine: MachineEngine = "docker",
    json: Json = False,
) -> None:
    """Build a base image from packages, load it into the engine and pin its digest."""
    from arsandbox.cli.render import ProgressListener
    from arsandbox.cli.transfers import Transfers
    from arsandbox.sandbox.imaging import build_and_pin, build_on

    opened, listener = open_engine(engine), ProgressListener(quiet=json)
    with Transfers(listener.console, quiet=json) as transfers:
        if base is not None:
            built = build_on(name, base, opened, listener, transfer=transfers.arrived)
        else:
            built = build_and_pin(name, opened, listener, transfer=transfers.arrived, use_cache=not no_cache)
    _say(built, json, "built")


@app.command("add")
def add(
    name: Annotated[str, typer.Argument(help="What the image is to be called here.")],
    reference: Annotated[str, typer.Argument(metavar="REF", help="REPOSITORY@sha256:HEX, never a tag.")],
    engine: MachineEngine = "docker",
    json: Json = False,
) -> None:
    """Pull an image of your own by its digest, check that a run could use it, and pin it."""
    from arsandbox.cli.render import ProgressListener
    from arsandbox.sandbox.imaging import add_and_pin

    _say(add_and_pin(name, reference, open_engine(engine), ProgressListener(quiet=json)), json, "added")


@app.command("lock")
def lock(names: Names = None, repo: Repo = Path("."), engine: MachineEngine = "docker") -> None:
    """Write what the project's images stand for here into its arsandbox.lock, for you to commit."""
    from arsandbox.sandbox.image_lock import lock_images

    file, pinned = lock_images(repo, names or [], open_engine(engine))
    for one in pinned:
        sys.stdout.write(f"{one.name} {one.digest}\n")
    sys.stderr.write(f"wrote {file}: commit it, since runs read it from the base commit\n")


@app.command("verify")
def verify(names: Names = None, repo: Repo = Path("."), engine: MachineEngine = "docker", json: Json = False) -> None:
    """Compare the images here with arsandbox.lock, and hash every layer that the engine holds."""
    import json as encoder

    from arsandbox.cli.render import ProgressListener
    from arsandbox.sandbox.image_lock import verify_images
    from arsandbox.sandbox.state import printable

    checked = verify_images(repo, names or [], open_engine(engine), ProgressListener(quiet=json))
    with last_words():
        if json:
            sys.stdout.write(encoder.dumps([one.model_dump() for one in checked]) + "\n")
        for one in () if json else checked:
            stale = "; its recipe has changed since it was built" if one.stale else ""
            line = f"{one.name:12} {one.standing:8} {one.digest}  {printable(one.detail)}{stale}"
            sys.stdout.write(line.rstrip() + "\n")
    standings = {one.standing for one in checked}
    if standings & {"drifted", "damaged"}:
        raise typer.Exit(3)
    if "missing" in standings:
        raise typer.Exit(4)


def _say(built: BuiltImage, json: bool, done: str) -> None:
    from arsandbox.sandbox.quantities import format_duration, format_size

    if json:
        sys.stdout.write(built.model_dump_json() + "\n")
        return
    took = format_duration(built.built_seconds)
    sys.stdout.write(f"{built.name} {built.digest} {format_size(built.size_bytes)}, {done} in {took}\n")

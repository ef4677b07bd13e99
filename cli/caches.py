"""`arsandbox cache`: data and compiled code that runs see and cannot change."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from arsandbox.cli.boundary import application, last_words
from arsandbox.cli.options import Experiment, Json, Repo

if TYPE_CHECKING:
    from arsandbox.sandbox.caches.store import CacheVersion

app = application(help="Add, list, verify and adopt caches that runs see and cannot change.")
Name = Annotated[str, typer.Argument(help="What the cache is called here and in [caches.NAME].")]


@app.command("add")
def add(
    name: Name,
    path: Annotated[Path, typer.Argument(help="The directory to copy.")],
    kind: Annotated[str, typer.Option("--kind", help="dataset, tokenizer, kernels, inductor or triton.")],
    json: Json = False,
) -> None:
    """Copy a directory into a new version of a cache."""
    from arsandbox.sandbox.caches.kinds import KINDS, Kind
    from arsandbox.sandbox.caches.store import CacheStore
    from arsandbox.sandbox.errors import UsageError

    if kind not in KINDS:
        raise UsageError(f"--kind {kind}: not a kind of cache", hint=f"one of {', '.join(KINDS)}")
    chosen: Kind = kind  # type: ignore[assignment] # just looked up
    _say(CacheStore().add(name, chosen, path), json)


@app.command("list")
def list_caches(json: Json = False) -> None:
    """List the caches and what each holds, after comparing the files that were touched."""
    import json as encoder

    from arsandbox.sandbox.caches.store import CacheStore

    store = CacheStore()
    found = [store.open(name) for name in store.names()]
    if json:
        sys.stdout.write(encoder.dumps([_row(version) for version in found]) + "\n")
        return
    for version in found:
        _say(version, False)


@app.command("verify")
def verify(names: Annotated[list[str] | None, typer.Argument(help="Caches; all without.")] = None) -> None:
    """Read every byte of caches and compare it with what was written down; exit 3 where something was changed."""
    from arsandbox.sandbox.caches.store import CacheStore
    from arsandbox.sandbox.errors import RefusedError
    from arsandbox.sandbox.state import printable

    store, changed = CacheStore(), False
    for name in names or store.names():
        try:
            store.open(name, every_byte=True)
        except RefusedError as error:
            changed = True
            with last_words():
                sys.stdout.write(f"{name:16} changed  {printable(error.message)}\n")
            sys.stderr.write(f"fix: {error.hint}\n")
        else:
            with last_words():
                sys.stdout.write(f"{name:16} ok\n")
    if changed:
        raise typer.Exit(3)


@app.command("adopt")
def adopt(
    name: Name,
    identity: Experiment,
    repo: Repo = Path("."),
    json: Json = False,
) -> None:
    """Make a new version of a compiled cache with what a promoted run compiled besides."""
    from arsandbox.sandbox.caches import compiled
    from arsandbox.sandbox.ledger import Ledger
    from arsandbox.sandbox.repository import Repository
    from arsandbox.sandbox.run_directory import measured_in

    repository = Repository.open(repo)
    with Ledger.open(repository.state) as ledger:
        record = ledger.get(identity)
    version, count = compiled.adopt(name, record, measured_in(repository.state, record))
    sys.stderr.write(f"{count} new files; a run of this cache has a new set-up, so its baseline is measured anew\n")
    _say(version, json)


def _row(version: CacheVersion) -> dict[str, object]:
    made = version.manifest
    return {
        "name": version.name,
        "kind": made.kind,
        "sha256": version.sha256,
        "files": len(made.files),
        "size_bytes": made.size_bytes,
        "origin": made.origin,
    }


def _say(version: CacheVersion, json: bool) -> None:
    import json as encoder

    from arsandbox.sandbox.quantities import format_size
    from arsandbox.sandbox.state import printable

    row = _row(version)
    if json:
        sys.stdout.write(encoder.dumps(row) + "\n")
        return
    size = format_size(version.manifest.size_bytes)
    sys.stdout.write(
        f"{row['name']!s:16} {row['kind']!s:10} {row['sha256']}  {row['files']} files, {size}  "
        f"{printable(str(row['origin']))}\n"
    )

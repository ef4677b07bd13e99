"""`arsandbox init` and `prepare`: get a repository ready."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from arsandbox.cli.options import EngineName, Json, Repo, chosen_engine, image_finder, open_engine


def init(
    repo: Repo = Path(),
    force: Annotated[bool, typer.Option("--force", help="Replace an arsandbox.toml that is there.")] = False,
) -> None:
    """Write arsandbox.toml for this repository."""
    from arsandbox.sandbox.layout import starting_config
    from arsandbox.sandbox.repository import Repository

    worktree = Repository.open(repo).worktree
    kind, path = starting_config(worktree, force=force)
    sys.stdout.write(f"wrote {path} ({kind})\n")
    sys.stderr.write("commit it: settings are read from the base commit, never from the working tree\n")


def prepare(
    repo: Repo = Path(),
    clone: Annotated[str | None, typer.Option(help="Clone this URL into --repo first.")] = None,
    depth: Annotated[int, typer.Option(min=0, help="History to clone; 0 is all of it.")] = 1,
    image: Annotated[str | None, typer.Option(help="Instead of the config's image.")] = None,
    engine: EngineName = None,
    json: Json = False,
) -> None:
    """Run the prepare stage of the base commit and freeze its outputs."""
    import json as encoder

    from arsandbox.cli.render import ProgressListener
    from arsandbox.sandbox import experiment
    from arsandbox.sandbox.repository import clone_repository
    from arsandbox.sandbox.settings import Options

    if clone is not None:
        repo = clone_repository(clone, repo, depth=depth)
    name = chosen_engine(engine, repo)
    plan = experiment.plan(experiment.Request(repo, Options(image=image)), find_image=image_finder(name))
    digest = experiment.prepare(plan, open_engine(name), ProgressListener(quiet=json))
    if json:
        sys.stdout.write(encoder.dumps({"repo": str(plan.repository.worktree), "data_sha256": digest}) + "\n")
    elif digest is None:
        sys.stdout.write("nothing to prepare: the config has no [prepare] section\n")
    else:
        sys.stdout.write(f"prepared data sha256:{digest}\n")

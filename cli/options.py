"""Options that several commands share, and the engine and image look-ups behind them."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from arsandbox.sandbox.engines.port import Engine
    from arsandbox.sandbox.models import ImageRef
    from arsandbox.sandbox.record import Record

Repo = Annotated[Path, typer.Option("--repo", help="The git repository (any directory in it).")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, and nothing else there.")]
EngineName = Annotated[
    str | None,
    typer.Option(
        "--engine",
        envvar="ARSANDBOX_ENGINE",
        help="docker, embedded or auto; without it what the config says, else docker.",
    ),
]
RecordedEngine = Annotated[
    str | None,
    typer.Option(
        "--engine", envvar="ARSANDBOX_ENGINE", help="docker, embedded or auto; without it that of the record."
    ),
]
# For commands that concern the machine, and no repository.
MachineEngine = Annotated[
    str,
    typer.Option("--engine", envvar="ARSANDBOX_ENGINE", help="What runs the sandboxes: docker, embedded or auto."),
]
RuntimeName = Annotated[str | None, typer.Option("--runtime", help="A stronger runtime of Docker's, like runsc.")]
Network = Annotated[
    str | None,
    typer.Option(help="Training's: none, or allowlist for the hosts that the policy names (default: what it says)."),
]
PolicyName = Annotated[str | None, typer.Option("--policy", help="A preset (strict, gpu, ...) or a policy file.")]
Trusted = Annotated[
    bool, typer.Option("--trusted-proposer", help="Run the proposer on this machine, not in a sandbox.")
]
Credentials = Annotated[
    list[str] | None, typer.Option("--credential", help="A variable of your environment that the proposer gets.")
]
ProposeTimeout = Annotated[
    str | None, typer.Option("--propose-timeout", help="What one proposal may take (default: 10m).")
]
Experiment = Annotated[str, typer.Argument(metavar="ID", help="An experiment's id, its beginning or its end.")]


def chosen_engine(option: str | None, repo: Path, base: str = "HEAD") -> str:
    """The engine's name: the option's (or ARSANDBOX_ENGINE's) word, else that of the config of `base`. UsageError."""
    from arsandbox.sandbox.planning import engine_name

    return option or engine_name(repo, base)


def open_engine(name: str, runtime: str | None = None) -> Engine:
    """The engine by name, opened once; says on standard error what it does not enforce.

    `auto` is Docker where it answers, else the embedded engine: only ever on the user's word. Raises UsageError,
    MachineError.
    """
    return _opened(name, runtime)


def open_recorded(record: Record, engine: str | None, runtime: str | None = None) -> Engine:
    """The engine that ran `record`, with its stronger runtime if it had one, unless another is named.

    Raises UsageError, MachineError.
    """
    from arsandbox.sandbox.config import DEFAULT_ENGINE
    from arsandbox.sandbox.engines.port import RuntimeChooser

    was = record.engine
    if was is None:
        return open_engine(engine or DEFAULT_ENGINE, runtime)
    opened = open_engine(engine or was.name, runtime)
    stronger = runtime is None and opened.info().name == was.name and opened.info().isolation != was.isolation
    if stronger and isinstance(opened, RuntimeChooser):
        return open_engine(engine or was.name, was.runtime)
    return opened


@cache
def _opened(name: str, runtime: str | None) -> Engine:
    from arsandbox.cli.banner import banner
    from arsandbox.sandbox.engines.registry import AUTO
    from arsandbox.sandbox.engines.registry import open_engine as opened

    engine = opened(name, runtime=runtime)
    for line in banner(engine.info(), chosen=name == AUTO):
        sys.stderr.write(f"{line}\n")
    return engine


def image_finder(engine: str) -> Callable[[str], ImageRef]:
    """Finds images for the engine of that name: what it brings itself, else what is pinned in the catalogue."""

    def find(name: str) -> ImageRef:
        if engine != "docker" and (own := open_engine(engine).find_image(name)) is not None:
            return own
        return find_image(name)

    return find


def find_image(name: str) -> ImageRef:
    """The pinned image of that name. Raises UsageError (unknown), MachineError (not built)."""
    from arsandbox.sandbox.imaging import catalogue
    from arsandbox.sandbox.models import ImageRef

    pinned = catalogue().resolve(name)
    return ImageRef(name=pinned.name, digest=pinned.digest)

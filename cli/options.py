"""Options that several commands share, and the engine and image look-ups behind them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from arsandbox.sandbox.engines.port import Engine
    from arsandbox.sandbox.models import ImageRef

Repo = Annotated[Path, typer.Option("--repo", help="The git repository (any directory in it).")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, and nothing else there.")]
EngineName = Annotated[str, typer.Option("--engine", help="What runs the sandboxes.")]
RuntimeName = Annotated[str | None, typer.Option("--runtime", help="A stronger runtime of Docker's, like runsc.")]
PolicyName = Annotated[str | None, typer.Option("--policy", help="A preset (strict, gpu, ...) or a policy file.")]
Experiment = Annotated[str, typer.Argument(metavar="ID", help="An experiment's id, its beginning or its end.")]


def open_engine(name: str, runtime: str | None = None) -> Engine:
    """The engine by name. Raises UsageError, MachineError."""
    from arsandbox.sandbox.engines.registry import open_engine as opened

    return opened(name, runtime=runtime)


def find_image(name: str) -> ImageRef:
    """The pinned image of that name. Raises UsageError (unknown), MachineError (not built)."""
    from arsandbox.sandbox.imaging import catalogue
    from arsandbox.sandbox.models import ImageRef

    pinned = catalogue().resolve(name)
    return ImageRef(name=pinned.name, digest=pinned.digest)

"""The catalogue: which digest each image name stands for on this machine."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from arsandbox.images.build import BuiltImage, Digest, Sha256
from arsandbox.images.layers import Packages, locked, write_atomically
from arsandbox.images.recipe import RECIPES, require_known
from arsandbox.sandbox.errors import MachineError, StateError

Timestamp = Annotated[str, StringConstraints(pattern=r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}Z$")]


class PinnedImage(BaseModel):
    """One entry: the image's name, its digest (what a run uses), the recipe it came from, bytes, and when.

    `packages` and `wheels` are what a build from a recipe put in. `reference` names the image, or the base
    that it was built on, in a registry; `recipe_sha256` is empty for an image of the user's own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    digest: Digest
    recipe_sha256: Sha256 | Literal[""]
    size_bytes: int = Field(ge=0)
    built_at: Timestamp
    packages: Packages = ()
    wheels: Packages = ()
    reference: str = ""


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    digest: Digest
    recipe_sha256: Sha256 | Literal[""]
    size_bytes: int = Field(ge=0)
    built_at: Timestamp
    packages: Packages = ()
    wheels: Packages = ()
    reference: str = ""


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    images: dict[str, _Entry] = {}


class Catalogue:
    """A JSON file `path` that maps names to digests; a missing file is an empty catalogue."""

    def __init__(self, path: Path, *, recipes: Path = RECIPES) -> None:
        self._path = path
        self._recipes = recipes

    def pin(self, built: BuiltImage) -> PinnedImage:
        """Let `built.name` stand for `built.digest` from now on.

        Raises StateError if the file is damaged or cannot be written; it then stays as it was.
        """
        entry = _Entry(
            digest=built.digest,
            recipe_sha256=built.recipe_sha256,
            size_bytes=built.size_bytes,
            built_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            packages=built.packages,
            wheels=built.wheels,
            reference=built.reference,
        )
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with locked(self._path.with_name(f"{self._path.name}.lock")):
                images = {**self._read().images, built.name: entry}
                document = _Document(images=dict(sorted(images.items())))
                write_atomically(self._path, document.model_dump_json(indent=2).encode() + b"\n")
        except OSError as error:
            raise StateError(f"the image catalogue {self._path} cannot be written: {error}") from error
        return _pinned(built.name, entry)

    def resolve(self, name: str) -> PinnedImage:
        """What `name` stands for.

        Raises UsageError if there is no such image or recipe (with the nearest name), MachineError if it was
        not built here yet, StateError if the file is damaged.
        """
        entry = self._read().images.get(name)
        if entry is None:
            require_known(name, self._recipes)
            raise MachineError(f"image {name!r} is not built here yet", hint=f"arsandbox image build {name}")
        return _pinned(name, entry)

    def entries(self) -> tuple[PinnedImage, ...]:
        """All pinned images, sorted by name. Raises StateError if the file is damaged."""
        return tuple(_pinned(name, entry) for name, entry in sorted(self._read().images.items()))

    def _read(self) -> _Document:
        try:
            return _Document.model_validate_json(self._path.read_bytes())
        except FileNotFoundError:
            return _Document()
        except OSError as error:
            raise StateError(f"the image catalogue {self._path} cannot be read: {error}") from error
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "file"
            raise StateError(
                f"the image catalogue {self._path} is damaged: {where}: {first['msg']}",
                hint="delete the file and build the images again",
            ) from error


def _pinned(name: str, entry: _Entry) -> PinnedImage:
    return PinnedImage(name=name, **entry.model_dump())

"""`arsandbox.lock`: what a project's image names stand for, so that every machine runs the same bytes or refuses.

The file belongs into the repository. Runs read it from the base commit, like the config.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from arsandbox.images.build import Digest
from arsandbox.images.catalogue import PinnedImage
from arsandbox.images.layers import Packages, write_atomically
from arsandbox.sandbox.errors import RefusedError, StateError, UsageError

FILE_NAME = "arsandbox.lock"


class LockedImage(BaseModel):
    """One name: the digest that runs, and what is in it: Debian packages and wheels as (name, version or SHA-256).

    `reference` is where the image, or the base that it was built on, can be pulled by digest; empty for one that
    was built from a recipe alone.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    digest: Digest
    reference: str = ""
    packages: Packages = ()
    wheels: Packages = ()


class ImageLock(BaseModel):
    """The file's contents."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    images: dict[str, LockedImage] = {}

    def with_images(self, pinned: list[PinnedImage]) -> ImageLock:
        """This lock with what `pinned` says in place of older entries of those names."""
        entries = {
            one.name: LockedImage(digest=one.digest, reference=one.reference, packages=one.packages, wheels=one.wheels)
            for one in pinned
        }
        return self.model_copy(update={"images": dict(sorted({**self.images, **entries}.items()))})

    def require(self, name: str, digest: str, where: str) -> None:
        """Raise RefusedError unless `name` is locked to `digest`; `where` says which lock this is."""
        locked = self.images.get(name)
        if locked is None:
            raise RefusedError(
                f"{where} does not lock the image {name!r}",
                hint=f"arsandbox image lock {name} && git commit -m 'lock {name}' {FILE_NAME}",
            )
        if locked.digest != digest:
            raise RefusedError(
                f"image {name} is {digest[:19]}… here, but {where} says {locked.digest[:19]}…",
                hint=f"build or add the locked one, or accept this one: arsandbox image lock {name}, then commit it",
            )

    def text(self) -> bytes:
        """The file's bytes."""
        return self.model_dump_json(indent=1).encode() + b"\n"


def parse(data: bytes, where: str) -> ImageLock:
    """The lock in `data`. Raises UsageError naming `where`."""
    try:
        return ImageLock.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "file"
        raise UsageError(f"{where}: {place}: {first['msg']}", hint="arsandbox image lock writes a new one") from error


def read(file: Path) -> ImageLock | None:
    """The lock in `file`, or None where there is none. Raises UsageError, StateError."""
    try:
        return parse(file.read_bytes(), str(file))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateError(f"{file} cannot be read: {error.strerror}") from error


def write(file: Path, lock: ImageLock) -> None:
    """Replace `file`. Raises StateError."""
    try:
        write_atomically(file, lock.text())
    except OSError as error:
        raise StateError(f"{file} cannot be written: {error.strerror}") from error

"""`arsandbox.lock`: what a project's image names stand for, so that every machine runs the same bytes or refuses.

The file belongs into the repository. Runs read it from the base commit, like the config.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from arsandbox.images.build import Digest
from arsandbox.images.catalogue import PinnedImage
from arsandbox.images.layers import Packages, write_atomically
from arsandbox.sandbox.errors import RefusedError, StateError, UsageError

FILE_NAME = "arsandbox.lock"
# Hundreds of images: whatever is larger was not written by `image lock`.
LARGEST_BYTES = 16 * 1024**2
_ANEW = f"remove {FILE_NAME}; arsandbox image lock then writes a new one"
# As recipes and added images are called; names stand in commands that are suggested.
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9+.-]{0,99}$")]


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
    images: dict[Name, LockedImage] = {}

    def with_images(self, pinned: list[PinnedImage]) -> ImageLock:
        """This lock with what `pinned` says in place of older entries of those names."""
        entries = {
            one.name: LockedImage(digest=one.digest, reference=one.reference, packages=one.packages, wheels=one.wheels)
            for one in pinned
        }
        return self.model_copy(update={"images": dict(sorted({**self.images, **entries}.items()))})

    def require(self, name: str, digest: str | None, where: str) -> None:
        """Raise RefusedError unless `name` is locked to `digest` (None: to any); `where` says which lock this is."""
        locked = self.images.get(name)
        if locked is None:
            raise RefusedError(
                f"{where} does not lock the image {name!r}",
                hint=f"arsandbox image lock {name} && git commit -m 'lock {name}' {FILE_NAME}",
            )
        if digest is not None and locked.digest != digest:
            raise RefusedError(
                f"image {name} is {digest[:19]}… here, but {where} says {locked.digest[:19]}…",
                hint=f"build or add the locked one, or accept this one: arsandbox image lock {name}, then commit it",
            )

    def text(self) -> bytes:
        """The file's bytes."""
        return self.model_dump_json(indent=1).encode() + b"\n"


def parse(data: bytes, where: str) -> ImageLock:
    """The lock in `data`. Raises UsageError naming `where`."""
    if len(data) > LARGEST_BYTES:
        raise UsageError(f"{where}: larger than {LARGEST_BYTES >> 20} MiB", hint=_ANEW)
    try:
        return ImageLock.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "file"
        raise UsageError(f"{where}: {place}: {first['msg']}", hint=_ANEW) from error


def read(file: Path) -> ImageLock | None:
    """The lock in `file`, or None where there is none. Raises UsageError, StateError.

    It lies in a repository that anybody may have written: a link, a pipe or a device is refused, not read.
    """
    try:
        if not stat.S_ISREG(os.lstat(file).st_mode):
            raise UsageError(f"{file} is no regular file", hint=f"remove it, or git checkout HEAD -- {FILE_NAME}")
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as opened:
            data = opened.read(LARGEST_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateError(f"{file} cannot be read: {error.strerror}") from error
    return parse(data, str(file))


def write(file: Path, lock: ImageLock) -> None:
    """Replace `file`. Raises StateError."""
    try:
        write_atomically(file, lock.text())
    except OSError as error:
        raise StateError(f"{file} cannot be written: {error.strerror}") from error

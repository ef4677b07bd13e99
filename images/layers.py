"""The layer cache: what a recipe's part was built into, found by the part's key and kept by its content.

A layer's file is named by its hash and never changes; a small JSON file maps a key to it. So a rebuild
cannot change a layer under a build that is using it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from arsandbox.sandbox.errors import StateError

Packages = tuple[tuple[str, str], ...]
CHUNK = 1024 * 1024


class Layer(BaseModel):
    """A layer on disk: the SHA-256 of its tar (64 hex digits), its bytes, and the packages or wheels it brought."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    size_bytes: int
    packages: Packages = ()


class LayerCache:
    """Layers in `folder`, for any number of builds at once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, layer: Layer) -> Path:
        """The file of `layer`."""
        return self._folder / f"{layer.sha256}.tar"

    def obtain(
        self,
        key: str,
        make: Callable[[IO[bytes]], Packages],
        *,
        use_cache: bool = True,
        waiting: Callable[[], None] = lambda: None,
    ) -> Layer:
        """The layer for `key` (hex digits), written by `make` unless an intact one is there.

        `make` writes a tar to the file it is given and returns its packages; if it fails or is
        interrupted, nothing of it remains. Builds of one key take turns (`waiting` is called before a
        wait). Raises StateError if the cache cannot be written, and whatever `make` raises.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with locked(self._folder / f"{key}.lock", waiting):
                found = self._find(key) if use_cache else None
                return found or self._make(key, make)
        except OSError as error:
            raise StateError(f"the layer cache {self._folder} cannot be used: {error}") from error

    def _find(self, key: str) -> Layer | None:
        try:
            layer = Layer.model_validate_json((self._folder / f"{key}.json").read_bytes())
            intact = self.path(layer).stat().st_size == layer.size_bytes and layer.sha256 == _hash(self.path(layer))
        except (FileNotFoundError, ValidationError):
            return None
        return layer if intact else None

    def _make(self, key: str, make: Callable[[IO[bytes]], Packages]) -> Layer:
        # One name per key, and the lock is held: what a killed build left is overwritten here.
        partial = self._folder / f"{key}.partial"
        try:
            with partial.open("wb") as target:
                packages = make(target)
                target.flush()
                os.fsync(target.fileno())
            layer = Layer(sha256=_hash(partial), size_bytes=partial.stat().st_size, packages=packages)
            partial.replace(self.path(layer))
        finally:
            partial.unlink(missing_ok=True)
        write_atomically(self._folder / f"{key}.json", layer.model_dump_json(indent=1).encode())
        return layer


@contextmanager
def locked(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock file `path` alone; `waiting` is called if another process has it."""
    with path.open("ab") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def write_atomically(path: Path, data: bytes) -> None:
    """Replace `path` by `data` so that a reader, or a crash, sees the old bytes or the new ones."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.unlink(missing_ok=True)
        with partial.open("xb") as target:  # never through a link that lies there under this name
            target.write(data)
            target.flush()
            os.fsync(target.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _hash(path: Path) -> str:
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()

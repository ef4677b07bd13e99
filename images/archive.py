"""The archive that an engine loads, composed here so that the image's ID is known before loading.

An image's ID is the SHA-256 of its configuration, and that names its layers by their hashes. Nothing in
it depends on when, where or by which engine it was made.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from arsandbox.images.layers import CHUNK
from arsandbox.images.recipe import Recipe
from arsandbox.images.tarlayer import EPOCH, EPOCH_TEXT
from arsandbox.sandbox.errors import MachineError, StateError

# Names of processors: the kernel's, and the engine's.
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
WORKSPACE = "/workspace"
_REBUILD = "build again with --no-cache"


@dataclass(frozen=True)
class ArchiveLayer:
    """A layer's tar: its file, SHA-256 (64 hex digits) and bytes, and what made it (for `docker history`)."""

    path: Path
    sha256: str
    size_bytes: int
    made_by: str


@dataclass(frozen=True)
class Archive:
    """A loadable image. `config` is the JSON whose hash is the image's ID; `tag` its name when loaded."""

    config: bytes
    tag: str
    layers: tuple[ArchiveLayer, ...]

    @property
    def image_id(self) -> str:
        """The image's ID, "sha256:" and 64 hex digits."""
        return f"sha256:{hashlib.sha256(self.config).hexdigest()}"

    @property
    def size_bytes(self) -> int:
        """The bytes of all layers."""
        return sum(layer.size_bytes for layer in self.layers)

    def stream(self) -> Iterator[bytes]:
        """The archive in pieces of at most 1 MiB, read from the layers' files as it goes.

        Raises StateError if a layer's file is not what it was when the archive was composed.
        """
        config_name = f"{self.image_id.removeprefix('sha256:')}.json"
        names = [f"{layer.sha256}/layer.tar" for layer in self.layers]
        manifest = [{"Config": config_name, "RepoTags": [self.tag], "Layers": names}]
        yield from _entry(config_name, self.config)
        # The engine takes a name once: two equal layers share one entry.
        for name, layer in dict(zip(names, self.layers, strict=True)).items():
            yield _header(name, layer.size_bytes)
            yield from _content(layer)
            yield _padding(layer.size_bytes)
        yield from _entry("manifest.json", _json(manifest))
        yield b"\0" * (2 * tarfile.BLOCKSIZE)


def compose(recipe: Recipe, machine: str, layers: Sequence[ArchiveLayer]) -> Archive:
    """The image of `recipe` for `machine` ("x86_64" or "aarch64") out of `layers`, bottom first.

    Raises MachineError for another kind of machine.
    """
    config = {
        "architecture": architecture(machine),
        "os": "linux",
        "created": EPOCH_TEXT,
        "config": {
            "Cmd": ["python"],
            "Env": [f"{name}={value}" for name, value in sorted(recipe.environment.items())],
            "Labels": {"arsandbox.image": recipe.name, "arsandbox.recipe": recipe.digest},
            "User": recipe.user,
            "WorkingDir": WORKSPACE,
        },
        "history": [{"created": EPOCH_TEXT, "created_by": layer.made_by} for layer in layers],
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer.sha256}" for layer in layers]},
    }
    data = _json(config)
    # The tag only keeps the image from being pruned as unused; a run names it by its ID.
    tag = f"arsandbox/{recipe.name}:{hashlib.sha256(data).hexdigest()[:12]}"
    return Archive(config=data, tag=tag, layers=tuple(layers))


def architecture(machine: str) -> str:
    """The engine's name for `machine` (as `uname -m` says it). Raises MachineError if it has no images."""
    if machine not in ARCHITECTURES:
        raise MachineError(
            f"images cannot be built on {machine}",
            hint=f"supported processors: {', '.join(sorted(ARCHITECTURES))}",
        )
    return ARCHITECTURES[machine]


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = size, EPOCH, 0o644
    return info.tobuf(tarfile.PAX_FORMAT)


def _padding(size: int) -> bytes:
    return b"\0" * (-size % tarfile.BLOCKSIZE)


def _entry(name: str, data: bytes) -> Iterator[bytes]:
    yield _header(name, len(data)) + data + _padding(len(data))


def _content(layer: ArchiveLayer) -> Iterator[bytes]:
    digest, left = hashlib.sha256(), layer.size_bytes
    try:
        with layer.path.open("rb") as source:
            while left and (piece := source.read(min(CHUNK, left))):
                digest.update(piece)
                left -= len(piece)
                yield piece
    except OSError as error:
        raise StateError(f"the layer {layer.path} cannot be read: {error}", hint=_REBUILD) from error
    if left or digest.hexdigest() != layer.sha256:
        raise StateError(f"the layer {layer.path} changed while it was read", hint=_REBUILD)

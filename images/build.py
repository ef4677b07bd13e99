"""From a recipe to an image in the engine: three cached layers, one composed archive, one checked ID."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Annotated, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints

from arsandbox.images.archive import Archive, ArchiveLayer, architecture, compose
from arsandbox.images.bytecode import build_bytecode
from arsandbox.images.downloads import Transfer
from arsandbox.images.layers import Layer, LayerCache, Packages
from arsandbox.images.lockfile import locked_wheels
from arsandbox.images.recipe import Recipe, fingerprint
from arsandbox.images.rootfs import build_rootfs
from arsandbox.images.scratch import scratch_folder
from arsandbox.images.tarlayer import EPOCH
from arsandbox.images.wheels import borrowed, obtain_wheels, remove_wheels, write_wheels
from arsandbox.sandbox.errors import MachineError

# Part of every layer's key: a change in how layers are made must not find layers made the old way.
BUILDER = 2

# What the bottom layer depends on; recipes that agree in it share the layer.
_SYSTEM = {"suite", "python", "packages", "applets", "links", "linker_cache", "user"}

Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class BuiltImage(BaseModel):
    """An image that is in the engine.

    `digest` is the engine's image ID; `size_bytes` the sum of its layers, uncompressed; `recipe_sha256`
    says what it was built from; `packages` its Debian packages as (name, version) and `wheels` its wheels
    as (file name, SHA-256); `built_seconds` how long the build took, loading included. `reference` names the
    image in a registry, or the base that it was built on; `recipe_sha256` is empty where no recipe was used.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    digest: Digest
    size_bytes: int
    recipe_sha256: Sha256 | Literal[""]
    packages: Packages
    wheels: Packages = ()
    built_seconds: float
    reference: str = ""


def build_image(
    recipe: Recipe,
    *,
    cache: Path,
    load: Callable[[Iterable[bytes]], str],
    progress: Callable[[str], None],
    transfer: Transfer = lambda name, done, total: None,
    use_cache: bool = True,
) -> BuiltImage:
    """Build `recipe` for this machine's processor and load it.

    `cache` is the folder of finished layers; `load` streams the archive into the engine and returns the
    image ID that the engine reports; `progress` gets one line per step, `transfer` the bytes of downloads and
    of the loading; without `use_cache` every layer is made anew, which is how security updates come in. Raises
    MachineError if a tool is missing or fails, if the processor is not supported, if a wheel cannot be had, or
    if the engine reports another ID than the one computed here; RefusedError if a wheel is not the locked one;
    StateError if the cache cannot be written or is damaged while in use.
    """
    started = time.monotonic()
    machine = platform.machine()
    architecture(machine)  # refuse before any work
    store = LayerCache(cache)

    def layer(what: str, key: object, make: Callable[[IO[bytes], Path], Packages]) -> Layer:
        made = False

        def fresh(target: IO[bytes]) -> Packages:
            nonlocal made
            made = True
            progress(f"{what}: building")
            with scratch_folder(cache) as scratch:
                return make(target, scratch)

        parts = {"what": what, "builder": BUILDER, "epoch": EPOCH, "machine": machine, "parts": key}
        found = store.obtain(
            fingerprint(parts),
            fresh,
            use_cache=use_cache,
            waiting=lambda: progress(f"{what}: waiting for another build"),
        )
        origin = "built" if made else "from the cache"
        progress(f"{what}: {found.size_bytes / 1e6:.0f} MB, {origin}")
        return found

    downloads = cache / "wheels"

    def wheels_made(target: IO[bytes], scratch: Path) -> Packages:
        locked = locked_wheels(recipe.requirements, python=recipe.python, machine=machine)
        with borrowed(downloads):
            found = obtain_wheels(locked, python=recipe.python, machine=machine, store=downloads, transfer=transfer)
            write_wheels(found, recipe.python, target)
        return tuple(sorted((path.name, path.parent.name) for path in found))

    def bytecode_made(target: IO[bytes], scratch: Path) -> Packages:
        build_bytecode(recipe, machine, [store.path(rootfs), store.path(wheels)], target, scratch)
        return ()

    system = recipe.model_dump(mode="json", include=_SYSTEM)
    rootfs = layer("system", system, lambda target, scratch: build_rootfs(recipe, target, scratch, progress))
    wheels = layer("wheels", {"python": recipe.python, "lock": recipe.requirements}, wheels_made)
    bytecode = layer("bytecode", {"python": recipe.python, "of": [rootfs.sha256, wheels.sha256]}, bytecode_made)

    remove_wheels(downloads, wheels.packages)  # the layer has them now
    archive = compose(
        recipe,
        machine,
        [
            ArchiveLayer(store.path(rootfs), rootfs.sha256, rootfs.size_bytes, f"mmdebstrap {recipe.suite}"),
            ArchiveLayer(store.path(wheels), wheels.sha256, wheels.size_bytes, f"wheels of {recipe.wheels}"),
            ArchiveLayer(store.path(bytecode), bytecode.sha256, bytecode.size_bytes, "compileall"),
        ],
    )
    progress(f"loading {archive.image_id}")
    reported = load(_counted(archive, transfer))
    if reported != archive.image_id:
        raise MachineError(
            f"the engine calls the image {reported or 'nothing'}, computed was {archive.image_id}",
            hint="an engine with the containerd image store names images differently: turn that store off",
        )
    return BuiltImage(
        name=recipe.name,
        digest=archive.image_id,
        size_bytes=archive.size_bytes,
        recipe_sha256=recipe.digest,
        packages=rootfs.packages,
        wheels=wheels.packages,
        built_seconds=round(time.monotonic() - started, 3),
    )


def _counted(archive: Archive, transfer: Transfer) -> Iterator[bytes]:
    done, total = 0, archive.size_bytes
    for piece in archive.stream():
        yield piece
        done += len(piece)
        transfer("loading", min(done, total), total)

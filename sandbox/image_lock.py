"""Pin a project's images in its arsandbox.lock, and check that what is here is what the lock says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from arsandbox.images import contents
from arsandbox.images import lock as locks
from arsandbox.images.catalogue import PinnedImage
from arsandbox.images.recipe import available, load_recipe
from arsandbox.sandbox import settings
from arsandbox.sandbox.engines.port import Engine, ImageExchanger
from arsandbox.sandbox.errors import MachineError, RefusedError
from arsandbox.sandbox.events import Listener
from arsandbox.sandbox.imaging import catalogue
from arsandbox.sandbox.models import Model
from arsandbox.sandbox.repository import Repository

Standing = Literal["ok", "drifted", "damaged", "missing"]


class Checked(Model):
    """One image: how it stands, and in a few words why. `stale`: its recipe has changed since it was built."""

    name: str
    digest: str
    standing: Standing
    detail: str = ""
    stale: bool = False


def lock_images(path: Path, names: Sequence[str], engine: Engine) -> tuple[Path, tuple[PinnedImage, ...]]:
    """Write what `names` stand for here into the arsandbox.lock of the repository at `path`; returns the file.

    Without names: those that the lock has already, and the image of the committed config. Raises UsageError,
    MachineError for an image that is not here.
    """
    repository = Repository.open(path)
    file = repository.worktree / locks.FILE_NAME
    before = locks.read(file) or locks.ImageLock()
    if not names:
        project = settings.load_project(repository.objects, repository.head())
        names = sorted({*before.images, *([project.image] if project is not None else [])}) or ["cpu"]
    pinned = [catalogue().resolve(name) for name in names]
    for one in pinned:
        if not engine.has_image(one.digest):
            raise MachineError(
                f"image {one.name} ({one.digest[:19]}…) is pinned but not in the engine", hint=again(one)
            )
    locks.write(file, before.with_images(pinned))
    return file, tuple(pinned)


def verify_images(path: Path, names: Sequence[str], engine: Engine, listener: Listener) -> tuple[Checked, ...]:
    """Check `names`, or all that the working tree's arsandbox.lock or else the catalogue names, down to the bytes.

    Every layer is read out of the engine and hashed. Raises UsageError for a name that nothing knows.
    """
    lock = next((found for folder in _upwards(path) if (found := locks.read(folder / locks.FILE_NAME))), None)
    pinned = {one.name: one for one in catalogue().entries()}
    for name in names:
        if name not in pinned and (lock is None or name not in lock.images):
            catalogue().resolve(name)  # says what is wrong with it
    wanted = names or (sorted(lock.images) if lock is not None else sorted(pinned))
    return tuple(_checked(name, lock, pinned.get(name), engine, listener) for name in wanted)


def _checked(
    name: str, lock: locks.ImageLock | None, pinned: PinnedImage | None, engine: Engine, listener: Listener
) -> Checked:
    entry = lock.images.get(name) if lock is not None else None
    if pinned is None:
        digest = entry.digest if entry is not None else ""
        return Checked(name=name, digest=digest, standing="missing", detail=f"not here: arsandbox image build {name}")
    stale = bool(pinned.recipe_sha256) and name in available() and load_recipe(name).digest != pinned.recipe_sha256

    def result(standing: Standing, detail: str = "") -> Checked:
        return Checked(name=name, digest=pinned.digest, standing=standing, detail=detail, stale=stale)

    if entry is not None and entry.digest != pinned.digest:
        differing = {*entry.packages, *entry.wheels} ^ {*pinned.packages, *pinned.wheels}
        what = ", ".join(sorted({one for one, _ in differing})[:5])
        return result("drifted", f"the lock says {entry.digest[:19]}…{f' (differing: {what})' if what else ''}")
    if not engine.has_image(pinned.digest):
        return result("missing", again(pinned))
    if not isinstance(engine, ImageExchanger):
        return result("missing", f"the {engine.info().name} engine gives no images out")
    listener.note(f"{name}: reading every layer")
    try:
        damage = contents.damage(engine.export_image(pinned.digest), pinned.digest)
    except RefusedError as error:
        damage = error.message
    return result("damaged", f"{damage}: {again(pinned)}") if damage else result("ok")


def again(pinned: PinnedImage) -> str:
    """The command that brings the image back."""
    if pinned.reference and not pinned.recipe_sha256:
        return f"arsandbox image add {pinned.name} {pinned.reference}"
    base = f" --from {pinned.reference}" if pinned.reference else ""
    return f"arsandbox image build {pinned.name}{base}"


def _upwards(path: Path) -> list[Path]:
    """`path` and the folders above it, up to the repository's root."""
    found = []
    for folder in (path.absolute(), *path.absolute().parents):
        found.append(folder)
        if (folder / ".git").exists():
            break
    return found

"""The wheel layer: the wheels that a lock file's hashes allow, where Debian's Python looks."""

from __future__ import annotations

import fcntl
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from arsandbox.images.downloads import Transfer, fetch
from arsandbox.images.indexes import Indexes
from arsandbox.images.lockfile import LockedWheel
from arsandbox.images.tarlayer import Member, with_parents, write_layer
from arsandbox.sandbox.errors import MachineError

# Newest first: what comes first is preferred. Debian 12 has glibc 2.36.
_GLIBC_MINORS = range(36, 16, -1)

# A wheel's own list of its files speaks of the wheel, not of an image. Tests of libraries are dead weight.
_DROPPED = re.compile(r"(^|/)__pycache__(/|$)|(^|/)tests(/|$)|\.pyc$|\.dist-info/RECORD$")
# Of `data`, what no program reads; its `bin` and the wheel's scripts would need a first line of their own.
_DROPPED_DATA = re.compile(r"^(bin|share/(man|doc|info))(/|$)")

# Locked by builds while they read the store.
_IN_USE = "in-use"
# What the standard library says of damage, of a way of packing that it does not know, and of a password.
_NO_ZIP = (zipfile.BadZipFile, zlib.error, RuntimeError)


def packages_folder(python: str) -> str:
    """Where Debian's `python` ("MAJOR.MINOR") finds packages that are not Debian's, relative to the root."""
    return f"usr/local/lib/python{python}/dist-packages"


def platforms(machine: str) -> list[str]:
    """The wheel platform tags that run on Debian 12 on `machine` ("x86_64" or "aarch64"), best first."""
    return [*(f"manylinux_2_{minor}_{machine}" for minor in _GLIBC_MINORS), f"manylinux2014_{machine}"]


def obtain_wheels(
    locked: Sequence[LockedWheel], *, python: str, machine: str, store: Path, transfer: Transfer
) -> list[Path]:
    """The wheels of a lock file for `python` on `machine`, from the folder `store` or downloaded into it.

    In the store a wheel lies in a folder named by its hash, so that an interrupted download is found again.
    Raises MachineError where one cannot be had, RefusedError where its bytes are not the locked ones, StateError.
    """
    indexes = Indexes(python, platforms(machine))
    found = []
    for wheel in locked:
        place = indexes.locate(wheel)
        target = store / place.sha256 / PurePosixPath(place.file_name).name
        found.append(fetch(place.url, place.sha256, target, transfer=transfer))
    return found


@contextmanager
def borrowed(store: Path) -> Iterator[None]:
    """Hold the folder `store` together with others, so that no build removes what another one still reads."""
    store.mkdir(parents=True, exist_ok=True)
    with (store / _IN_USE).open("ab") as handle:
        fcntl.flock(handle, fcntl.LOCK_SH)
        yield


def remove_wheels(store: Path, done: Sequence[tuple[str, str]]) -> None:
    """Remove wheels, as (file name, SHA-256), from `store`, unless a build borrows it now: then a later one does."""
    store.mkdir(parents=True, exist_ok=True)
    with (store / _IN_USE).open("ab") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        for name, sha256 in done:
            for left in (store / sha256).glob(f"{name}*"):
                left.unlink(missing_ok=True)


def write_wheels(wheels: Sequence[Path], python: str, target: IO[bytes]) -> None:
    """Write the contents of `wheels` as a layer, straight from the archives: no installer, no copy on disk.

    Scripts are left out: they would start the host's Python. Raises MachineError for a wheel that is none.
    """
    with ExitStack() as stack:
        members: dict[str, Member] = {}
        for path in wheels:
            try:
                archive = stack.enter_context(zipfile.ZipFile(path))
                members.update((member.name, member) for member in _members(archive, python))
            except _NO_ZIP as error:
                raise MachineError(f"{path.name} is not a wheel: {error}") from error
        try:
            write_layer(target, with_parents(members.values()))
        except _NO_ZIP as error:  # what is packed is only seen while it is read
            raise MachineError(f"a wheel cannot be unpacked: {error}") from error


def _members(archive: zipfile.ZipFile, python: str) -> Iterator[Member]:
    for entry in archive.infolist():
        name = _place(entry.filename, python)
        if name is None or entry.is_dir():
            continue
        if entry.filename.startswith("/") or ".." in PurePosixPath(entry.filename).parts or "\\" in entry.filename:
            raise MachineError(f"{archive.filename} has an entry outside its folder: {entry.filename!r}")
        executable = (entry.external_attr >> 16) & 0o100
        yield Member(name, 0o755 if executable else 0o644, content=_opener(archive, entry), size=entry.file_size)


def _place(name: str, python: str) -> str | None:
    """Where an entry of a wheel belongs in the image; None where it is left out."""
    if _DROPPED.search(name):
        return None
    first, _, rest = name.partition("/")
    if not first.endswith(".data"):
        return f"{packages_folder(python)}/{name}"
    kind, _, inner = rest.partition("/")
    if kind in {"purelib", "platlib"}:
        return f"{packages_folder(python)}/{inner}"
    return f"usr/local/{inner}" if kind == "data" and not _DROPPED_DATA.match(inner) else None


def _opener(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Callable[[], IO[bytes]]:
    return lambda: archive.open(entry)

"""Layer tars that depend on nothing but names, modes and contents."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

# 2025-01-01T00:00:00Z. Every time in an image is this one.
EPOCH = 1_735_689_600
EPOCH_TEXT = "2025-01-01T00:00:00Z"


@dataclass(frozen=True)
class Member:
    """One entry of a layer.

    `name` is relative to the image's root without a leading slash; `mode` the permission bits;
    `target` a symbolic link's text; `content` opens a file's bytes (`size` of them). With neither it is
    a folder.
    """

    name: str
    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    target: str | None = None
    content: Callable[[], IO[bytes]] | None = None
    size: int = 0


def file_member(name: str, data: bytes, mode: int = 0o644) -> Member:
    """A file owned by root with the bytes `data`."""
    return Member(name, mode, content=lambda: io.BytesIO(data), size=len(data))


def link_member(name: str, target: str) -> Member:
    """A symbolic link to `target`."""
    return Member(name, 0o777, target=target)


def tree_members(folder: Path, prefix: str, keep: Callable[[str], bool]) -> Iterator[Member]:
    """Everything in `folder` whose relative path satisfies `keep`, under `prefix`, owned by root.

    Modes become 0755 or 0644, so that the host's umask does not show.
    """
    for parent, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = Path(parent) / name
            relative = path.relative_to(folder).as_posix()
            if not keep(relative):
                continue
            full = f"{prefix}/{relative}"
            if path.is_symlink():
                yield link_member(full, str(path.readlink()))
            elif path.is_dir():
                yield Member(full)
            else:
                status = path.stat()
                mode = 0o755 if status.st_mode & 0o100 else 0o644
                yield Member(full, mode, content=lambda p=path: p.open("rb"), size=status.st_size)  # type: ignore[misc]


def with_parents(members: Iterable[Member]) -> list[Member]:
    """`members` and every folder above them, which would otherwise get a time and mode of the engine's."""
    found = {member.name: member for member in members}
    for name in list(found):
        for parent in PurePosixPath(name).parents:
            if str(parent) != ".":
                found.setdefault(str(parent), Member(str(parent)))
    return list(found.values())


def write_layer(target: IO[bytes], members: Iterable[Member]) -> None:
    """Write `members` as a tar, sorted by name, with fixed times, no user names and no set-id bits."""
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for member in sorted(members, key=lambda one: one.name):
            info = tarfile.TarInfo(member.name)
            info.mtime = EPOCH
            info.mode = member.mode & 0o1777  # no file in a sandbox may change who runs it
            info.uid, info.gid = member.uid, member.gid
            if member.target is not None:
                info.type, info.linkname = tarfile.SYMTYPE, member.target
                archive.addfile(info)
            elif member.content is not None:
                info.size = member.size
                with member.content() as source:
                    archive.addfile(info, source)
            else:
                info.type = tarfile.DIRTYPE
                archive.addfile(info)

"""Becomes an ordinary user that exists for this process tree alone, and executes a command.

`python as_user.py NAME UID DIRECTORY… -- COMMAND…`, as root: in a mount namespace of its own, where
/etc/passwd knows NAME and where the directories can be reached even if they lie below one that only root may
enter. Nothing of the machine is changed. Not a test: test_embedded_user.py starts it.
"""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
from pathlib import Path

CLONE_NEWNS, MS_BIND, MS_REC, MS_PRIVATE = 0x20000, 0x1000, 0x4000, 0x40000


def call(name: str, *arguments: object) -> None:
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments) != 0:
        raise OSError(ctypes.get_errno(), f"{name}{arguments}")


def bind(source: str, target: str) -> None:
    call("mount", source.encode(), target.encode(), None, MS_BIND | MS_REC, None)


def main(name: str, uid: int, directories: list[str], command: list[str]) -> None:
    call("unshare", CLONE_NEWNS)
    call("mount", None, b"/", None, MS_REC | MS_PRIVATE, None)
    reached = [(os.open(path, os.O_PATH), path) for path in directories]
    closed = {top for path in directories if (top := closed_above(Path(path))) is not None}
    for top in sorted(closed):
        call("mount", b"tmpfs", str(top).encode(), b"tmpfs", 0, b"mode=0755")
    for descriptor, path in reached:
        if any(Path(path).is_relative_to(top) for top in closed):
            os.makedirs(path, exist_ok=True)
            bind(f"/proc/self/fd/{descriptor}", path)
        os.close(descriptor)
    home = tempfile.mkdtemp(prefix="ars-home-")
    os.chown(home, uid, uid)
    for file, row in (("/etc/passwd", f"{name}:x:{uid}:{uid}::{home}:/bin/sh\n"), ("/etc/group", f"{name}:x:{uid}:\n")):
        text = Path(file).read_text()
        with tempfile.NamedTemporaryFile("w", delete=False) as fresh:
            fresh.write(text + row)
        os.chmod(fresh.name, 0o644)
        bind(fresh.name, file)
        os.unlink(fresh.name)
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    kept = {
        key: os.environ[key] for key in ("PATH", "LANG", "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE") if key in os.environ
    }
    os.execve(command[0], command, {**kept, "HOME": home, "USER": name, "TMPDIR": home})


def closed_above(path: Path) -> Path | None:
    """The topmost directory above `path` that others than root may not enter."""
    for parent in reversed(path.parents):
        if not parent.stat().st_mode & 0o001:
            return parent
    return None


if __name__ == "__main__":
    end = sys.argv.index("--")
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:end], sys.argv[end + 1 :])

"""Where arsandbox keeps what it must remember, and the locks that say who is alive.

Ownership is a `flock` on a file, held for as long as the owner lives: whoever can take the lock
knows that the owner is dead. No heartbeats, no pid files.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from arsandbox.sandbox.errors import StateError, UsageError


def home() -> Path:
    """The state directory: `ARSANDBOX_HOME`, else `$XDG_STATE_HOME/arsandbox`, created 0700.

    Raises UsageError for a path that overlayfs options cannot hold, StateError if it cannot be made.
    """
    configured = os.environ.get("ARSANDBOX_HOME")
    if configured:
        path = Path(configured).expanduser().absolute()
    else:
        state = os.environ.get("XDG_STATE_HOME")
        path = (Path(state) if state else Path.home() / ".local" / "state") / "arsandbox"
    if re.search(r"[,:\\\s\"]", str(path)):
        raise UsageError(
            f"state directory {str(path)!r}: overlay mounts cannot hold spaces, commas, colons or backslashes",
            hint="set ARSANDBOX_HOME to a plain path",
        )
    make_private(path)
    return path


def make_private(path: Path) -> Path:
    """Create `path` and those of its parents that are missing, as 0700 directories; returns it.

    Raises StateError.
    """
    try:
        for place in (*reversed(path.parents), path):
            place.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise StateError(
            f"cannot create {path}: {error.strerror}",
            hint="free some space or set ARSANDBOX_HOME to a writable directory",
        ) from error
    return path


def repository_state(common_git_directory: Path) -> Path:
    """The folder of one repository (named by its `.git` directory), created when missing."""
    real = common_git_directory.resolve()
    name = real.parent.name if real.name == ".git" else real.name
    safe = re.sub(r"[^A-Za-z0-9_.-]", "-", name)[:40].strip(".-") or "repository"
    digest = hashlib.sha256(os.fsencode(real)).hexdigest()[:12]
    return make_private(home() / "repos" / f"{safe}-{digest}")


def machine_locks() -> Path:
    """Where leases of machine-wide things (uids, cores) are locked: shared by every home of root's."""
    return make_private(Path("/run/arsandbox")) if os.geteuid() == 0 else home()


def new_experiment_id() -> str:
    """An id that sorts by time and is safe as a file, volume and label name."""
    now = time.time()
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(now))
    return f"{stamp}-{int(now * 1000) % 1000:03d}-{secrets.token_hex(3)}"


def printable(text: str) -> str:
    """`text` without control sequences or invisible characters, for terminals and one-line messages."""
    return "".join(character for character in text if character.isprintable())


class Lock:
    """An exclusive `flock` on `path`; release with `close()` or by dying."""

    def __init__(self, descriptor: int, path: Path) -> None:
        self._descriptor = descriptor
        self.path = path

    @classmethod
    def try_take(cls, path: Path) -> Lock | None:
        """The lock, or None while somebody else holds it. Raises StateError if the file cannot be made."""
        while True:
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            except OSError as error:
                raise StateError(f"cannot open the lock {path}: {error.strerror}") from error
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                return None
            if _still_there(descriptor, path):
                return cls(descriptor, path)
            os.close(descriptor)  # its owner removed it between our open and our lock

    def close(self) -> None:
        """Give the lock back; the file stays."""
        # Closing alone gives it back when a program that another thread starts at this moment has come to its exec.
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        os.close(self._descriptor)

    def remove(self) -> None:
        """Remove the file, then give the lock back, so that no one can hold a lock on a removed name."""
        self.path.unlink(missing_ok=True)
        self.close()


def _still_there(descriptor: int, path: Path) -> bool:
    try:
        found = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    held = os.fstat(descriptor)
    return (found.st_dev, found.st_ino) == (held.st_dev, held.st_ino)


@contextmanager
def exclusive(path: Path, *, seconds: float = 600.0) -> Iterator[None]:
    """Hold the lock at `path`, waiting up to `seconds` for another process. Raises StateError."""
    end = time.monotonic() + seconds
    while (lock := Lock.try_take(path)) is None:
        if time.monotonic() > end:
            raise StateError(
                f"another arsandbox holds {path} for more than {seconds:.0f}s",
                hint="wait for it to end, or end it",
            )
        time.sleep(0.02)
    try:
        yield
    finally:
        lock.close()


@contextmanager
def owned(directory: Path) -> Iterator[None]:
    """Hold a lock on `directory` itself, which says that its owner lives; it goes with the process."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)

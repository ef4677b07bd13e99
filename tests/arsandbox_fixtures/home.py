"""The state directory that a session's tests against an engine share, and others that know its image."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import tempfile
from pathlib import Path

from arsandbox.sandbox.workspace.overlay import unmount_below

SECRET = "hunter2-" + os.urandom(8).hex()


@functools.cache
def session_home() -> Path:
    """A fresh state directory, ARSANDBOX_HOME of this process and all it starts; removed at exit."""
    path = Path(tempfile.mkdtemp(prefix="ars-"))
    atexit.register(remove_home, path)
    os.environ["ARSANDBOX_HOME"] = str(path)
    os.environ["ARSANDBOX_TEST_SECRET"] = SECRET  # must never be seen inside a sandbox
    os.environ.pop("ARSANDBOX_DEBUG", None)
    return path


def remove_home(path: Path) -> None:
    """Unmount what is mounted below `path`, and remove it."""
    unmount_below(path)
    shutil.rmtree(path, ignore_errors=True)


def new_home(prefix: str = "ars-") -> Path:
    """Another state directory, which knows the session's image; the caller removes it."""
    path = Path(tempfile.mkdtemp(prefix=prefix))
    shutil.copy(session_home() / "images.json", path / "images.json")
    return path

"""Upper layers of an overlay, as hostile as they come."""

from __future__ import annotations

import json
import os
import socket
import stat
from pathlib import Path

import pytest

from arsandbox.sandbox.models import ChangeSet
from arsandbox.sandbox.workspace.upper import Scan

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting an overlay needs root")


@pytest.fixture
def upper(tmp_path: Path) -> Path:
    """An empty upper layer."""
    place = tmp_path / "upper"
    place.mkdir()
    return place


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """An empty directory to copy to."""
    place = tmp_path / "target"
    place.mkdir()
    return place


def scan(upper: Path, lower: Path | None = None) -> dict[str, object]:
    """The change set of `upper` over `lower` (nothing by default), which must be one that records can hold."""
    empty = lower or upper.parent / "empty-lower"
    empty.mkdir(exist_ok=True)
    found = Scan(str(upper), [str(empty)]).result()
    json.dumps(found)
    ChangeSet.model_validate(found)
    return found


def make_hostile(place: Path) -> socket.socket:
    """One of everything that must neither be followed nor opened."""
    os.mkfifo(place / "fifo")
    listener = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(place)
    try:
        listener.bind("socket")
    finally:
        os.chdir(here)
    (place / "absolute").symlink_to("/etc/passwd")
    (place / "loop").symlink_to("loop")
    (place / "up").symlink_to("../../../../../etc")
    (place / "root").symlink_to("/")
    if os.geteuid() == 0:
        os.mknod(place / "device", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    return listener

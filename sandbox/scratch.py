"""Scratch directories outside of experiments: gone with their owner, or found by `arsandbox gc` if it was killed.

The owner holds a lock on the directory itself, which goes with the process.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from arsandbox.sandbox import state
from arsandbox.sandbox.workspace.upper import remove_tree

# Made a moment ago, a directory may not have its lock yet.
_SETTLED_S = 10.0
_PREFIX = "scratch-"


@contextmanager
def scratch(identity: str) -> Iterator[Path]:
    """An empty private directory of the state directory, removed with all that it holds at the end.

    `identity`, from `state.new_experiment_id`, also labels what its owner starts on an engine.
    """
    place = state.make_private(state.home() / f"{_PREFIX}{identity}")
    with state.owned(place):
        try:
            yield place
        finally:
            remove_tree(str(place))


def identities() -> set[str]:
    """Of the scratch directories that are there."""
    return {identity_of(path) for path in state.home().glob(f"{_PREFIX}*")}


def identity_of(place: Path) -> str:
    """The identity of the scratch directory `place`."""
    return place.name.removeprefix(_PREFIX)


def abandoned(*also: Path) -> Iterator[Path]:
    """Scratch directories, and those of `also`, that are ours and whose owners are dead, each held while it is seen."""
    for path in (*sorted(state.home().glob(f"{_PREFIX}*")), *also):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue  # gone meanwhile, or no directory: then it is none that we made
        try:
            found = os.fstat(descriptor)
            if found.st_uid != os.geteuid() or time.time() - found.st_ctime < _SETTLED_S:
                continue
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield path
        except BlockingIOError:
            continue  # its owner lives
        finally:
            os.close(descriptor)

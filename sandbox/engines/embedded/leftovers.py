"""What is announced before a sandbox exists, so that whoever comes next can remove what a dead controller left.

The kernel ends the processes of a dead controller's sandboxes; what can stay is a cgroup. A file names it and
its labels.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from arsandbox.sandbox import state
from arsandbox.sandbox.engines.embedded.cgroups import BoxCgroup, places
from arsandbox.sandbox.errors import NotRemovedError


@dataclass(frozen=True)
class Leftover:
    """One announced sandbox: the name of its cgroup, and its labels."""

    name: str
    labels: Mapping[str, str]

    @classmethod
    def announce(cls, name: str, labels: Mapping[str, str]) -> Leftover:
        """Write the file, whole or not at all. Raises StateError, OSError."""
        fresh = _directory() / f"{name}.new"
        fresh.write_text(json.dumps(dict(labels)))
        fresh.rename(_directory() / name)
        return cls(name, labels)

    def remove(self) -> None:
        """Remove what is left of it, then the file. Idempotent. Raises NotRemovedError where something stays."""
        if not BoxCgroup({controller: parent / self.name for controller, parent in places().items()}).remove():
            raise still_there(self.name)
        self.forget()

    def forget(self) -> None:
        """Remove the file."""
        (_directory() / self.name).unlink(missing_ok=True)


def announced() -> Iterator[Leftover]:
    """Every sandbox that was announced and not forgotten."""
    for path in sorted(_directory().iterdir()):
        if path.suffix == ".new":
            continue  # nothing was made before it had its name
        try:
            yield Leftover(path.name, json.loads(path.read_text()))
        except FileNotFoundError:
            continue  # just forgotten
        except ValueError:
            # Its name was written and its content was not: the machine lost power, and no cgroup outlived that.
            path.unlink(missing_ok=True)


def still_there(name: str) -> NotRemovedError:
    """The error for a cgroup `name` that cannot be removed."""
    return NotRemovedError(f"a process of the sandbox {name} does not end", hint="arsandbox gc, or restart the machine")


def _directory() -> Path:
    return state.make_private(state.home() / "embedded")

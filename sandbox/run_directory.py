"""One experiment's place on disk, announced by a lock for as long as its controller lives."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from arsandbox.sandbox import host, recovery, state
from arsandbox.sandbox.errors import NotRemovedError
from arsandbox.sandbox.record import Record


@dataclass(frozen=True)
class RunDirectory:
    """`scratch` goes when the run ends (whoever ends it), `keep` stays with the record."""

    id: str
    scratch: Path
    keep: Path

    def labels(self, longest_s: float) -> dict[str, str]:
        """Labels for everything that this run makes; it should be gone in `longest_s` seconds."""
        deadline = datetime.now(UTC) + timedelta(seconds=longest_s)
        return host.labels(self.id, deadline.isoformat(timespec="seconds"))


def measured_in(repository_state: Path, record: Record) -> Path:
    """The directory with what the run behind `record` left: logs, artifacts, the list of tests.

    A confirmation has no such run of its own: it stands on that of the pending experiment, which had the same code.
    """
    return repository_state / "experiments" / (record.confirms or record.id)


@contextmanager
def run_directory(repository_state: Path) -> Iterator[RunDirectory]:
    """A fresh id with its directories; the scratch directory and its mounts are removed at the end.

    After a NotRemovedError they stay for the next recovery: the engine still holds what bears the id.
    """
    identity = state.new_experiment_id()
    scratch = repository_state / "runs" / identity
    with recovery.entering_or_leaving(repository_state):
        state.make_private(scratch)
        lock = state.Lock.try_take(scratch / "lock")
    assert lock is not None  # noqa: S101 - the id is new, and nobody else looks at it before it is locked
    removing = True
    try:
        keep = state.make_private(repository_state / "experiments" / identity)
        yield RunDirectory(identity, scratch, keep)
    except NotRemovedError:
        removing = False
        raise
    finally:
        try:
            if removing:
                recovery.remove_run(scratch)
        finally:
            lock.close()  # also where something stays: whoever recovers must be able to take it

"""What a loop must know after its controller died: who it is, and each proposal before it runs."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from arsandbox.sandbox import state
from arsandbox.sandbox.errors import StateError, UsageError
from arsandbox.sandbox.models import Finding, Model, Verdict
from arsandbox.sandbox.proposers.port import EditConflict
from arsandbox.sandbox.record import StageRecord

_Document = TypeVar("_Document", bound=Model)


class Identity(Model):
    """A loop: where it started, and where its winners go."""

    id: str
    base: str
    tag: str
    propose: str


class Entry(Model):
    """One round's proposal, as it was made against `champion`; `verdict` where there is nothing to run.

    A `floating` diff was made against any commit of the promotion branch (a patch of a queue). `log` is what the
    proposer said, where it was kept; `stage` its sandbox's record, where it had one. `conflict` is set once the
    proposal went back since it did not fit: with a queue it is this very one, else the one that this one replaces.
    Of the replaced one no record up to `abandoned` (an experiment's id) counts any more.
    """

    number: int
    champion: str
    diff: str = ""
    floating: bool = False
    description: str = ""
    findings: tuple[Finding, ...] = ()
    verdict: Verdict | None = None
    reason: str = ""
    log: str = ""
    proposer: str = ""
    stage: StageRecord | None = None
    conflict: EditConflict | None = None
    abandoned: str = ""

    def refused(self, reason: str) -> Entry:
        """This proposal as one of which there is nothing to run."""
        return self.model_copy(update={"verdict": Verdict.REJECTED, "reason": reason})

    def instead_of(self, abandoned: str) -> Entry:
        """This proposal in place of one whose records end with the experiment `abandoned`."""
        return self.model_copy(update={"abandoned": abandoned})

    def went_back(self, conflict: EditConflict) -> Entry:
        """This proposal after it did not fit: it waits for the end of its queue."""
        return self.model_copy(update={"conflict": conflict})

    @property
    def patch(self) -> bytes:
        """The diff's bytes."""
        return base64.b64decode(self.diff)


class Journal:
    """The files of one loop below the repository's state directory, held by a lock while the loop lives."""

    def __init__(self, directory: Path, identity: Identity, lock: state.Lock) -> None:
        self._directory, self.identity, self._lock = directory, identity, lock

    @classmethod
    def begin(cls, repository_state: Path, identity: Identity) -> Journal:
        """A new loop."""
        directory = state.make_private(repository_state / "loops" / identity.id)
        journal = cls(directory, identity, _locked(directory))
        _write(directory / "loop.json", identity)
        return journal

    @classmethod
    def resume(cls, repository_state: Path, tag: str | None) -> Journal:
        """The latest loop (with that tag). Raises UsageError where there is none, or where it still runs."""
        file, identity = last(repository_state, tag)
        return cls(file.parent, identity, _locked(file.parent))

    def save(self, entry: Entry) -> None:
        """Keep a proposal; it is run again after a crash, and proposed only once."""
        _write(self._directory / f"{entry.number:06}.json", entry)

    def entries(self) -> list[Entry]:
        """Every proposal, by round."""
        return [_read(file, Entry) for file in sorted(self._directory.glob("[0-9]*.json"))]

    def close(self) -> None:
        """Let another controller resume."""
        self._lock.close()


def last(repository_state: Path, tag: str | None) -> tuple[Path, Identity]:
    """The latest loop (with that tag) and the file that says who it is. Raises UsageError where there is none."""
    for file in sorted((repository_state / "loops").glob("*/loop.json"), reverse=True):
        identity = _read(file, Identity)
        if tag in (None, identity.tag):
            return file, identity
    raise UsageError("--resume: there is no loop to go on with", hint="start one without --resume")


def _locked(directory: Path) -> state.Lock:
    lock = state.Lock.try_take(directory / "lock")
    if lock is None:
        raise UsageError("this loop is still running in another process", hint="end that one first")
    return lock


def _write(file: Path, document: Model) -> None:
    """Whole or not at all, also across a power cut."""
    new = file.with_suffix(".new")
    try:
        with new.open("w") as out:
            out.write(document.model_dump_json())
            out.flush()
            os.fsync(out.fileno())
        new.rename(file)
        folder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise StateError(f"cannot write {file}: {error.strerror}", hint="is the disk full?") from error


def _read(file: Path, kind: type[_Document]) -> _Document:
    try:
        return kind.model_validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        raise StateError(f"{file} cannot be read", hint="move it away; its round is then lost") from error

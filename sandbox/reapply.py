"""Put an edit onto another commit than the one it was made against: numbers by name, all else by three-way merge.

A candidate that was proposed while another one was measured is put onto what has won meanwhile. Nothing is guessed:
what both sides changed in different ways is a conflict.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from arsandbox.sandbox import candidate as candidates
from arsandbox.sandbox.candidate import Candidate, Edited
from arsandbox.sandbox.errors import ConflictError
from arsandbox.sandbox.objects import Change, ObjectStore, TreeEntry
from arsandbox.sandbox.python_numbers import renumbered
from arsandbox.sandbox.state import printable

_REGULAR = ("100644", "100755")
_MOST_NAMED = 3
_MOST_COMMITS = 64  # of a promotion branch, on which a patch is tried


@dataclass(frozen=True)
class Reapplied:
    """A candidate over another commit; `notes` say which numbers it sets that had been changed there."""

    candidate: Candidate
    notes: tuple[str, ...] = ()


def reapply(objects: ObjectStore, candidate: Candidate, onto: str) -> Reapplied:
    """The edit of `candidate` as a candidate over the commit `onto`. Raises ConflictError, RepositoryError.

    A number that a Python file assigns to a name is set by its name in the file of `onto`, whatever its value is there.
    What else both changed in a file is merged from three sides.
    """
    if candidate.base == onto:
        return Reapplied(candidate)
    theirs = {change.path: change for change in objects.changes(candidate.base, onto)}
    edits: list[Edited] = []
    notes: list[str] = []
    conflicts: list[str] = []
    for change in objects.changes(candidate.base, candidate.commit):
        other = theirs.get(change.path)
        if _crosses(change, theirs):
            conflicts.append(change.path)
        elif other is None:
            edits.append((change.path, change.new, change.new.mode if change.new else ""))
        elif other.new != change.new:
            merged = _merged(objects, change, other, notes)
            if merged is None:
                conflicts.append(change.path)
            else:
                edits.append(merged)
    if conflicts:
        raise ConflictError(
            f"the edit conflicts with {onto[:12]} in {_listed(conflicts)}",
            paths=tuple(map(printable, conflicts)),
            hint=f"make the edit anew on {onto[:12]}",
        )
    commit = objects.commit_edit(onto, edits) if edits else onto
    return Reapplied(candidates.from_commit(objects, onto, commit), tuple(notes))


def fitted(objects: ObjectStore, patch: bytes, onto: str, made_on: Iterable[str], *, name: str) -> Reapplied:
    """The candidate that `patch` makes of the commit `onto`, by way of the commit that it was made on.

    The patch is applied to the first of `made_on` that it fits, and the edit that it makes there is put onto `onto`.
    `name` is what the patch is called in messages. Raises ConflictError if it fits none of them, or if that edit
    conflicts with `onto`; UsageError for what is no patch at all.
    """
    first: ConflictError | None = None
    for commit in dict.fromkeys(made_on):
        try:
            made = candidates.from_diff(objects, commit, patch, name=name)
        except ConflictError as error:
            first = first or error
            continue
        return reapply(objects, made, onto)
    assert first is not None  # noqa: S101 - the caller names at least one commit
    raise first


def lineage(objects: ObjectStore, base: str, champion: str) -> Iterator[str]:
    """The commits that a patch of unknown origin may have been made on: the champion, the base, then those between."""
    yield champion
    yield base
    between = ["rev-list", "--first-parent", f"--max-count={_MOST_COMMITS}", f"{base}..{champion}"]
    yield from objects.git(*between).decode().split()


def _merged(objects: ObjectStore, ours: Change, theirs: Change, notes: list[str]) -> Edited | None:
    """One file that both changed, or None for a conflict."""
    base, edited, there = ours.old, ours.new, theirs.new
    if base is None or edited is None or there is None:
        return None  # added twice, or deleted by one and changed by the other
    if any(entry.mode not in _REGULAR for entry in (base, edited, there)):
        return None
    mode = edited.mode if edited.mode != base.mode else there.mode
    with objects.blobs() as blobs:
        contents = [blobs.read(entry.blob) for entry in (base, edited, there)]
    if not ours.path.endswith(".py"):
        merged = objects.merge_file(contents[2], contents[0], contents[1])
        return None if merged is None else (ours.path, merged, mode)
    found = renumbered(ours.path, contents[0], contents[1], contents[2], objects.merge_file)
    if found is None:
        return None
    notes.extend(map(printable, found.replaced))
    return (ours.path, found.source, mode)


def _crosses(change: Change, theirs: dict[str, Change]) -> bool:
    """Whether one side has a file where the other has a directory."""
    if change.new is None:
        return False
    parts = change.path.split("/")
    above = ("/".join(parts[:end]) for end in range(1, len(parts)))
    if any(_there(theirs.get(path)) for path in above):
        return True
    return any(path.startswith(f"{change.path}/") and _there(other) for path, other in theirs.items())


def _there(change: Change | None) -> TreeEntry | None:
    return change.new if change is not None else None


def _listed(paths: list[str]) -> str:
    named = ", ".join(map(printable, paths[:_MOST_NAMED]))
    return named if len(paths) <= _MOST_NAMED else f"{named} and {len(paths) - _MOST_NAMED} more files"

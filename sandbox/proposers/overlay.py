"""Read an edit out of a proposing sandbox: by our own scanner, never by a tool inside the overlay."""

from __future__ import annotations

import os
from pathlib import Path

from arsandbox.policies.edits import EditRules
from arsandbox.policies.model import Policy
from arsandbox.sandbox import candidate as candidates
from arsandbox.sandbox.candidate import Edited
from arsandbox.sandbox.engines.port import Sandbox
from arsandbox.sandbox.models import ChangedPath, ChangeSet, Finding
from arsandbox.sandbox.objects import ObjectStore, TreeEntry
from arsandbox.sandbox.workspace.layers import is_below
from arsandbox.sandbox.workspace.upper import shown

_MOST_BYTES, _MOST_FILES, _MOST_NAMED = 64 * 1024**2, 2_000, 20
_REGULAR = ("100644", "100755")


class Unusable(Exception):  # noqa: N818 - a proposal's refusal, not a failure of ours
    """What the sandbox left cannot be a candidate; the message says why, in words for a record."""


def read_edit(
    sandbox: Sandbox, champion: str, objects: ObjectStore, rules: EditRules, policy: Policy, scratch: Path
) -> tuple[bytes, tuple[Finding, ...]]:
    """The diff that an ended sandbox made of `champion`, and what it changed besides. Raises Unusable.

    Only editable paths count, and only regular files; modes are the champion's, 100644 for new files.
    """
    changes = sandbox.changes()
    if changes.incomplete or changes.truncated:
        raise Unusable("the proposer left so many files that its edit cannot be told")
    before = {shown(os.fsencode(e.path)): e for e in objects.entries(objects.tree_of(champion))}
    findings = _outside(changes, rules)
    wanted = [change for change in changes.paths if rules.is_editable(change.path)]
    for change in wanted:
        if change.kind in ("symlink", "other"):
            what = "a symlink" if change.kind == "symlink" else "a device, socket or FIFO"
            raise Unusable(f"{change.path}: is {what}; only regular files may be edited")
    edits = _deletions(changes, before, rules)
    files = [change.path for change in wanted if change.kind == "file"]
    target = scratch / "proposed"
    target.mkdir()
    most = min(_MOST_BYTES, max(4 * policy.patch_bytes, 1024**2))
    collected = sandbox.collect(files, target, most_bytes=most, most_files=_MOST_FILES)
    if collected.refused:
        raise Unusable(collected.refused[0])
    for path in files:
        if path not in collected.files:
            raise Unusable(f"{path}: could not be read")
        entry = before.get(path)
        mode = entry.mode if entry is not None and entry.mode in _REGULAR else _REGULAR[0]
        edits[path] = (path, (target / path).read_bytes(), mode)
    if not edits and findings:
        named = "; ".join(finding.detail for finding in findings[:3])
        raise Unusable(f"it changed nothing that is editable: {named}")
    return candidates.from_edits(objects, champion, tuple(edits.values())).diff, findings


def _outside(changes: ChangeSet, rules: EditRules) -> tuple[Finding, ...]:
    """A finding for each change that does not count; directories are named by what is in them."""
    others = [c for c in changes.paths if not rules.is_editable(c.path) and (c.kind != "directory" or _gone(c))]
    named = [
        Finding(code="outside_editable", detail=f"{change.change} {change.path}, which is not editable: left out")
        for change in others[:_MOST_NAMED]
    ]
    if len(others) > _MOST_NAMED:
        named.append(Finding(code="outside_editable", detail=f"{len(others)} changes outside the editable paths"))
    named += [Finding(code="left_behind", detail=refusal) for refusal in changes.refused[:_MOST_NAMED]]
    return tuple(named)


def _deletions(changes: ChangeSet, before: dict[str, TreeEntry], rules: EditRules) -> dict[str, Edited]:
    """The champion's editable files that are no longer there: deleted, or under something of another kind."""
    found: dict[str, Edited] = {}
    for change in changes.paths:
        if not _gone(change):
            continue
        for path, entry in before.items():
            if is_below(path, [change.path]) and rules.is_editable(entry.path):
                found[path] = (entry.path, None, "")
    return found


def _gone(change: ChangedPath) -> bool:
    return change.change in ("deleted", "replaced")

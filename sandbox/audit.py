"""Check that the ledger is whole and that promoted commits are what their records say."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

from arsandbox.sandbox.errors import RepositoryError, StateError
from arsandbox.sandbox.ledger import GENESIS, Ledger, shown
from arsandbox.sandbox.models import Record
from arsandbox.sandbox.objects import run_git
from arsandbox.sandbox.promotion import trailers
from arsandbox.sandbox.repository import Repository
from arsandbox.sandbox.workspace.upper import sha256_of

_OBJECT_ID = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")


def problems(repository: Repository) -> list[str]:
    """Every break of the chain, every promoted commit and every promotion branch that does not match the records."""
    with Ledger.open(repository.state) as ledger:
        found = list(ledger.problems())
        if found:
            return found
        try:
            records = ledger.latest()[::-1]
        except StateError as error:
            return [error.message]
        heads = {GENESIS}  # the ledger's head before each record, as promotion trailers name it
        doubtful = set()  # branches whose records are wrong already: what the branch holds says no more
        for record in records:
            if lines := _promotion_problems(repository, record, heads):
                doubtful.add(_branch(record))
            found += lines
            found += _patch_problems(repository, record)
            heads.add(record.ledger_hash)
        for branch in sorted({_branch(record) for record in records} - doubtful):
            found += _branch_problems(repository, ledger, branch, records)
    return found


def _branch(record: Record) -> str:
    return record.promotion.ref.removeprefix("refs/heads/") if record.promotion else record.branch


def _patch_problems(repository: Repository, record: Record) -> list[str]:
    stored = repository.state / "experiments" / record.id / "patch.diff"
    if stored.is_file() and sha256_of(stored) != record.patch.sha256 and record.rerun is None:
        return [f"record {record.id}: its stored patch was changed"]
    return []


def _promotion_problems(repository: Repository, record: Record, known: set[str]) -> list[str]:
    if record.promotion is None:
        return []
    commit = record.promotion.commit
    text = _commit_text(repository, commit)
    if text is None:
        return [f"record {record.id}: its promoted commit {shown(commit[:12])} is not in the repository"]
    found = trailers(text)
    lines = []
    if not text.startswith(f"tree {record.candidate_tree}\n"):
        lines.append(f"record {record.id}: commit {commit[:12]} has another tree than the measured one")
    if found.get("Arsandbox-Experiment") != record.id:
        lines.append(f"record {record.id}: commit {commit[:12]} lacks its trailer")
    if found.get("Arsandbox-Ledger") not in known:
        lines.append(f"record {record.id}: commit {commit[:12]} names a ledger head that this ledger never had")
    try:  # in our own store: its answer depends on no attributes of the user's
        patch = repository.objects.unified_diff(record.base_commit, commit)
    except RepositoryError:
        base = shown(record.base_commit[:12])
        return [*lines, f"record {record.id}: its base commit {base} is not in the repository"]
    if hashlib.sha256(patch).hexdigest() != record.patch.sha256:
        lines.append(f"record {record.id}: commit {commit[:12]} is another patch than the recorded one")
    return lines


def _branch_problems(repository: Repository, ledger: Ledger, branch: str, records: Sequence[Record]) -> list[str]:
    """A branch that left its last promotion, or that holds a promotion which no record names.

    Commits by hand on top are nobody's business, and so is what the bases of the experiments hold. A branch
    that is gone has nothing to check.
    """
    tip = repository.branch_tip(branch)
    if tip is None:
        return []
    here = [record for record in records if _branch(record) == branch]
    promoted = {record.id: record.promotion.commit if record.promotion else "" for record in records}
    lines = []
    if last := [record.id for record in here if record.promotion][-1:]:
        commit = promoted[last[0]]
        if not _is_ancestor(repository, commit, tip):
            lines.append(f"record {last[0]}: its promoted commit {commit[:12]} is no longer on {branch}")
    bases = {f"^{record.base_commit}\n" for record in here if _OBJECT_ID.fullmatch(record.base_commit)}
    listed = run_git(
        repository.common_directory,
        ["rev-list", "--ignore-missing", "--first-parent", "--fixed-strings", "--grep=Arsandbox-Experiment: ",
         "--stdin"],
        stdin=f"{tip}\n{''.join(sorted(bases))}".encode(),
        check=False,
    )  # fmt: skip
    if listed.returncode != 0:
        return [*lines, f"{branch}: its commits cannot be read"]
    for commit in listed.stdout.decode().split():
        named = trailers(_commit_text(repository, commit) or "").get("Arsandbox-Experiment")
        if named is None:
            continue
        if named in promoted and promoted[named] != commit:
            lines.append(f"{branch}: commit {commit[:12]} is no promotion that record {named} names")
        elif named not in promoted and not ledger.knows(named):  # asked now: it may have ended meanwhile
            lines.append(f"{branch}: commit {commit[:12]} names experiment {shown(named)}, which has no record")
    return lines


def _commit_text(repository: Repository, commit: str) -> str | None:
    """The commit as the user's repository stores it, or None; our own store would still hold a lost one."""
    if not _OBJECT_ID.fullmatch(commit):
        return None
    done = run_git(repository.common_directory, ["cat-file", "commit", commit], check=False)
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else None


def _is_ancestor(repository: Repository, older: str, newer: str) -> bool:
    done = run_git(repository.common_directory, ["merge-base", "--is-ancestor", older, newer], check=False)
    return done.returncode == 0

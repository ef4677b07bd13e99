"""Put a winner on its promotion branch: a commit object by plumbing, then compare-and-swap of the ref.

No work tree, index, hook or filter is involved, and the user's current branch is never moved.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass

from arsandbox.sandbox.errors import RepositoryError
from arsandbox.sandbox.git_process import SAFE_OPTIONS, git_environment, run_git
from arsandbox.sandbox.record import Record
from arsandbox.sandbox.repository import Repository

ABSENT = "0" * 40  # what `Prepared.old` says of a branch that did not exist (64 zeros with SHA-256)


@dataclass(frozen=True)
class Prepared:
    """A promotion commit that exists as an object, and the ref that shall move from `old` to it."""

    commit: str
    ref: str
    old: str


def prepare(
    repository: Repository,
    record: Record,
    *,
    candidate: str,
    branch: str,
    parent: str,
    old: str | None,
    ledger_head: str,
) -> Prepared:
    """Write the promotion commit's objects into the user's repository; no ref moves yet.

    Its tree is the measured tree, its parent `parent`; its trailers name the experiment. `old` is the
    branch's tip that the decision was made against (None: there was no branch); the tip is not read
    again. The same record gives the same commit. Raises RepositoryError.
    """
    store = repository.objects
    date = f"{record.started_at[:19].replace('T', ' ')} +0000"
    environment = {
        **git_environment(store.directory),
        "GIT_AUTHOR_DATE": date,
        "GIT_COMMITTER_DATE": date,
    }
    made = subprocess.run(
        ["git", *SAFE_OPTIONS, "commit-tree", "-p", parent, "-F", "-", store.tree_of(candidate)],
        input=message(record, ledger_head).encode(),
        capture_output=True,
        check=False,
        cwd="/",
        env=environment,
    )
    if made.returncode != 0:
        raise RepositoryError(f"git commit-tree failed: {made.stderr.decode(errors='replace').strip()}")
    commit = made.stdout.decode().strip()
    pack = store.git(
        "pack-objects", "--revs", "--stdout", "--quiet", "--thin",
        stdin=f"{commit}\n^{parent}\n".encode(),
    )  # fmt: skip
    run_git(repository.common_directory, ["unpack-objects", "-q"], stdin=pack)
    return Prepared(commit, f"refs/heads/{branch}", old or "0" * len(commit))


def publish(repository: Repository, prepared: Prepared) -> bool:
    """Move the ref if it still is where it was; True when it now names the commit. Idempotent.

    A symbolic ref, which would carry the move to another branch, is left alone. Raises RepositoryError where
    git cannot move a ref that nobody else moved, for a stale lock file or a branch of the same name as its folder.
    """
    branch = prepared.ref.removeprefix("refs/heads/")
    if repository.points_to(prepared.ref):
        return False
    if repository.branch_tip(branch) == prepared.commit:
        return True
    if branch in repository.checked_out_branches():
        return False
    done = run_git(
        repository.common_directory,
        [
            "update-ref",
            "--no-deref",
            "--create-reflog",
            "-m",
            "arsandbox: promote",
            prepared.ref,
            prepared.commit,
            prepared.old,
        ],
        check=False,
    )
    tip = repository.branch_tip(branch)
    # A controller that was killed may have left the very same move to a git that lived a moment longer.
    if done.returncode == 0 or tip == prepared.commit:
        return True
    if tip == prepared.old or (tip is None and not prepared.old.strip("0")):
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        raise RepositoryError(
            f"cannot move {prepared.ref}: {lines[0].removeprefix('fatal: ')}",
            hint="remove a lock file that no living git holds; for a name that is taken choose another --tag",
        )
    return False


def preferred_branch(layout: str, tag: str) -> str:
    """The promotion branch by the layout's convention, whether it can be used or not."""
    return f"{layout}/{tag}"


def branch_name(repository: Repository, *, layout: str, tag: str) -> str:
    """`<layout>/<tag>`, or `arsandbox/<tag>` when that one is checked out somewhere (it is never moved)."""
    checked_out = repository.checked_out_branches()
    for name in (preferred_branch(layout, tag), f"arsandbox/{tag}", f"arsandbox/{tag}-promoted"):
        if name not in checked_out:
            return name
    raise RepositoryError(
        f"every promotion branch for the tag {tag!r} is checked out", hint="choose another with --tag NAME"
    )


def trailers(text: str) -> dict[str, str]:
    """The `Arsandbox-…` trailers of a commit's text."""
    rows = (line.partition(": ") for line in text.splitlines() if line.startswith("Arsandbox-"))
    return {name: value for name, _, value in rows}


def message(record: Record, ledger_head: str) -> str:
    """The promotion commit's message; its trailers pin the record, and the ledger as it was before it."""
    metric = record.metric
    title = " ".join(record.description.split())[:60] or f"{metric.name} {metric.value:.6g}"
    value = "none" if metric.value is None else _exact(metric.value)
    baseline = _exact(record.baseline.value) if record.baseline else "none"
    return (
        f"{title}\n\n{record.reason}\n\n"
        f"Arsandbox-Experiment: {record.id}\n"
        f"Arsandbox-Metric: {metric.name}={value}\n"
        f"Arsandbox-Baseline: {baseline}\n"
        f"Arsandbox-Image: {record.image.name}@{record.image.digest}\n"
        f"Arsandbox-Ledger: {ledger_head}\n"
    )


def _exact(value: float) -> str:
    """`value` with six decimals where they say it all, else with every digit that tells it apart."""
    short = f"{value:.6f}"
    return short if float(short) == value else repr(value)

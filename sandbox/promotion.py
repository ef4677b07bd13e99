"""Put a winner on its promotion branch: a commit object by plumbing, then compare-and-swap of the ref.

No work tree, index, hook or filter is involved, and the user's current branch is never moved.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass

from arsandbox.sandbox.errors import RepositoryError
from arsandbox.sandbox.models import Record
from arsandbox.sandbox.objects import SAFE_OPTIONS, git_environment, run_git
from arsandbox.sandbox.repository import Repository

ABSENT = "0" * 40


@dataclass(frozen=True)
class Prepared:
    """A promotion commit that exists as an object, and the ref that shall move from `old` to it."""

    commit: str
    ref: str
    old: str


def prepare(
    repository: Repository, record: Record, *, candidate: str, branch: str, base: str, ledger_head: str
) -> Prepared:
    """Write the promotion commit's objects into the user's repository; no ref moves yet.

    Its tree is the measured tree; its parent the branch's tip, or `base` where that already holds the
    tip; its trailers name the experiment. The same record gives the same commit. Raises RepositoryError.
    """
    tip = repository.branch_tip(branch)
    parent = base if tip is None or repository.is_ancestor(tip, base) else tip
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
    return Prepared(commit, f"refs/heads/{branch}", tip or ABSENT)


def publish(repository: Repository, prepared: Prepared) -> bool:
    """Move the ref if it still is where it was; True when it now names the commit. Idempotent."""
    branch = prepared.ref.removeprefix("refs/heads/")
    if repository.branch_tip(branch) == prepared.commit:
        return True
    if branch in repository.checked_out_branches():
        return False
    done = run_git(
        repository.common_directory,
        [
            "update-ref",
            "--create-reflog",
            "-m",
            "arsandbox: promote",
            prepared.ref,
            prepared.commit,
            prepared.old,
        ],
        check=False,
    )
    return done.returncode == 0


def branch_name(repository: Repository, *, layout: str, tag: str) -> str:
    """`<layout>/<tag>`, or `arsandbox/<tag>` when that one is checked out somewhere (it is never moved)."""
    checked_out = repository.checked_out_branches()
    for name in (f"{layout}/{tag}", f"arsandbox/{tag}", f"arsandbox/{tag}-promoted"):
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
    baseline = f"{record.baseline.value:.6f}" if record.baseline else "none"
    return (
        f"{title}\n\n{record.reason}\n\n"
        f"Arsandbox-Experiment: {record.id}\n"
        f"Arsandbox-Metric: {metric.name}={metric.value:.6f}\n"
        f"Arsandbox-Baseline: {baseline}\n"
        f"Arsandbox-Image: {record.image.name}@{record.image.digest}\n"
        f"Arsandbox-Ledger: {ledger_head}\n"
    )

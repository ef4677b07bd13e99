"""Check that the ledger is whole and that promoted commits are what their records say."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from arsandbox.sandbox.errors import StateError
from arsandbox.sandbox.git_process import run_git
from arsandbox.sandbox.ledger import GENESIS, Ledger, shown
from arsandbox.sandbox.object_reader import ObjectReader, patch_digests
from arsandbox.sandbox.promotion import trailers
from arsandbox.sandbox.record import Promotion
from arsandbox.sandbox.repository import Repository
from arsandbox.sandbox.workspace.upper import sha256_of

_OBJECT_ID = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")


class _Section(BaseModel):
    """Of a part of a record, what is compared here; reading whole records takes most of an audit's time."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class _PatchDigest(_Section):
    sha256: str


class _Audited(_Section):
    id: str
    branch: str
    base_commit: str
    candidate_tree: str
    patch: _PatchDigest
    promotion: Promotion | None = None
    rerun: dict[str, object] | None = None
    ledger_hash: str


def problems(repository: Repository) -> list[str]:
    """Every break of the chain, every promoted commit and every promotion branch that does not match the records."""
    with Ledger.open(repository.state) as ledger:
        found = list(ledger.problems())
        if found:
            return found
        try:
            records = [_Audited.model_validate_json(document) for document in ledger.documents()]
        except ValidationError as error:
            return [f"a record cannot be read: {error.errors(include_url=False)[0]['msg']}"]
        except StateError as error:
            return [error.message]
        promoted = _Promoted.read(repository, records)
        heads = {GENESIS}  # the ledger's head before each record, as promotion trailers name it
        doubtful = set()  # branches whose records are wrong already: what the branch holds says no more
        for record in records:
            if lines := _promotion_problems(promoted, record, heads):
                doubtful.add(_branch(record))
            found += lines
            found += _patch_problems(repository, record)
            heads.add(record.ledger_hash)
        for branch in sorted({_branch(record) for record in records} - doubtful):
            found += _branch_problems(repository, ledger, branch, records)
    return found


def _branch(record: _Audited) -> str:
    return record.promotion.ref.removeprefix("refs/heads/") if record.promotion else record.branch


def _patch_problems(repository: Repository, record: _Audited) -> list[str]:
    stored = repository.state / "experiments" / record.id / "patch.diff"
    if stored.is_file() and sha256_of(stored) != record.patch.sha256 and record.rerun is None:
        return [f"record {record.id}: its stored patch was changed"]
    return []


@dataclass(frozen=True)
class _Promoted:
    """What the promoted commits are: `texts` as the user's repository stores them, by commit id; `trees` of the
    base commits; `patches` from a base's tree to a promoted commit's, by digest."""

    texts: dict[str, str]
    trees: dict[str, str]
    patches: dict[tuple[str, str], str]

    @classmethod
    def read(cls, repository: Repository, records: Sequence[_Audited]) -> _Promoted:
        promotions = [(record, record.promotion.commit) for record in records if record.promotion]
        # From the user's repository: our own store would still hold a commit that the user lost.
        texts = _commit_texts(repository.common_directory, (commit for _, commit in promotions))
        # From our own store: its answer depends on no attributes of the user's.
        ours = repository.objects.directory
        bases = _commit_texts(ours, (record.base_commit for record, _ in promotions))
        trees = {commit: _tree(text) for commit, text in bases.items()}
        pairs = [
            (trees[record.base_commit], _tree(texts[commit]))
            for record, commit in promotions
            if record.base_commit in trees and _OBJECT_ID.fullmatch(_tree(texts.get(commit, "")))
        ]
        return cls(texts, trees, patch_digests(ours, pairs))


def _tree(commit_text: str) -> str:
    """What a commit's first line names as its tree: an id, unless the commit was crafted."""
    return commit_text.partition("\n")[0].removeprefix("tree ")


def _promotion_problems(promoted: _Promoted, record: _Audited, known: set[str]) -> list[str]:
    if record.promotion is None:
        return []
    commit = record.promotion.commit
    text = promoted.texts.get(commit)
    if text is None:
        return [f"record {record.id}: its promoted commit {shown(commit[:12])} is not in the repository"]
    found = trailers(text)
    lines = []
    if _tree(text) != record.candidate_tree:
        lines.append(f"record {record.id}: commit {commit[:12]} has another tree than the measured one")
    if found.get("Arsandbox-Experiment") != record.id:
        lines.append(f"record {record.id}: commit {commit[:12]} lacks its trailer")
    if found.get("Arsandbox-Ledger") not in known:
        lines.append(f"record {record.id}: commit {commit[:12]} names a ledger head that this ledger never had")
    base = promoted.trees.get(record.base_commit)
    if base is None:
        named = shown(record.base_commit[:12])
        return [*lines, f"record {record.id}: its base commit {named} is not in the repository"]
    if promoted.patches.get((base, _tree(text))) != record.patch.sha256:
        lines.append(f"record {record.id}: commit {commit[:12]} is another patch than the recorded one")
    return lines


def _branch_problems(repository: Repository, ledger: Ledger, branch: str, records: Sequence[_Audited]) -> list[str]:
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
    for commit, text in _commit_texts(repository.common_directory, listed.stdout.decode().split()).items():
        named = trailers(text).get("Arsandbox-Experiment")
        if named is None:
            continue
        if named in promoted and promoted[named] != commit:
            lines.append(f"{branch}: commit {commit[:12]} is no promotion that record {named} names")
        elif named not in promoted and not ledger.knows(named):  # asked now: it may have ended meanwhile
            lines.append(f"{branch}: commit {commit[:12]} names experiment {shown(named)}, which has no record")
    return lines


def _commit_texts(git_directory: Path, commits: Iterable[str]) -> dict[str, str]:
    """Each commit's text as the repository stores it, by id; those that it lacks are left out."""
    found = {}
    with ObjectReader.open(git_directory) as reader:
        for commit in commits:
            if _OBJECT_ID.fullmatch(commit) and (text := reader.find(commit, "commit")) is not None:
                found[commit] = text.decode("utf-8", "replace")
    return found


def _is_ancestor(repository: Repository, older: str, newer: str) -> bool:
    done = run_git(repository.common_directory, ["merge-base", "--is-ancestor", older, newer], check=False)
    return done.returncode == 0

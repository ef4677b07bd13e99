"""Proposers that need no sandbox: the queue of patches and the sweep over numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from arsandbox.sandbox.errors import UsageError
from arsandbox.sandbox.models import Verdict
from arsandbox.sandbox.proposers.patches import Patches
from arsandbox.sandbox.proposers.port import Brief
from arsandbox.sandbox.repository import Repository


@pytest.fixture
def opened(make_repo) -> Repository:
    return Repository.open(make_repo({"train.py": "a = 1\nb = 2\nc = 3\n"}).path)


def patch(old: str, new: str) -> str:
    return f"--- a/train.py\n+++ b/train.py\n@@ -1,3 +1,3 @@\n-{old}\n+{new}\n b = 2\n c = 3\n"


def test_patches_come_by_name_each_once_and_what_does_not_apply_is_refused(opened: Repository, tmp_path: Path) -> None:
    queue = tmp_path / "queue"
    queue.mkdir()
    (queue / "2.patch").write_text(patch("a = 1", "a = 2"))
    (queue / "1.diff").write_text(patch("a = 7", "a = 8"))
    (queue / "3.patch").mkdir()
    (queue / "notes.txt").write_text("not a patch")
    proposer = Patches(queue, opened.objects, ())
    brief = Brief(round=1, champion=opened.head())
    found = [proposer.propose(brief) for _ in range(4)]
    first, second, third, end = found
    assert first is not None and second is not None and third is not None and end is None
    assert first.verdict is Verdict.REJECTED and "does not apply" in first.reason
    assert second.verdict is None and b"+a = 2" in second.diff and second.description.startswith("2.patch [")
    assert third.verdict is Verdict.REJECTED and "not a regular file" in third.reason
    (queue / "0.patch").write_text(patch("a = 1", "a = 3"))  # a queue that grows
    late = proposer.propose(brief)
    assert late is not None and b"+a = 3" in late.diff


def test_after_a_resume_only_what_has_no_verdict_is_offered_again(
    opened: Repository, tmp_path: Path, make_record
) -> None:
    queue = tmp_path / "queue"
    queue.mkdir()
    for number in (1, 2, 3):
        (queue / f"{number}.patch").write_text(patch("a = 1", f"a = {number + 5}"))
    brief = Brief(round=1, champion=opened.head())
    before = Patches(queue, opened.objects, ())
    told = [before.propose(brief) for _ in range(2)]
    past = [
        make_record(description=proposal.description, verdict=verdict)
        for proposal, verdict in zip(told, (Verdict.DISCARD, Verdict.INTERRUPTED), strict=True)
        if proposal is not None
    ]
    after = Patches(queue, opened.objects, past)
    rest = [proposal.description[:7] for proposal in iter(lambda: after.propose(brief), None) if proposal]
    assert rest == ["2.patch", "3.patch"]


def test_a_directory_that_is_not_there_is_named(opened: Repository, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such directory"):
        Patches(tmp_path / "none", opened.objects, ())

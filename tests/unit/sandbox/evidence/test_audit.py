"""The audit of a repository: its ledger against its commits."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from arsandbox.sandbox import audit
from arsandbox.sandbox.errors import ArsandboxError
from arsandbox.sandbox.evidence.check import check_bundle
from arsandbox.sandbox.ledger import Ledger, record_hash
from arsandbox.sandbox.record import Promotion
from arsandbox_fixtures.evidence import (
    BASE_ID,
    BRANCH,
    LOSER,
    SECOND,
    WINNER,
    World,
)


@pytest.fixture
def tamper(world: World) -> Iterator[Callable[..., None]]:
    """Change the ledger's database behind its back."""

    def change(*statements: str, parameters: tuple[object, ...] = ()) -> None:
        connection = sqlite3.connect(world.repository.state / "ledger.db")
        try:
            for name in ("records_stay", "records_remain"):
                connection.execute(f"DROP TRIGGER IF EXISTS {name}")
            for statement in statements:
                connection.execute(statement, parameters)
            connection.commit()
        finally:
            connection.close()

    yield change


def rewrite(tamper: Callable[..., None], world: World, identity: str, **changes: Any) -> None:
    """The record says something else, and every hash from it on is made to fit."""
    with Ledger.open(world.repository.state) as ledger:
        records = ledger.latest()[::-1]
    previous = "0" * 64
    for record in records:
        if record.id == identity:
            record = record.model_copy(update=changes)
        record = record.model_copy(update={"previous_hash": previous})
        record = record.model_copy(update={"ledger_hash": record_hash(record)})
        previous = record.ledger_hash
        tamper(
            "UPDATE records SET document = ?, hash = ?, tree = ? WHERE id = ?",
            parameters=(record.model_dump_json(), record.ledger_hash, record.candidate_tree, record.id),
        )
    with Ledger.open(world.repository.state) as ledger:
        assert list(ledger.problems()) == []


def commit_like(world: World, identity: str, *, tree: str | None = None, message: str | None = None) -> str:
    """A commit that looks like the promoted one but for what is given."""
    found = world.records[identity].promotion
    assert found is not None
    git = world.repository.objects.git
    text = git("log", "-1", "--format=%B", found.commit).decode().strip() + "\n"
    environment = {
        **os.environ, "GIT_DIR": str(world.repository.common_directory),
        "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b",
    }  # fmt: skip
    parent = git("rev-parse", f"{found.commit}^").decode().strip()
    done = subprocess.run(
        ["git", "commit-tree", "-p", parent, "-F", "-", tree or world.records[identity].candidate_tree],
        input=message if message is not None else text, text=True, capture_output=True, check=True, env=environment,
    )  # fmt: skip
    return done.stdout.strip()


def tree_with(world: World, content: str) -> str:
    git = ["git", "--git-dir", str(world.repository.common_directory)]
    blob = subprocess.run(
        [*git, "hash-object", "-w", "--stdin"], input=content, text=True, capture_output=True, check=True
    ).stdout.strip()
    made = subprocess.run(
        [*git, "mktree"], input=f"100644 blob {blob}\ttrain.py\n", text=True, capture_output=True, check=True
    )
    return made.stdout.strip()


def point_branch_at(world: World, commit: str) -> None:
    git = ["git", "--git-dir", str(world.repository.common_directory)]
    subprocess.run([*git, "update-ref", f"refs/heads/{BRANCH}", commit], check=True)


def test_a_whole_ledger_and_its_commits_have_no_problems(world: World) -> None:
    assert audit.problems(world.repository) == []
    shutil.rmtree(world.files(LOSER))  # what may be cleaned up is not missed
    assert audit.problems(world.repository) == []


def test_a_record_that_names_a_commit_without_its_trailer_is_found(world: World, tamper: Callable[..., None]) -> None:
    forged = commit_like(world, SECOND, message="no trailers\n")
    rewrite(tamper, world, SECOND, promotion=Promotion(commit=forged, ref=f"refs/heads/{BRANCH}"))
    found = audit.problems(world.repository)
    assert f"record {SECOND}: commit {forged[:12]} lacks its trailer" in found
    assert any("names a ledger head that this ledger never had" in line for line in found)


def test_a_record_that_names_a_commit_with_another_tree_is_found(world: World, tamper: Callable[..., None]) -> None:
    forged = commit_like(world, SECOND, tree=tree_with(world, "import evil\n"))
    rewrite(tamper, world, SECOND, promotion=Promotion(commit=forged, ref=f"refs/heads/{BRANCH}"))
    found = audit.problems(world.repository)
    assert f"record {SECOND}: commit {forged[:12]} has another tree than the measured one" in found
    assert f"record {SECOND}: commit {forged[:12]} is another patch than the recorded one" in found


def test_tree_and_patch_of_a_record_must_both_fit_its_commit(world: World, tamper: Callable[..., None]) -> None:
    tree = tree_with(world, "import evil\n")
    forged = commit_like(world, SECOND, tree=tree)
    promoted = Promotion(commit=forged, ref=f"refs/heads/{BRANCH}")
    rewrite(tamper, world, SECOND, promotion=promoted, candidate_tree=tree)
    found = audit.problems(world.repository)
    assert found == [f"record {SECOND}: commit {forged[:12]} is another patch than the recorded one"]


def test_a_rewritten_history_does_not_fit_the_heads_that_commits_name(
    world: World, tamper: Callable[..., None]
) -> None:
    """All hashes of the ledger were made anew, but git pins what the ledger was at each promotion."""
    rewrite(tamper, world, BASE_ID, description="something else")
    found = audit.problems(world.repository)
    assert len(found) == 2 and all("names a ledger head that this ledger never had" in line for line in found)


def test_a_commit_that_is_gone_is_found(world: World, tamper: Callable[..., None]) -> None:
    rewrite(tamper, world, SECOND, promotion=Promotion(commit="1" * 40, ref=f"refs/heads/{BRANCH}"))
    assert audit.problems(world.repository) == [
        f"record {SECOND}: its promoted commit {'1' * 12} is not in the repository"
    ]


def test_a_base_commit_that_is_gone_is_an_answer(world: World, tamper: Callable[..., None]) -> None:
    rewrite(tamper, world, SECOND, base_commit="1" * 40)
    found = audit.problems(world.repository)
    assert found and all(SECOND in line for line in found)


@pytest.mark.parametrize("what", ["tree", "trailer"])
def test_a_promotion_branch_that_was_moved_to_a_forgery_is_found(what: str, world: World) -> None:
    """The promoted commit is still an object, but whoever checks the branch out gets something else."""
    if what == "tree":
        forged = commit_like(world, SECOND, tree=tree_with(world, "import evil\n"))
    else:
        forged = commit_like(world, SECOND, message="nothing said\n")
    point_branch_at(world, forged)
    found = audit.problems(world.repository)
    assert found and any(BRANCH in line or forged[:12] in line for line in found), found


def test_commits_on_top_of_a_promotion_are_nobody_s_business(world: World) -> None:
    promoted = world.records[SECOND].promotion
    assert promoted is not None
    git = ["git", "--git-dir", str(world.repository.common_directory), "-c", "user.name=a", "-c", "user.email=a@b"]
    tree = world.records[SECOND].candidate_tree
    done = subprocess.run(
        [*git, "commit-tree", "-p", promoted.commit, "-m", "by hand", tree], capture_output=True, text=True, check=True
    )
    point_branch_at(world, done.stdout.strip())
    assert audit.problems(world.repository) == []


@pytest.mark.parametrize("identity", [BASE_ID, WINNER, LOSER, SECOND])
def test_a_removed_record_is_found(identity: str, world: World, tamper: Callable[..., None]) -> None:
    """The last one, too: its promoted commit names a head of this ledger and an experiment that it lacks."""
    tamper(f"DELETE FROM records WHERE id = '{identity}'")
    assert audit.problems(world.repository)


def test_reordered_records_are_found(world: World, tamper: Callable[..., None]) -> None:
    tamper(
        "UPDATE records SET sequence = 100 WHERE sequence = 2",
        "UPDATE records SET sequence = 2 WHERE sequence = 3",
        "UPDATE records SET sequence = 3 WHERE sequence = 100",
    )
    found = audit.problems(world.repository)
    assert found and all("reordered" in line for line in found)


@pytest.mark.parametrize("column", ["id", "branch", "setup", "verdict", "tree", "hash"])
def test_columns_that_differ_from_an_intact_record_are_found(
    column: str, world: World, tamper: Callable[..., None]
) -> None:
    tamper(f"UPDATE records SET {column} = 'other' WHERE sequence = 2")
    found = audit.problems(world.repository)
    assert len(found) == 1 and "its columns differ from its text" in found[0]


@pytest.mark.parametrize("identity", [WINNER, LOSER])
def test_a_stored_patch_that_was_changed_is_found(identity: str, world: World) -> None:
    patch = world.files(identity) / "patch.diff"
    patch.write_bytes(patch.read_bytes().replace(b"+x", b"+y"))
    assert audit.problems(world.repository) == [f"record {identity}: its stored patch was changed"]


def test_what_the_errors_say_fits_one_line(world: World) -> None:
    bundle = world.place / "x\ny.tar"
    bundle.write_bytes(b"")
    with pytest.raises(ArsandboxError) as caught:
        check_bundle(bundle)
    assert caught.value.exit_code == 2

"""What a winner does to the user's repository, and what it leaves alone; several controllers at once."""

from __future__ import annotations

import hashlib
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from arsandbox_fixtures.command_line import driven
from arsandbox_fixtures.docker_engine import containers
from arsandbox_fixtures.leftovers import leftovers
from arsandbox_fixtures.task import CONFIG, TRAIN, answering
from arsandbox_fixtures.waiting import wait_for

pytestmark = [pytest.mark.engine, pytest.mark.timeout(180)]


def state_of(task: Any, *, but: tuple[str, ...] = ()) -> dict[str, Any]:
    """Everything of the user's that a promotion must not change."""
    index = task.path / ".git" / "index"
    files = {
        str(p.relative_to(task.path)): (p.read_bytes(), p.stat().st_mtime_ns, p.stat().st_mode)
        for p in task.path.rglob("*")
        if p.is_file() and ".git" not in p.relative_to(task.path).parts
    }
    return {
        "index": hashlib.sha256(index.read_bytes()).hexdigest(),
        "files": files,
        "head": (task.path / ".git" / "HEAD").read_bytes(),
        "config": (task.path / ".git" / "config").read_bytes(),
        "branches": {name: tip for name, tip in task.branches().items() if name not in but},
        "hooks": sorted(os.listdir(task.path / ".git" / "hooks")) if (task.path / ".git" / "hooks").is_dir() else [],
        "worktrees": task.git("worktree", "list", "--porcelain"),
        "stash": task.git("stash", "list"),
    }


def trailers(task: Any, commit: str) -> dict[str, str]:
    text = task.git("log", "-1", "--format=%(trailers:only,unfold)", commit)
    return dict(line.split(": ", 1) for line in text.splitlines())


def test_a_winner_is_one_commit_with_the_measured_tree(project: Any) -> None:
    task = project()
    base = task.git("rev-parse", "HEAD")
    done = task.run_train(answering(5), "--description", "a better answer")
    record = done.record
    assert record["verdict"] == "keep", done
    commit = record["promotion"]["commit"]
    assert record["promotion"]["ref"] == "refs/heads/arsandbox/t"
    assert task.git("rev-list", f"{base}..arsandbox/t").split() == [commit]
    assert task.git("rev-parse", f"{commit}^@") == base
    assert task.git("rev-parse", f"{commit}^{{tree}}") == record["candidate_tree"]
    assert task.git("show", f"{commit}:train.py") == answering(5).strip()
    assert task.git("diff", "--name-only", base, commit) == "train.py"
    assert task.git("log", "-1", "--format=%s", commit) == "a better answer"
    assert trailers(task, commit) == {
        "Arsandbox-Experiment": record["id"],
        "Arsandbox-Metric": "loss=2.000000",
        "Arsandbox-Baseline": "7.000000",
        "Arsandbox-Image": f"cpu@{record['image']['digest']}",
    } | {k: v for k, v in trailers(task, commit).items() if k.startswith("Arsandbox-Ledger")}
    assert task.git("fsck", "--strict") is not None
    task.verify()


def test_what_the_run_wrote_is_not_promoted(project: Any) -> None:
    task = project()
    train = answering(5, after="open('extra.py', 'w').write('import os')\nopen('assets/a.txt', 'w').write('evil')")
    record = task.run_train(train).record
    assert record["verdict"] == "keep"
    commit = record["promotion"]["commit"]
    assert task.git("show", f"{commit}:assets/a.txt") == "a"
    assert "extra.py" not in task.git("ls-tree", "-r", "--name-only", commit).split()


def test_the_user_s_checkout_stays_as_it_is(project: Any) -> None:
    """Staged, dirty and untracked files, the index, HEAD and the current branch."""
    task = project({"notes.txt": "one\n"})
    task.git("switch", "-q", "-c", "mine")
    task.write({"notes.txt": "one\nstaged\n"})
    task.git("add", "notes.txt")
    task.write({"notes.txt": "one\nstaged\ndirty\n", "scratch/new.txt": "untracked\n"})
    (task.path / "hook-ran").unlink(missing_ok=True)
    hooks = task.path / ".git" / "hooks"
    hooks.mkdir(exist_ok=True)
    for name in ("reference-transaction", "post-commit", "pre-commit", "post-update", "update"):
        (hooks / name).write_text(f"#!/bin/sh\ntouch {task.path}/hook-ran\n")
        (hooks / name).chmod(0o755)
    before = state_of(task)
    done = task.run_train(answering(5))
    assert done.record["promotion"] is not None, done
    assert state_of(task, but=("arsandbox/t",)) == before
    assert not (task.path / "hook-ran").exists()
    assert task.git("symbolic-ref", "HEAD") == "refs/heads/mine"
    assert task.git("status", "--porcelain").splitlines()[0].strip() == "MM notes.txt"


def test_the_working_tree_s_edit_is_the_candidate_and_stays(project: Any) -> None:
    task = project()
    task.write({"train.py": answering(5)})
    before = state_of(task)
    done = task.run("--json")
    assert done.record["promotion"] is not None, done
    assert done.record["patch"]["files"] == ["train.py"]
    assert state_of(task, but=("arsandbox/t",)) == before


def test_a_commit_can_be_the_candidate(project: Any) -> None:
    task = project()
    base = task.git("rev-parse", "HEAD")
    commit = task.commit({"train.py": answering(5)}, "edit")
    task.git("reset", "-q", "--hard", base)
    record = task.run("--json", "--commit", commit).record
    assert record["verdict"] == "keep"
    assert task.git("rev-parse", "arsandbox/t^") == base


def test_winners_stack_on_their_branch(project: Any) -> None:
    task = project()
    base = task.git("rev-parse", "HEAD")
    first = task.run_train(answering(6)).record["promotion"]["commit"]
    second = task.run_train(answering(5)).record["promotion"]["commit"]
    assert task.git("rev-list", f"{base}..arsandbox/t").split() == [second, first]
    third = task.run_train(answering(5.5))
    assert third.record["verdict"] == "discard", third
    task.verify()


def test_no_promote_promotes_nothing(project: Any) -> None:
    task = project()
    done = task.run_train(answering(5), "--no-promote")
    assert (done.record["verdict"], done.record["promotion"]) == ("keep", None)
    assert set(task.branches()) == {"main"}


def test_a_branch_in_a_worktree_is_never_moved(project: Any, tmp_path: Path) -> None:
    task = project()
    assert task.run_train(answering(6)).record["promotion"] is not None
    tip = task.branches()["arsandbox/t"]
    task.git("worktree", "add", "-q", str(tmp_path / "other"), "arsandbox/t")
    (tmp_path / "other" / "train.py").write_text("# somebody works here\n")
    done = task.run_train(answering(5))
    assert done.code == 0, done
    assert task.branches()["arsandbox/t"] == tip
    assert (tmp_path / "other" / "train.py").read_text() == "# somebody works here\n"
    assert task.git("rev-parse", "HEAD", cwd=tmp_path / "other") == tip
    record = done.record
    if record["promotion"] is not None:
        assert record["promotion"]["ref"] != "refs/heads/arsandbox/t"
    said = done.err + record["reason"] + str(record["findings"])
    assert "checked out" in said, "the contract asks that it says so"
    task.verify()


def test_the_checked_out_branch_is_never_moved(project: Any) -> None:
    task = project()
    task.git("switch", "-q", "-c", "arsandbox/t")
    before = state_of(task)
    record = task.run_train(answering(5)).record
    assert task.branches()["arsandbox/t"] == before["branches"]["arsandbox/t"]
    assert task.git("status", "--porcelain") == ""
    if record["promotion"] is not None:
        assert record["promotion"]["ref"] != "refs/heads/arsandbox/t"


def test_a_branch_that_went_another_way_is_refused(project: Any) -> None:
    task = project()
    base = task.git("rev-parse", "HEAD")
    task.git("switch", "-q", "-c", "arsandbox/t")
    task.commit({"README.md": "another way\n"})
    task.git("switch", "-q", "main")
    task.commit({"README.md": "this way\n"})
    done = task.run("--json", "--base", base)
    assert done.code in (0, 2)
    done = task.run("--json")
    assert done.code == 2 and "--tag" in done.err, done


# --- several controllers ----------------------------------------------------------------------------------


def test_two_runs_at_once_both_end_properly(project: Any) -> None:
    task = project()
    assert task.run("--json").code == 0
    slow = "import time; time.sleep(1)"
    edits = [task.patch(answering(answer, before=slow)) for answer in (5, 4)]
    with ThreadPoolExecutor(2) as pool:
        ends = list(pool.map(lambda edit: task.run("--json", "--patch", edit), edits))
    assert [done.code for done in ends] == [0, 0], ends
    records = {r["id"]: r for r in task.history()}
    assert [records[done.record["id"]] for done in ends] == [done.record for done in ends]
    assert ends[1].record["verdict"] == "keep"
    task.verify()
    tip = task.git("log", "-1", "--format=%(trailers:key=Arsandbox-Metric,valueonly)", "arsandbox/t")
    assert tip.strip() == "loss=1.000000", "the better of the two is the champion, whoever was faster"
    promoted = [r["promotion"]["commit"] for r in records.values() if r["promotion"]]
    assert sorted(promoted) == sorted(task.git("rev-list", "main..arsandbox/t").split())
    assert leftovers() == []


def test_a_slow_loser_is_not_promoted_over_a_faster_winner(project: Any) -> None:
    """Both beat the baseline; while the worse one trains the better one is promoted."""
    task = project({"arsandbox.toml": CONFIG.replace('"20s"', '"90s"')})
    assert task.run("--json").code == 0
    until_told = "import time\nwhile not os.path.exists('/tmp/go'): time.sleep(0.05)"
    running = task.start("--json", "--patch", task.patch(answering(5, before=until_told)))
    training = task.wait_for_training()
    fast = task.run_train(TRAIN.replace("10.0", "3.5"))
    assert fast.record["promotion"] is not None, fast
    assert running.process.poll() is None, "the slow one should still be training"
    assert training.exec_run(["touch", "/tmp/go"]).exit_code == 0
    wait_for(lambda: training.id not in [one.id for one in containers(task.home)], what="the end of the training")
    again = task.wait_for_training()  # it won against the old champion, and is measured on the new one
    assert again.exec_run(["touch", "/tmp/go"]).exit_code == 0
    slow = running.wait()
    assert slow.record["metric"]["value"] == 2.0
    assert slow.record["verdict"] == "discard", slow
    assert slow.record["promotion"] is None
    assert slow.record["baseline"]["experiment"] == fast.record["id"], "decided on the new champion"
    assert slow.record["base_commit"] == fast.record["promotion"]["commit"] and slow.record["moved_from"]
    assert task.branches()["arsandbox/t"] == fast.record["promotion"]["commit"]
    task.verify()


def test_a_winner_that_conflicts_with_what_was_promoted_meanwhile_stays_pending(project: Any) -> None:
    """It was measured, and undoes nothing: the record says what it won, and one line says why that is all."""
    task = project()
    base = task.git("rev-parse", "HEAD")
    rival = task.commit({"train.py": TRAIN.replace('print("---")', 'print("--- ")')}, "rival")
    task.git("reset", "-q", "--hard", base)
    edit = task.patch(TRAIN.replace("10.0", "5.0").replace('print("---")', 'print("---")  # mine'))
    done = driven(DRIVER, [rival, "run", "--repo", task.path, "--tag", "t", "--patch", edit, "--json"], task.env)
    assert done.code == 0 and done.record["verdict"] == "pending", done
    assert "conflicts with" in done.err and "train.py" in done.err
    assert task.branches()["arsandbox/t"] == rival
    again = task.cli("confirm", done.record["id"])
    assert again.code == 2 and "conflicts with" in again.err, again
    task.verify()


DRIVER = """
import subprocess, sys
from arsandbox.sandbox import promotion
original, rival, done = promotion.publish, sys.argv.pop(1), []

def publish(repository, prepared):
    if not done:
        done.append(1)
        subprocess.run(["git", "-C", str(repository.worktree), "update-ref", prepared.ref, rival], check=True)
    return original(repository, prepared)

promotion.publish = publish
from arsandbox.cli.app import main
main()
"""


@pytest.mark.parametrize(("rival_answer", "verdict"), [(3.5, "discard"), (8, "keep")])
def test_the_loser_of_the_compare_and_swap_is_decided_again(project: Any, rival_answer: float, verdict: str) -> None:
    """Another commit takes the branch between the intent and the update of the ref."""
    task = project()
    base = task.git("rev-parse", "HEAD")
    rival = task.commit({"train.py": answering(rival_answer)}, "rival")
    task.git("reset", "-q", "--hard", base)
    edit = task.patch(answering(5))
    done = driven(DRIVER, [rival, "run", "--repo", task.path, "--tag", "t", "--patch", edit, "--json"], task.env)
    assert done.code == 0, done
    record = done.record
    assert record["verdict"] == verdict, done
    assert record["baseline"]["value"] == abs(rival_answer - 3)
    tip = task.branches()["arsandbox/t"]
    if verdict == "discard":
        assert record["promotion"] is None and tip == rival
    else:
        assert record["promotion"]["commit"] == tip and task.git("rev-parse", f"{tip}^") == rival
    task.verify()
    assert leftovers() == []


def test_a_branch_deleted_by_the_user_is_made_anew(project: Any) -> None:
    task = project()
    task.run_train(answering(6))
    task.git("branch", "-q", "-D", "arsandbox/t")
    record = task.run_train(answering(5)).record
    assert record["promotion"] is not None
    assert task.git("rev-list", "--count", "main..arsandbox/t") == "1"


def test_verify_finds_a_missing_commit(project: Any) -> None:
    task = project()
    record = task.run_train(answering(5)).record
    commit = record["promotion"]["commit"]
    task.git("update-ref", "-d", "refs/heads/arsandbox/t")
    task.git("reflog", "expire", "--expire=now", "--all")
    subprocess.run(["git", "-C", str(task.path), "prune", "--expire=now"], check=True)
    if task.git("cat-file", "-t", commit, check=False) == "commit":
        pytest.fail("the commit should be gone from the user's repository")
    done = task.cli("verify")
    assert done.code == 3 and commit[:12] in done.err, done

"""The commands that show what was done: their output formats, for people and for scripts."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from arsandbox_fixtures.command_line import COMMAND, arsandbox, json_lines
from arsandbox_fixtures.home import SECRET
from arsandbox_fixtures.projects import Project
from arsandbox_fixtures.task import answering

pytestmark = [pytest.mark.engine, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def task(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A repository with a baseline, a winner, a loser, a crash and a rejected patch."""
    made = Project.create(tmp_path_factory.mktemp("cli") / "task")
    escapes = r"print('a\x1b[31mred\x1b[0m \x1b]0;title\x07 bell\x07 back\x08 \u202e rtl', flush=True)"
    escapes += r"; import os; os.write(1, b'\xff\xfe\x9b1m\rover\nlast')"
    assert made.run_train(answering(5), "--description", "a\tbetter \x1b[31m  answer").code == 0
    assert made.run_train(answering(20, after=escapes)).code == 0
    assert made.run_train(answering(5, before="raise SystemExit(1)")).code == 1
    made.write({"README.md": "words\n"})
    assert made.run("--json").code == 3
    made.git("checkout", "-q", "README.md")
    return made


# --- history ----------------------------------------------------------------------------------------------


def test_history_as_json_lines(task: Any) -> None:
    done = task.cli("history", "--jsonl")
    records = json_lines(done.out)
    assert [r["verdict"] for r in records] == ["rejected", "crash", "discard", "keep", "baseline"]
    assert task.cli("history", "--json").out == done.out
    for record in records:
        assert task.cli("show", record["id"], "--json").record == record
    assert json_lines(task.cli("history", "--jsonl", "-n", "2").out) == records[:2]
    assert task.cli("history", "-n", "0").code == 2


def test_history_as_tsv(task: Any) -> None:
    done = task.cli("history", "--tsv")
    head, *rows = [line.split("\t") for line in done.out.splitlines()]
    assert head == ["commit", "val_bpb", "memory_gb", "status", "description"]
    assert [len(row) for row in rows] == [5] * 5
    assert [row[1] for row in rows] == ["7.000000", "2.000000", "17.000000", "0.000000", "0.000000"]
    assert [row[3] for row in rows][:4] == ["keep", "keep", "discard", "crash"]
    assert rows[3][2] == "0.0"
    commit = json_lines(task.cli("history", "--jsonl").out)[3]["promotion"]["commit"]
    assert rows[1][0] == commit[:7]
    assert done.out.isascii() or "\x1b" not in done.out


def test_history_for_people(task: Any) -> None:
    done = task.cli("history")
    assert done.code == 0 and "\x1b" not in done.out
    for word in ("baseline", "keep", "discard", "crash", "rejected", "verdict"):
        assert word in done.out
    assert len(task.cli("history", "-n", "1").out.splitlines()) < len(done.out.splitlines())


def test_history_of_nothing(project: Any) -> None:
    empty = project()
    done = empty.cli("history")
    assert (done.code, done.out) == (0, "") and "no experiments yet" in done.err
    assert empty.cli("history", "--jsonl").out == ""
    assert empty.cli("history", "--tsv").out.count("\n") == 1


def test_a_reader_that_goes_away(task: Any) -> None:
    """`| head -1` with more output than a pipe holds: no message, no failure of ours."""
    from arsandbox.sandbox.ledger import Ledger

    with Ledger.open(task.state()) as ledger:
        record = ledger.latest(1)[0]
    other = Project.create(task.path.parent / "many")
    assert other.cli("history").code == 0
    with Ledger.open(other.state()) as ledger:
        for number in range(60):
            ledger.append(record.model_copy(update={"id": f"20260101-000000-{number:03}-abcdef"}))
    for arguments in ("history --jsonl", "history --json", "history --tsv", "history"):
        script = f"set -o pipefail; {COMMAND} {arguments} --repo {other.path} | head -1; echo ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
        assert done.stderr == "", (arguments, done)
        assert done.stdout.splitlines()[-1] in ("0", "141"), (arguments, done.stdout[-200:])


def test_an_output_that_is_full(task: Any) -> None:
    for arguments in (["history", "--jsonl"], ["history"], ["--help"], ["show", "--json", task.history()[0]["id"]]):
        where = [] if arguments == ["--help"] else ["--repo", str(task.path)]
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                [str(COMMAND), *arguments, *where], stdout=full, stderr=subprocess.PIPE, text=True, check=False
            )
        assert done.returncode == 5, (arguments, done)
        assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr, done.stderr
        assert "No space left on device" in done.stderr


# --- show, diff, logs -------------------------------------------------------------------------------------


def test_show_for_people(task: Any) -> None:
    record = next(r for r in task.history() if r["verdict"] == "keep")
    done = task.cli("show", record["id"])
    assert done.code == 0 and "\x1b" not in done.out
    for word in (record["id"], "keep", "loss", record["base_commit"], "train.py", "cpu"):
        assert word in done.out


def test_a_description_is_one_harmless_line(task: Any) -> None:
    record = next(r for r in task.history() if r["verdict"] == "keep")
    assert "\x1b" not in task.cli("show", record["id"]).out
    assert "\x1b" not in task.cli("history").out
    assert "\x1b" not in task.cli("history", "--tsv").out
    assert "\x1b" not in task.git("log", "-1", "--format=%B", record["promotion"]["commit"])


def test_diff_applies(task: Any, tmp_path: Path) -> None:
    record = next(r for r in task.history() if r["verdict"] == "keep")
    done = task.cli("diff", record["id"])
    assert done.code == 0
    import hashlib

    assert hashlib.sha256(done.out.encode()).hexdigest() == record["patch"]["sha256"]
    task.git("worktree", "add", "-q", "--detach", str(tmp_path / "clean"), record["base_commit"])
    try:
        task.git("apply", "-", stdin=done.out, cwd=tmp_path / "clean")
        assert (tmp_path / "clean" / "train.py").read_text() == answering(5)
    finally:
        task.git("worktree", "remove", "--force", str(tmp_path / "clean"))


def test_logs_strip_control_sequences(task: Any) -> None:
    record = next(r for r in task.history() if r["verdict"] == "discard")
    done = task.cli("logs", record["id"])
    assert done.code == 0
    assert "red" in done.out and "loss: 17.0" in done.out and done.out.endswith("last")
    assert all(c.isprintable() or c in "\n\t" for c in done.out), done.out
    raw = subprocess.run(
        [str(COMMAND), "logs", record["id"], "--raw", "--repo", str(task.path)], capture_output=True, check=False
    )
    log = (task.experiment_files(record["id"]) / "train.log").read_bytes()
    assert raw.stdout == log and b"\x1b[31mred" in log


def test_logs_of_the_evaluation(task: Any) -> None:
    first = task.history()[0]
    assert task.cli("logs", first["id"], "--stage", "evaluate").out.strip() == "METRIC loss=7.0"
    done = task.cli("logs", first["id"], "--stage", "nonsense")
    assert done.code == 2 and "nonsense" in done.err
    crashed = next(r for r in task.history() if r["verdict"] == "crash")
    assert task.cli("logs", crashed["id"], "--stage", "evaluate").code == 2


def test_ids_by_their_beginning_and_end(task: Any) -> None:
    record = task.history()[1]
    assert task.cli("show", record["id"][-6:], "--json").record == record
    assert task.cli("show", record["id"][:-2], "--json").record == record
    ambiguous = task.cli("show", record["id"][:4], "--json")
    assert ambiguous.code == 2 and "several" in ambiguous.err
    for wild in ("%", "_", ""):
        assert task.cli("show", wild, "--json").code == 2


# --- json -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["run", "--json", "--repo", "/"], 2),
        (["run", "--budget", "5x", "--json"], 2),
        (["run", "--json", "--nonsense"], 2),
        (["show", "--json", "nothing-like-it"], 2),
        (["history", "--json", "--repo", "/"], 2),
        (["image", "build", "cpuu", "--json"], 2),
        (["gc", "--json", "--engine", "podman"], 2),
    ],
)
def test_an_error_with_json_is_one_document(task: Any, arguments: list[str], code: int) -> None:
    done = arsandbox(*arguments, cwd=task.path)
    assert done.code == code, done
    error = json.loads(done.out)["error"]
    assert len(done.out.splitlines()) == 1
    assert error["exit_code"] == code and error["message"]
    assert done.err.startswith(f"arsandbox: {error['message']}\n")


def test_nothing_of_the_controller_s_environment_is_kept(task: Any) -> None:
    """Records and logs end up in reports: no secret of the user's may be in them."""
    assert os.environ["ARSANDBOX_TEST_SECRET"] == SECRET
    for file in task.state().rglob("*"):
        if file.is_file() and file.stat().st_size < 1 << 22:
            assert SECRET.encode() not in file.read_bytes(), file

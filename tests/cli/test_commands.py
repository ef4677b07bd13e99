"""The commands as users and scripts call them: output formats, exit codes, where they may be run."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from arsandbox_fixtures.command_line import COMMAND, arsandbox
from arsandbox_fixtures.home import SECRET
from arsandbox_fixtures.image import image_digest
from arsandbox_fixtures.leftovers import leftovers
from arsandbox_fixtures.projects import Project
from arsandbox_fixtures.task import CONFIG, answering

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


def json_lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


# --- help and version -------------------------------------------------------------------------------------


def test_help_is_fast_and_names_every_command(home: Path) -> None:
    times = []
    for _ in range(3):
        began = time.monotonic()
        done = arsandbox("--help")
        times.append(time.monotonic() - began)
        assert done.code == 0
    assert min(times) < 1, times
    for name in (
        "demo",
        "init",
        "prepare",
        "run",
        "history",
        "show",
        "diff",
        "logs",
        "verify",
        "doctor",
        "gc",
        "image",
    ):
        assert name in done.out
    for name in ("run", "image"):
        helped = arsandbox(name, "-h")
        assert helped.code == 0 and "Usage" in helped.out and helped.err == ""


def test_help_needs_neither_docker_nor_a_home(tmp_path: Path) -> None:
    done = arsandbox("--help", env={"DOCKER_HOST": "unix:///nowhere", "ARSANDBOX_HOME": "/proc/nowhere"})
    assert done.code == 0 and done.err == ""


def test_version(home: Path) -> None:
    from importlib.metadata import version

    done = arsandbox("--version")
    assert (done.code, done.out.strip()) == (0, f"arsandbox {version('arsandbox')}")


def test_no_arguments_show_the_help(home: Path) -> None:
    done = arsandbox()
    assert "Usage" in done.out + done.err and "demo" in done.out + done.err, done
    assert done.code in (0, 2)


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


def test_json_is_all_that_is_on_standard_output(project: Any) -> None:
    fresh = project()
    done = fresh.run("--json", "--patch", fresh.patch(answering(5)))
    assert len(json_lines(done.out)) == 1  # though the baseline was measured too
    for command in (["verify", "--json"], ["prepare", "--json"]):
        assert len(json_lines(fresh.cli(*command).out)) == 1
    for command in (["gc", "--json"], ["image", "list", "--json"], ["doctor", "--json"]):
        assert len(json_lines(arsandbox(*command, env=fresh.env).out)) == 1


def test_json_of_the_command_is_not_ours(project: Any) -> None:
    """`--json` after `--` belongs to the command that trains."""
    fresh = project()
    done = fresh.run("--budget", "5x", "--", "python", "train.py", "--json")
    assert (done.code, done.out) == (2, ""), done


# --- run --------------------------------------------------------------------------------------------------


def test_dry_run_runs_nothing(project: Any) -> None:
    fresh = project()
    edit = fresh.patch(answering(5))
    done = fresh.run("--dry-run", "--json", "--patch", edit)
    assert done.code == 0
    plan = done.record
    assert plan["files"] == ["train.py"] and plan["refusals"] == []
    assert plan["branch"] == "arsandbox/t" and plan["champion"] == plan["base"] == fresh.git("rev-parse", "HEAD")
    assert plan["command"] == ["python", "train.py"] and plan["budget_s"] == 20
    assert [stage["stage"] for stage in plan["stages"]] == ["train", "evaluate"]
    assert plan["stages"][0]["command"] == plan["command"] and plan["stages"][0]["network"] == []
    text = fresh.run("--dry-run", "--patch", edit)
    assert text.code == 0 and "candidate_tree" in text.out and "python train.py (at most" in text.out
    assert fresh.history() == [] and set(fresh.branches()) == {"main"}
    assert not list(fresh.state().glob("experiments/*")) and leftovers() == []


def test_a_dry_run_needs_neither_engine_nor_image(project: Any, tmp_path: Path) -> None:
    """It says what is missing and goes on: the stages pass through the fake engine."""
    fresh = project(home=tmp_path)
    fresh.env |= {"DOCKER_HOST": "unix:///nonexistent/docker.sock"}
    (tmp_path / "images.json").unlink(missing_ok=True)
    done = fresh.run("--dry-run", "--json", "--patch", fresh.patch(answering(5)))
    assert done.code == 0 and "arsandbox image build cpu" in done.err, done
    assert done.record["image"] == {"name": "cpu", "digest": None}
    assert [stage["stage"] for stage in done.record["stages"]] == ["train", "evaluate"]
    assert not list(tmp_path.glob("scratch-*")) and not list(tmp_path.glob("repos/*/experiments"))


def test_a_dry_run_that_would_be_refused(project: Any) -> None:
    fresh = project()
    fresh.write({"README.md": "words\n"})
    done = fresh.run("--dry-run", "--json")
    assert done.code == 3 and "README.md" in done.err
    assert len(json_lines(done.out)) == 1, "exactly one JSON document"
    assert fresh.history() == []


def test_a_detached_head(project: Any) -> None:
    fresh = project()
    fresh.git("switch", "-q", "--detach")
    done = fresh.run_train(answering(5))
    assert done.record["promotion"]["ref"] == "refs/heads/arsandbox/t"
    assert not (fresh.path / ".git" / "HEAD").read_text().startswith("ref:")


def test_a_subdirectory_of_the_repository(project: Any) -> None:
    fresh = project()
    fresh.write({"train.py": answering(5)})
    done = arsandbox("run", "--json", "--tag", "t", cwd=fresh.path / "assets" / "deep", env=fresh.env)
    assert done.code == 0 and done.record["promotion"] is not None, done
    assert done.record["repo"] == str(fresh.path)
    assert len(fresh.history()) == 2
    assert len(json_lines(arsandbox("history", "--json", cwd=fresh.path / "assets").out)) == 2


def test_a_relative_patch_is_looked_for_where_the_user_is(project: Any, tmp_path: Path) -> None:
    fresh = project()
    edit = fresh.patch(answering(5))
    done = arsandbox("run", "--repo", fresh.path, "--patch", edit.name, "--dry-run", cwd=edit.parent)
    assert done.code == 0, done


def test_a_command_line_instead_of_a_config(project: Any) -> None:
    fresh = project()
    fresh.git("rm", "-q", "arsandbox.toml")
    fresh.git("commit", "-q", "-m", "no config")
    done = fresh.run(
        "--json", "--metric", "score", "--goal", "max", "--budget", "10s", "--memory", "96m", "--cpus", "1",
        "--", "python", "-c", "print('METRIC score=4')",
    )  # fmt: skip
    assert done.code == 0, done
    assert done.record["metric"] == {"name": "score", "goal": "max", "value": 4.0, "source": "stdout"}
    assert done.record["trust"] == "L0"


def test_the_goal_decides(project: Any) -> None:
    fresh = project({"arsandbox.toml": CONFIG.replace('goal = "min"', 'goal = "max"')})
    assert fresh.run_train(answering(5)).record["verdict"] == "discard"
    assert fresh.run_train(answering(50)).record["verdict"] == "keep"


def test_the_seed_is_recorded_and_passed_on(project: Any) -> None:
    say = "import os; print('SEED', os.environ['ARSANDBOX_SEED'], os.environ['ARSANDBOX_BUDGET_SECONDS'])"
    fresh = project({"train.py": answering(10, before=say)})
    record = fresh.run("--json", "--seed", "77").record
    assert record["seed"] == 77
    assert "SEED 77 20" in fresh.cli("logs", record["id"]).out
    assert fresh.run("--json").record["seed"] != fresh.run("--json").record["seed"]


def test_untracked_files_are_named_and_left_out(project: Any) -> None:
    fresh = project()
    fresh.write({"train.py": answering(5), "notes.md": "mine\n"})
    done = fresh.run()
    assert done.code == 0 and "notes.md" in done.err
    assert fresh.history()[-1]["patch"]["files"] == ["train.py"]


def test_init_writes_a_config_that_works(project: Any) -> None:
    fresh = project()
    fresh.git("rm", "-q", "--cached", "arsandbox.toml")
    (fresh.path / "arsandbox.toml").unlink()
    done = fresh.cli("init")
    assert done.code == 0 and "arsandbox.toml" in done.out
    refused = fresh.cli("init")
    assert refused.code == 2 and "--force" in refused.err
    assert fresh.cli("init", "--force").code == 0
    text = (fresh.path / "arsandbox.toml").read_text()
    fresh.commit({"arsandbox.toml": text.replace("val_loss", "loss").replace("data = []", 'data = ["heldout/"]')})
    done = fresh.run("--json", "--budget", "10s", "--memory", "96m", "--cpus", "1")
    assert (done.code, done.record["verdict"]) == (0, "baseline"), done


def test_prepare_without_a_section(project: Any) -> None:
    done = project().cli("prepare")
    assert done.code == 0 and "nothing to prepare" in done.out


def test_doctor(home: Path) -> None:
    done = arsandbox("doctor", "--json")
    rows = {row["name"]: row for row in json.loads(done.out)}
    assert rows["engine"]["status"] == "ok" and rows["git"]["status"] == "ok"
    assert (done.code == 4) == any(row["status"] == "missing" for row in rows.values())
    assert arsandbox("doctor").code == done.code
    assert all(row["fix"] for row in rows.values() if row["status"] == "missing")


def test_image_list(home: Path) -> None:
    done = arsandbox("image", "list", "--json")
    rows = {row["name"]: row["pinned"] for row in json.loads(done.out)}
    assert rows["cpu"]["digest"] == image_digest()
    assert image_digest() in arsandbox("image", "list").out


def test_gc_of_nothing(project: Any) -> None:
    done = arsandbox("gc")
    assert done.code == 0 and "nothing was left" in done.err


def test_progress_and_verdict_go_to_standard_error(project: Any) -> None:
    done = project().run()
    assert (done.code, done.out) == (0, "")
    assert "baseline" in done.err and "\x1b" not in done.err


def test_nothing_of_the_controller_s_environment_is_kept(task: Any) -> None:
    """Records and logs end up in reports: no secret of the user's may be in them."""
    assert os.environ["ARSANDBOX_TEST_SECRET"] == SECRET
    for file in task.state().rglob("*"):
        if file.is_file() and file.stat().st_size < 1 << 22:
            assert SECRET.encode() not in file.read_bytes(), file

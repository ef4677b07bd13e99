"""`arsandbox run` and `init` as users and scripts call them: output, where they may be run, what they take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from arsandbox_fixtures.command_line import arsandbox, json_lines
from arsandbox_fixtures.leftovers import leftovers
from arsandbox_fixtures.task import CONFIG, answering

pytestmark = [pytest.mark.engine, pytest.mark.timeout(120)]


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

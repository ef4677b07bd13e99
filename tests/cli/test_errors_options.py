"""Wrong configuration and options: one clear line, a fix, the right exit code, never a traceback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from arsandbox_fixtures.command_line import arsandbox
from arsandbox_fixtures.complaints import check
from arsandbox_fixtures.task import CONFIG

pytestmark = [pytest.mark.engine, pytest.mark.timeout(120)]


# --- hostile configuration --------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["core.fsmonitor", "core.hooksPath", "filter.x.clean", "include.path"])
def test_a_git_config_that_runs_programs(project: Any, tmp_path: Path, key: str) -> None:
    task = project()
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    program.chmod(0o755)
    if key == "include.path":
        (tmp_path / "included").write_text(f"[core]\n\tfsmonitor = {program}\n")
        program = tmp_path / "included"
    task.git("config", key, str(program))
    (task.path / ".gitattributes").write_text("* filter=x\n")
    for command in ("run", "prepare"):
        done = arsandbox(command, "--repo", task.path)
        check(done, 3, key.split(".")[0], fix="unset")
    assert arsandbox("history", "--repo", task.path).code in (0, 3)
    assert not (tmp_path / "ran").exists()


def test_a_misspelt_key_in_the_config(project: Any) -> None:
    task = project({"arsandbox.toml": CONFIG.replace("budget =", "buget =")})
    check(task.run(), 2, "arsandbox.toml", "buget", fix="did you mean 'budget'?")
    task = project({"arsandbox.toml": CONFIG.replace("memory =", "memmory =")})
    check(task.run(), 2, "limits.memmory", fix="did you mean 'memory'?")
    task = project({"arsandbox.toml": CONFIG.replace("[metric]", "[metrics]")})
    check(task.run(), 2, "metrics", fix="'metric'")


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ('budget = "20s"', 'budget = "5x"', "5x"),
        ('goal = "min"', 'goal = "lowest"', "goal"),
        ('editable = ["train.py"]', 'editable = ["../train.py"]', "editable"),
        ("cpus = 1", "cpus = -1", "cpus"),
        ("[metric]", "[metric", "TOML"),
        ('memory = "96m"', 'memory = "lots"', "lots"),
    ],
)
def test_a_bad_value_in_the_config(project: Any, old: str, new: str, word: str) -> None:
    assert old in CONFIG
    check(project({"arsandbox.toml": CONFIG.replace(old, new)}).run(), 2, "arsandbox.toml", word, fix=None)


def test_a_config_that_is_not_committed(project: Any) -> None:
    task = project()
    task.git("rm", "-q", "--cached", "arsandbox.toml")
    task.git("commit", "-q", "-m", "without a config")
    check(task.run(), 2, "arsandbox.toml", "not committed", fix="git add arsandbox.toml")


def test_no_config_at_all(project: Any) -> None:
    task = project()
    task.git("rm", "-q", "arsandbox.toml")
    task.git("commit", "-q", "-m", "without a config")
    check(task.run(), 2, "arsandbox.toml", "--metric", fix="arsandbox init")


# --- options ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--budget", "5x"], ["--budget", "5x"]),
        (["--budget", "0s"], ["--budget"]),
        (["--grace", "soon"], ["--grace", "soon"]),
        (["--memory", "lots"], ["--memory", "lots"]),
        (["--disk", "2x"], ["--disk", "2x"]),
        (["--memory", "1k"], ["memory"]),
        (["--pids", "many"], ["--pids", "many"]),
        (["--goal", "best"], ["--goal", "best"]),
        (["--tag", "../up"], ["--tag", "../up"]),
        (["--seed", "-1"], ["--seed", "-1"]),
        (["--engine", "podman"], ["--engine", "podman"]),
    ],
)  # fmt: skip
def test_a_bad_value_of_an_option(project: Any, options: list[str], words: list[str]) -> None:
    check(project().run(*options), 2, *words, fix=None)


def test_a_bad_budget_names_a_correct_example(project: Any) -> None:
    check(project().run("--budget", "5x"), 2, "--budget", fix="5m")


def test_more_cpus_than_there_are(project: Any) -> None:
    check(project().run("--cpus", "4000"), 4, "4000", fix="--cpus")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["run", "--buget", "5m"], "--budget"),
        (["hystory"], "history"),
        (["image", "biuld", "cpu"], "build"),
        (["history", "--jsonll"], "--jsonl"),
    ],
)
def test_a_misspelt_command_or_option_is_answered_with_the_nearest(home: Path, arguments: list[str], word: str) -> None:
    done = arsandbox(*arguments)
    check(done, 2)
    assert word in done.err.splitlines()[0], done


def test_a_missing_argument(home: Path) -> None:
    check(arsandbox("show"), 2, "ID")


def test_an_unknown_experiment(project: Any) -> None:
    task = project()
    for command in ("show", "diff", "logs"):
        check(task.cli(command, "20990101"), 2, "20990101", fix="arsandbox history")

"""Disturbed measurements are repeated or refused, never decided on."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from arsandbox_fixtures.command_line import driven
from arsandbox_fixtures.leftovers import leftovers
from arsandbox_fixtures.reruns import rerun
from arsandbox_fixtures.task import CONFIG, answering

pytestmark = [pytest.mark.engine, pytest.mark.group("long"), pytest.mark.timeout(300)]


# --- disturbed measurements -------------------------------------------------------------------------------


@contextmanager
def busy_loop() -> Iterator[None]:
    with subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) as burner:
        try:
            yield
        finally:
            burner.kill()


QUIET = """
from arsandbox.sandbox import hygiene
hygiene.disturbances = lambda seen, bounds: []
from arsandbox.cli.app import main
main()
"""


def quietly(task: Any, arguments: Sequence[str | Path]) -> dict[str, Any]:
    """A run on a machine that is not disturbed."""
    done = driven(QUIET, arguments, task.env)
    assert done.code == 0, done
    return dict(done.record)


def disturbed(repeat: int) -> dict[str, str]:
    return {
        "arsandbox.toml": CONFIG + f"\n[measurement]\nforeign_cpu = 0.0\nrepeat = {repeat}\n",
        "train.py": answering(10, before="import time; time.sleep(0.5)"),
    }


@pytest.mark.parametrize("repeat", [0, 2])
def test_a_disturbed_measurement_is_repeated_and_never_decided_on(repeat: int, project: Callable[..., Any]) -> None:
    task = project(disturbed(repeat))
    with busy_loop():
        done = task.run("--json")
    assert done.code == 1 and done.record["verdict"] == "invalid", done
    history = task.history()
    assert [r["verdict"] for r in history] == ["invalid"] * (repeat + 1)
    assert done.err.count("measuring again") == repeat
    for record in history:
        assert record["conditions"]["foreign_cpu"] > 0
        assert "cores busy; at most 0 is allowed" in record["reason"]
        assert "disturbed" in [f["code"] for f in record["findings"]]
        assert record["promotion"] is None
    assert len({r["id"] for r in history}) == repeat + 1

    # A candidate needs a baseline, and an invalid one is none.
    with busy_loop():
        done = task.run_train(answering(4))
    assert done.code == 2 and "the baseline itself failed (invalid)" in done.err, done
    assert not any(r["verdict"] in ("keep", "baseline") for r in task.history())
    task.verify()


def test_a_disturbed_winner_is_not_promoted(project: Any) -> None:
    task = project(disturbed(1))
    baseline = quietly(task, ["run", "--repo", task.path, "--tag", "t", "--json"])
    assert baseline["verdict"] == "baseline"
    before = task.branches()
    with busy_loop():
        done = task.run_train(answering(4, before="import time; time.sleep(0.5)"))
    assert done.code == 1 and done.record["verdict"] == "invalid", done
    assert [r["verdict"] for r in task.history()] == ["baseline", "invalid", "invalid"]
    assert task.branches() == before
    # Nor is it compared with: a later run has the old baseline.
    arguments = ["run", "--repo", task.path, "--tag", "t", "--json", "--patch", task.patch(answering(5))]
    winner = quietly(task, arguments)
    assert winner["verdict"] == "keep" and winner["baseline"]["experiment"] == baseline["id"]
    task.verify()


def test_a_rerun_on_a_disturbed_machine_compares_nothing(project: Any) -> None:
    task = project(disturbed(1))
    recorded = quietly(task, ["run", "--repo", task.path, "--tag", "t", "--json"])
    with busy_loop():
        done = rerun(task, recorded["id"], "--exact")
    assert done.code == 4 and "too disturbed to compare" in done.err, done
    assert [r["verdict"] for r in task.history()] == ["baseline", "interrupted"]
    assert leftovers() == []


def test_without_bounds_conditions_are_recorded_and_bind_nothing(project: Any) -> None:
    task = project()
    with busy_loop():
        record = task.run("--json").record
    assert record["verdict"] == "baseline"
    seen = record["conditions"]
    assert seen["foreign_cpu"] >= 0 and seen["load_after"] >= 0
    assert re.fullmatch(r"(\d+(,\d+)*)?", seen["cores"])

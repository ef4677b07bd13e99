"""What a target without an arsandbox.toml is run with: the config that fits its layout and the metric."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from arsandbox.sandbox import config
from arsandbox.sandbox.config import ProjectConfig
from arsandbox.sandbox.models import Goal
from arsandbox.sandbox.objects import ObjectStore

PASS_RATES = ("unit_pass_rate", "pass_rate")
COVERAGES = ("coverage", "line_coverage", "line_rate")
ENVIRONMENT = ".arsandbox-environment"
_OUTPUT = ".arsandbox-results"
_JUNIT, _COVERAGE = f"{_OUTPUT}/junit.xml", f"{_OUTPUT}/coverage.xml"
_LOWER = re.compile(r"loss|bpb|error|perplexity|latency|time|seconds|mse|mae|wer", re.IGNORECASE)
_TESTS = re.compile(r"(?:^|/)(?:tests?/.*|test_[^/]*\.py|[^/]*_test\.py|conftest\.py)$")
_SETTINGS = ("pytest.ini", "tox.ini", "setup.cfg", "pyproject.toml", ".coveragerc", "setup.py")


def goal_of(metric: str) -> Goal:
    """`min` for what the field calls a loss, an error or a time; else `max`."""
    return "min" if _LOWER.search(metric) else "max"


def fallback(metric: str, goal: Goal | None, budget_s: float) -> Callable[[ObjectStore, str], ProjectConfig]:
    """`project_for` that metric, for Options."""
    return lambda objects, base: project_for(objects, base, metric, goal, budget_s)


def project_for(objects: ObjectStore, base: str, metric: str, goal: Goal | None, budget_s: float) -> ProjectConfig:
    """The config for measuring `metric` in the commit `base`, which has none of its own. Raises UsageError."""
    paths = [entry.path for entry in objects.entries(objects.tree_of(base))]
    table: dict[str, Any] = {
        "budget": float(budget_s),
        "metric": {"name": metric, "goal": goal or goal_of(metric)},
        "decision": {"rule": "greedy"},
    }
    suite = metric in (*PASS_RATES, *COVERAGES)
    table |= _suite(objects, base, paths, metric, table["metric"]) if suite else _training(paths, table["metric"])
    return config.from_table(table, f"the target's layout and metric {metric}")


def _training(paths: list[str], metric: dict[str, Any]) -> dict[str, Any]:
    fixed = [path for path in ("prepare.py", "evaluate.py", "program.md") if path in paths]
    prepare = {"command": ["python", "prepare.py"], "outputs": [".cache"]} if "prepare.py" in paths else None
    return {
        "image": "cpu",
        "command": ["python", "train.py"],
        "editable": ["train.py"],
        "protected": fixed,
        "metric": {**metric, "source": "stdout"},
        # autoresearch keeps its data below the home directory.
        "environment": {"HOME": "/workspace"},
        **({"prepare": prepare} if prepare else {}),
    }


def _suite(objects: ObjectStore, base: str, paths: list[str], metric: str, asked: dict[str, Any]) -> dict[str, Any]:
    tests = [path for path in paths if _TESTS.search(path)]
    fixed = sorted({*tests, *(path for path in _SETTINGS if path in paths)})
    covering = metric in COVERAGES
    task = {
        "junit": _JUNIT,
        "coverage": _COVERAGE if covering else "",
        "omit": sorted({*tests, f"{ENVIRONMENT}/*", f"{_OUTPUT}/*"}),
        "tests": [],
    }
    source = {"source": "coverage", "file": _COVERAGE, "tests": _JUNIT} if covering else {}
    prepare = _tox(objects, base, paths)
    return {
        "image": "pytest",
        "command": ["python", "-c", (Path(__file__).parent / "suite.py").read_text(encoding="utf-8"), json.dumps(task)],
        "editable": ["**/*.py"],
        # The suite's own places stand beside the tests: a patch that plants files there is refused.
        "protected": [*fixed, ENVIRONMENT, _OUTPUT, "tests", "test"],
        "metric": {"source": "pytest", "file": _JUNIT, **asked, **source, "evaluator": fixed},
        "environment": {"PYTHONPATH": ENVIRONMENT},
        **({"prepare": prepare} if prepare else {}),
    }


def _tox(objects: ObjectStore, base: str, paths: list[str]) -> dict[str, Any] | None:
    """The prepare stage that makes the tox environment's dependencies, where the target has one.

    What is frozen are the packages, not the links and programs of a virtual environment.
    """
    pyproject = objects.read(f"{base}:pyproject.toml") or b""
    if "tox.ini" not in paths and b"[tool.tox" not in pyproject:
        return None
    script = (
        'set -e; python -m tox run --notest --skip-pkg-install --workdir /tmp/tox -e "$(python -m tox list --no-desc'
        f' --workdir /tmp/tox | head -n 1)"; mkdir {ENVIRONMENT}; touch {ENVIRONMENT}/tox;'
        f" for place in /tmp/tox/*/lib/python3*/site-packages; do cp -r $place/. {ENVIRONMENT}/; done"
    )
    return {"command": ["sh", "-c", script], "outputs": [ENVIRONMENT]}

"""A test suite's report as the metric: L1 at most, lost tests count as failed, never promoted by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = [pytest.mark.engine, pytest.mark.group("long")]

CONFIG = """
image = "cpu"
budget = "20s"
command = ["python", "tests/runner.py"]
editable = ["train.py"]

[metric]
name = "pass_rate"
goal = "max"
source = "pytest"
file = "out/junit.xml"
evaluator = ["tests"]

[decision]
rule = "greedy"

[limits]
cpus = 1
memory = "96m"
pids = 64
disk = "16m"
inodes = 15000
"""
# A runner in a few lines: it writes what pytest would, from the functions that it finds, and ends as pytest does.
RUNNER = """
import os, sys
sys.path.insert(0, os.getcwd())
import train
CASES = {"zero": (0, 0), "one": (1, 1), "two": (2, 4), "three": (3, 9)}
rows, failed = [], 0
for name, (given, right) in CASES.items():
    if name in train.DESELECTED:
        continue
    inner = "<skipped/>" if name in train.SKIPPED else "" if train.square(given) == right else "<failure/>"
    failed += inner == "<failure/>"
    rows.append(f'<testcase classname="t" name="{name}">{inner}</testcase>')
os.makedirs("out")
open("out/junit.xml", "w").write("<testsuite>" + "".join(rows) + "</testsuite>")
print(f"=== {len(rows)} passed in 0.01s ===")
sys.exit(1 if failed else 0)
"""
HALF = "DESELECTED, SKIPPED = set(), set()\ndef square(x):\n    return x if x < 3 else 0\n"
WHOLE = HALF.replace("x if x < 3 else 0", "x * x")


def test_pass_rate(project: Callable[..., Any]) -> None:
    made = project({"arsandbox.toml": CONFIG, "train.py": HALF, "tests/runner.py": RUNNER})
    baseline = made.run("--json").record
    assert (baseline["verdict"], baseline["trust"], baseline["metric"]["value"]) == ("baseline", "L1", 0.5), baseline
    assert baseline["tests"]["expected"] == 4

    fixed = made.run_train(WHOLE).record
    assert (fixed["verdict"], fixed["metric"]["value"], fixed["promotion"]) == ("keep", 1.0, None), fixed
    assert "self-reported (L1)" in fixed["reason"]

    for trick in ("DESELECTED, SKIPPED = {'two', 'three'}, set()", "DESELECTED, SKIPPED = set(), {'two', 'three'}"):
        lost = made.run_train(HALF.replace("DESELECTED, SKIPPED = set(), set()", trick)).record
        assert (lost["verdict"], lost["metric"]["value"]) == ("discard", 0.5), lost
        assert "tests_lost" in [finding["code"] for finding in lost["findings"]]

    made.write({"tests/runner.py": "print('=== 4 passed in 0.01s ===')\n"})
    refused = made.run("--json")
    assert (refused.code, refused.record["verdict"]) == (3, "rejected"), refused


def test_a_run_without_its_report_has_no_metric(project: Callable[..., Any]) -> None:
    config = CONFIG.replace('evaluator = ["tests"]', "").replace('"tests/runner.py"', '"train.py"')
    made = project({"arsandbox.toml": config, "train.py": "print('=== 4 passed in 0.01s ===')\n"})
    record = made.run("--json").record
    assert (record["verdict"], record["trust"]) == ("no_metric", "L0"), record
    assert "bad_report" in [finding["code"] for finding in record["findings"]]

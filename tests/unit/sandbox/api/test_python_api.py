"""The Python API's pure parts: comparing, history, the config for a layout, what is exported."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

import arsandbox
from arsandbox import SystemExperiment, evaluate_result, get_experiment_history
from arsandbox.sandbox.api import targets
from arsandbox.sandbox.errors import UsageError
from arsandbox.sandbox.ledger import Ledger
from arsandbox.sandbox.repository import Repository


@pytest.mark.parametrize(
    ("value", "baseline", "options", "outcome", "per_cent"),
    [
        (0.9, 1.0, {"goal": "min"}, "improvement", 10.0),
        (1.1, 1.0, {"goal": "min"}, "regression", -10.0),
        (0.9, 1.0, {"goal": "max"}, "regression", -10.0),
        (1.0, 1.0, {}, "no change", 0.0),
        (0.5, 0.0, {"goal": "max"}, "improvement", None),
        (0.0, 0.0, {"goal": "max"}, "no change", None),
        (-3.0, -2.0, {"goal": "min"}, "improvement", 50.0),
        (1e-9, 2e-9, {"goal": "min"}, "improvement", 50.0),
        (0.95, 1.0, {"min_delta": 0.1}, "no change", 5.0),
        (0.9, 1.0, {"min_delta": 0.1}, "improvement", 10.0),
        (math.nan, 1.0, {}, "indeterminate", None),
        (-math.inf, 1.0, {}, "indeterminate", None),
        (None, 1.0, {}, "indeterminate", None),
        (1.0, None, {}, "indeterminate", None),
        (1.0, math.nan, {}, "indeterminate", None),
    ],
)
def test_evaluate_result(value, baseline, options, outcome, per_cent) -> None:
    found = evaluate_result(value, baseline, **options)
    assert found.outcome == outcome and found.message
    assert found.per_cent == (None if per_cent is None else pytest.approx(per_cent))


def test_history_is_most_recent_first_and_survives_broken_lines(make_repo, make_record) -> None:
    path = make_repo({"train.py": "a\n"}).path
    opened = Repository.open(path)
    with Ledger.open(opened.state) as ledger:
        old = ledger.append(make_record("20240101-000000-000-aaaaaa", started_at="2024-01-01T00:00:00.000Z"))
        new = ledger.append(make_record("20240301-000000-000-bbbbbb", started_at="2024-03-01T00:00:00.000Z"))
    rows = [
        json.dumps({"id": "theirs", "timestamp": "2024-02-01T00:00:00Z", "val_bpb": 1.5, "status": "keep"}),
        '{"torn": ', "[]", "\x00\xff", json.dumps({"metric": {"name": "loss", "value": float("nan")}}),
        json.dumps({"id": old.id, "started_at": old.started_at}),
    ]  # fmt: skip
    (path / "results.jsonl").write_bytes("\n".join(rows).encode("latin-1"))
    found = get_experiment_history(path)
    assert [one.id for one in found.experiments] == [new.id, "theirs", old.id, ""]
    assert (found.experiments[1].value, found.experiments[1].verdict) == (1.5, "keep")
    assert (found.experiments[3].metric, found.experiments[3].value) == ("loss", None)
    assert (found.broken_lines, found.problem) == (3, "")
    assert [one.id for one in get_experiment_history(path, limit=1).experiments] == [new.id]


def test_neither_what_is_pending_nor_what_got_no_new_draw_is_a_crash_in_the_table(make_record) -> None:
    from arsandbox.sandbox.models import Finding, Verdict
    from arsandbox.sandbox.record import MetricInfo
    from arsandbox.sandbox.results_table import results_tsv

    pending = make_record("20240101-000000-000-aaaaaa", verdict=Verdict.PENDING, description="promising")
    again = make_record(
        "20240101-000001-000-bbbbbb", verdict=Verdict.DISCARD,
        metric=MetricInfo(name="val_bpb", goal="min", value=None, source="stdout"),
        findings=(Finding(code="resubmitted", detail="the same tree"),),
    )  # fmt: skip
    rows = [line.split("\t") for line in results_tsv([again, pending]).splitlines()[1:]]
    assert [(float(row[1]), row[3], row[4]) for row in rows] == [
        (pytest.approx(pending.metric.value, abs=1e-6), "discard", "promising")
    ]


def test_history_reads_autoresearch_s_table_and_a_crash_has_no_value(make_repo, make_record, tmp_path: Path) -> None:
    path = make_repo({"train.py": "a\n"}).path
    with Ledger.open(Repository.open(path).state) as ledger:
        own = ledger.append(make_record(description="ours"))
        from arsandbox.sandbox.results_table import results_tsv

        table = results_tsv(ledger.latest())
    theirs = (
        "a1b2c3d\t0.997900\t44.0\tkeep\tbaseline\nb2c3d4e\t0.000000\t0.0\tcrash\tdouble the width (OOM)\n"
        "torn\t0.99\nc3d4e5f\tnan\t44.0\tdiscard\tnothing\nd4e5f6a\t0.993200\t44.2\tkeep\tLR to 0.04\n"
    )
    (path / "results.tsv").write_text(table + theirs)
    found = get_experiment_history(path)
    assert [(one.description, one.value, one.source) for one in found.experiments] == [
        ("ours", own.metric.value, "ledger"), ("LR to 0.04", 0.9932, "results.tsv"), ("nothing", None, "results.tsv"),
        ("double the width (OOM)", None, "results.tsv"), ("baseline", 0.9979, "results.tsv"),
    ]  # fmt: skip
    assert (found.broken_lines, found.problem, found.experiments[1].metric) == (1, "", "val_bpb")
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "results.tsv").write_text(table.splitlines()[0] + "\n" + theirs)
    alone = get_experiment_history(tmp_path / "alone")
    assert (len(alone.experiments), alone.problem) == (4, "")
    (tmp_path / "alone" / "results.tsv").write_text("no\ttable\n1\t2\n")
    assert get_experiment_history(tmp_path / "alone").broken_lines == 2


def test_history_of_what_is_not_there_is_empty_and_says_why(tmp_path: Path) -> None:
    found = get_experiment_history(tmp_path / "none")
    assert found.experiments == () and "no such directory" in found.problem


def test_a_suites_tests_and_settings_are_protected_and_tox_prepares(make_repo) -> None:
    made = make_repo({
        "pkg/core.py": "", "pkg/tests/test_core.py": "", "test_top.py": "", "tests/data.json": "", "tox.ini": "",
        "pyproject.toml": "", "pkg/contest.py": "",
    })  # fmt: skip
    opened = Repository.open(made.path)
    project = targets.project_for(opened.objects, opened.head(), "coverage", None, 60)
    assert project.metric.source == "coverage" and project.metric.goal == "max" and project.prepare is not None
    fixed = {"pkg/tests/test_core.py", "test_top.py", "tests/data.json", "tox.ini", "pyproject.toml"}
    assert set(project.metric.evaluator) == fixed and fixed < set(project.protected)
    training = targets.project_for(opened.objects, opened.head(), "val_bpb", None, 60)
    assert (training.metric.goal, training.metric.source, training.editable) == ("min", "stdout", ("train.py",))
    with pytest.raises(UsageError):
        targets.project_for(opened.objects, opened.head(), "no name", None, 60)


@pytest.mark.parametrize(
    ("program", "hypothesis"),
    [
        ("# Title\n\n---\n\n* Try a \x1b[31mwider model\n", "Try a [31mwider model"),
        ("```\ncode\n", "code"),
        ("\n\n#only headings\n", None),
        (None, None),
    ],
)
def test_hypothesis(tmp_path: Path, program: str | None, hypothesis: str | None) -> None:
    if program is not None:
        (tmp_path / "program.md").write_text(program)
    said = SystemExperiment(tmp_path, "speed").hypothesis
    assert said == (hypothesis or f"a change to {tmp_path.name} improves speed")


def test_every_failure_of_a_round_is_a_status(tmp_path: Path) -> None:
    for system in (SystemExperiment(tmp_path / "none", "loss"), SystemExperiment(tmp_path, "loss", "5 parsecs")):
        done = system.run()
        assert done.status == "error" and done.message and "\n" not in done.message
        assert system.baseline().status == "error"
        assert [one.status for one in system.rounds(3)] == ["error"]


def test_the_api_is_exported_and_loads_nothing_before_it_is_used() -> None:
    assert all(getattr(arsandbox, name) is not None for name in arsandbox.__all__)
    with pytest.raises(AttributeError):
        _ = arsandbox.no_such_thing
    program = "import sys, arsandbox; print([m for m in sys.modules if m.startswith(('pydantic', 'arsandbox.s'))])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

"""The value where the run itself reports it: output, a file, a test report (trust L0, or L1; never more)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from arsandbox.sandbox import test_results
from arsandbox.sandbox.bench import Bench, Measurement
from arsandbox.sandbox.canonical import digest
from arsandbox.sandbox.config import MetricConfig
from arsandbox.sandbox.engines.port import Sandbox
from arsandbox.sandbox.errors import MachineError, RefusedError
from arsandbox.sandbox.metrics import read_metrics
from arsandbox.sandbox.models import Reason
from arsandbox.sandbox.record import Record, TestReport
from arsandbox.sandbox.test_results import ReportError, Tests

TESTS_FILE = "tests.json"
_MOST_LOST = 20


def collect(sandbox: Sandbox, metric: MetricConfig, target: Path) -> None:
    """Copy the declared report files of a run that ended into the new directory `target`, following nothing."""
    files = [path for path in (metric.file, metric.tests) if path is not None]
    if files:
        target.mkdir()
        sandbox.collect(files, target, most_bytes=test_results.MOST_BYTES, most_files=len(files))


def value(bench: Bench, reports: Path, keep: Path, into: Measurement) -> None:
    """Set value, metrics and trust, or the problem, from what the run reported; keeps the list of tests."""
    metric = bench.settings.project.metric
    into.trust = into.trust or "L0"
    try:
        if metric.source == "pytest" and metric.file is not None:
            tests = test_results.read_tests(_content(reports, metric.file))
            found = {**tests.metrics(), **_held_against(tests, bench.expected_tests, keep, into, every=True)}
        elif metric.source == "coverage" and metric.file is not None:
            found = dict(test_results.read_coverage(_content(reports, metric.file)).metrics())
            if metric.tests is not None:
                tests = test_results.read_tests(_content(reports, metric.tests))
                found |= _held_against(tests, bench.expected_tests, keep, into, every=False)
                if into.tests is not None and into.tests.passed < into.tests.expected:
                    into.problem = f"coverage does not count while tests are lost: {into.tests.lost[0]}"
        elif metric.file is not None:
            found = _file(_content(reports, metric.file), metric, into)
        else:
            found = dict(into.self_reported)
    except ReportError as error:
        into.problem = f"{metric.file}: {error}"
        into.remark("bad_report", into.problem)
        return
    into.metrics = found
    if into.problem is None:
        default = {"pytest": "pass_rate", "coverage": "line_rate"}.get(metric.source, metric.name)
        into.value = found.get(metric.name, found.get(default))
        if into.value is None:
            into.problem = f"the {metric.file or 'output'} has no {metric.name}"


def tests_may_fail(bench: Bench, into: Measurement) -> bool:
    """Whether a run that ended with exit code 1 still counts: it is how a test runner says that tests failed."""
    ended = into.train.termination if into.train is not None else None
    suite = bench.settings.project.metric.source in ("pytest", "coverage")
    return suite and ended is not None and ended.reason is Reason.CRASH and ended.exit_code == 1


def expected_tests(baseline: Record, keep: Path) -> tuple[str, ...] | None:
    """The tests that runs against `baseline` are held to, from its kept files; None where it has none.

    Raises MachineError when the list is gone, RefusedError when it was changed.
    """
    if baseline.tests is None:
        return None
    try:
        names = tuple(str(name) for name in json.loads((keep / TESTS_FILE).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise MachineError(
            f"the list of tests of {baseline.id} is gone",
            hint="measure the baseline again: arsandbox run --commit HEAD",
        ) from error
    if digest(list(names)) != baseline.tests.expected_sha256:
        raise RefusedError(f"the list of tests of {baseline.id} was changed")
    return names


def _held_against(
    tests: Tests, expected: Sequence[str] | None, keep: Path, into: Measurement, *, every: bool
) -> dict[str, float]:
    if expected is None:  # the base itself: what it runs is what is expected of everybody
        expected = tests.expected() if every else tests.of("passed")
    seen = tests.against(expected)
    lost = (*seen.missing, *seen.skipped, *seen.failed)
    names = sorted(expected)
    into.tests = TestReport(
        expected=seen.expected, passed=seen.passed, missing=len(seen.missing), skipped=len(seen.skipped),
        failed=len(seen.failed), lost=lost[:_MOST_LOST], expected_sha256=digest(names),
    )  # fmt: skip
    (keep / TESTS_FILE).write_text(json.dumps(names))
    if seen.missing or seen.skipped:
        into.remark(
            "tests_lost",
            f"{len(seen.missing)} tests are missing and {len(seen.skipped)} skipped, which count as failed: {lost[0]}",
        )
    return {} if seen.pass_rate is None else {"pass_rate": seen.pass_rate}


def _file(content: bytes, metric: MetricConfig, into: Measurement) -> dict[str, float]:
    if content.lstrip()[:1] == b"<":
        return dict(test_results.read_report(content))
    read = read_metrics(b" ".join(content.splitlines()) if content.lstrip()[:1] == b"{" else content)
    if metric.name in read.conflicting or metric.name in read.not_finite:
        into.problem = f"{metric.file} has {metric.name} with differing values or one that is not finite"
    return dict(list(read.values.items())[:100])


def _content(reports: Path, path: str) -> bytes:
    place = reports / path
    if not place.is_file():
        raise ReportError("the run left no such regular file, or a too large one")
    return place.read_bytes()

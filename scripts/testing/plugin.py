"""The pytest plugin of scripts/test: it picks tests by group, and notes what became of each as soon as it ended."""

from __future__ import annotations

from pathlib import Path

import pytest

from . import orders, results
from .groups import DEFAULT, NAMES


def pytest_addoption(parser: pytest.Parser) -> None:
    """The file of orders."""
    parser.addoption(orders.OPTION, required=True, help="a file of orders; scripts/test writes it")


def pytest_configure(config: pytest.Config) -> None:
    """Reports reach the process that pytest was started as, also from its workers."""
    if not _is_worker(config):
        config.pluginmanager.register(Recorder(_orders(config)))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests of other groups, of the other part, and those that have passed."""
    told = _orders(config)
    passed = set(told.passed)
    kept: list[pytest.Item] = []
    left: list[pytest.Item] = []
    missed: dict[str, int] = {}
    for item in items:
        groups = groups_of(item)
        if not groups.intersection(told.groups):
            for name in groups:
                missed[name] = missed.get(name, 0) + 1
        wanted = groups.intersection(told.groups) and _in_part(item, told.part) and item.nodeid not in passed
        (kept if wanted else left).append(item)
    items[:] = kept
    if left:
        config.hook.pytest_deselected(items=left)
    if not _is_worker(config) or config.workerinput["workerid"] == "gw0":  # type: ignore[attr-defined]
        results.append(Path(told.report), {"left_out": missed})


def groups_of(item: pytest.Item) -> frozenset[str]:
    """The groups that a test belongs to; a name that is in no row of the table is a mistake."""
    found = frozenset(str(name) for mark in item.iter_markers("group") for name in mark.args)
    if unknown := found.difference(NAMES):
        raise pytest.UsageError(f"{item.nodeid}: no group is called {', '.join(unknown)} (scripts/testing/groups.py)")
    return found or frozenset({DEFAULT})


class Recorder:
    """Adds up a test's phases and writes its line after the last."""

    def __init__(self, told: orders.Orders) -> None:
        self._told = told
        self._path = Path(told.report)
        self._running: dict[str, results.Result] = {}
        self._errors: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """One phase of one test; that of a test whose worker died is called ???."""
        result = _joined(self._running.get(report.nodeid), report)
        self._running[report.nodeid] = result
        if report.when not in ("setup", "call"):
            self._write(self._running.pop(report.nodeid))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file that cannot be read counts as a failed test, one that skips itself as a skipped test."""
        if not report.passed and report.nodeid not in self._errors:
            self._errors.add(report.nodeid)
            self._write(results.Result(report.nodeid, report.outcome, 0.0, _reason(report)))

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Say what there is, where that is all that was asked for."""
        if session.config.option.collectonly:
            for item in session.items:
                alone = item.get_closest_marker("alone") is not None
                line = {"collected": item.nodeid, "groups": sorted(groups_of(item)), "alone": alone}
                results.append(self._path, line)

    def _write(self, result: results.Result) -> None:
        named = results.Result(self._told.prefix + result.test, result.outcome, result.seconds, result.reason)
        results.add(self._path, named)


def _joined(before: results.Result | None, report: pytest.TestReport) -> results.Result:
    """What is known of a test after one more phase: a failure in any is its failure."""
    seconds = report.duration + (before.seconds if before else 0.0)
    outcome = report.outcome
    reason = _reason(report) if report.skipped else ""
    if before and (before.outcome == "failed" or (before.outcome == "skipped" and outcome == "passed")):
        outcome, reason = before.outcome, before.reason
    return results.Result(report.nodeid, outcome, round(seconds, 3), reason)


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    return str(getattr(report, "wasxfail", ""))


def _in_part(item: pytest.Item, part: orders.Part) -> bool:
    return part == "all" or (item.get_closest_marker("alone") is not None) == (part == "alone")


def _is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


def _orders(config: pytest.Config) -> orders.Orders:
    return orders.read(config.getoption(orders.OPTION.removeprefix("--").replace("-", "_")))

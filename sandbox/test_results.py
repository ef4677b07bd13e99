"""Read test reports from outside: junit XML (pytest's dialect) and coverage XML (Cobertura's), as untrusted data.

The reports are the tested code's word, like everything in its process: a value from them is L1 at most.
No entity is expanded, nothing external is loaded, and sizes, counts and names are bounded.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal
from xml.etree.ElementTree import Element, ParseError

from arsandbox.sandbox.models import Model

MOST_BYTES = 32 * 1024**2
MOST_TESTS = 200_000
LONGEST_NAME = 1000
MOST_ELEMENTS = 2_000_000
MOST_DEPTH = 50
Outcome = Literal["passed", "failed", "skipped"]
_WHOLE = ("testcase", "class")
_WORST: tuple[Outcome, ...] = ("failed", "skipped", "passed")


class ReportError(ValueError):
    """The report is not one, or beyond a bound; the message says how, in words for a record."""


class Tests(Model):
    """Outcomes by test, as `classname::name`; an error counts as failed, an expected failure as skipped."""

    outcomes: dict[str, Outcome]

    def of(self, outcome: Outcome) -> list[str]:
        """The tests that ended so, sorted."""
        return sorted(name for name, ended in self.outcomes.items() if ended == outcome)

    def against(self, expected: Iterable[str]) -> Comparison:
        """How the `expected` tests fared: one that is missing or skipped counts as failed."""
        names = set(expected)
        passed = [name for name in names if self.outcomes.get(name) == "passed"]
        return Comparison(
            expected=len(names),
            passed=len(passed),
            missing=tuple(sorted(name for name in names if name not in self.outcomes)),
            skipped=tuple(sorted(name for name in names if self.outcomes.get(name) == "skipped")),
            failed=tuple(sorted(name for name in names if self.outcomes.get(name) == "failed")),
        )

    def expected(self) -> list[str]:
        """The tests that a later run of the same tests is held to: all but the skipped ones, sorted."""
        return sorted(name for name, ended in self.outcomes.items() if ended != "skipped")

    def metrics(self) -> dict[str, float]:
        """Counts, and the share of all tests but the skipped ones that passed."""
        found = {"tests": float(len(self.outcomes))}
        for outcome in _WORST:
            found[outcome] = float(len(self.of(outcome)))
        ran = found["passed"] + found["failed"]
        if ran:
            found["pass_rate"] = found["passed"] / ran
        return found


class Comparison(Model):
    """A run's tests against those that are expected."""

    expected: int
    passed: int
    missing: tuple[str, ...]
    skipped: tuple[str, ...]
    failed: tuple[str, ...]

    @property
    def pass_rate(self) -> float | None:
        """The share of the expected tests that passed; None where none are expected."""
        return self.passed / self.expected if self.expected else None


class Coverage(Model):
    """Covered and all lines, and branches where they were measured, counted from the entries themselves."""

    lines: int
    covered_lines: int
    branches: int
    covered_branches: int

    def metrics(self) -> dict[str, float]:
        """`line_rate` and, where branches were measured, `branch_rate`: shares from 0 to 1."""
        found = {"lines": float(self.lines)}
        if self.lines:
            found["line_rate"] = self.covered_lines / self.lines
        if self.branches:
            found["branch_rate"] = self.covered_branches / self.branches
        return found


def read_tests(report: bytes) -> Tests:
    """The outcomes in a junit report. A test that is named twice has the worst of its outcomes. Raises ReportError."""
    outcomes: dict[str, Outcome] = {}
    root = ""
    for depth, element in _elements(report):
        root = element.tag if depth == 0 else root
        if element.tag != "testcase":
            continue
        name = f"{element.get('classname', '')}::{element.get('name', '')}"
        if len(name) > LONGEST_NAME:
            raise ReportError(f"a test's name of {len(name)} characters")
        kinds = {child.tag for child in element}
        outcome: Outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        before = outcomes.get(name, "passed")
        outcomes[name] = min(before, outcome, key=_WORST.index)
        if len(outcomes) > MOST_TESTS:
            raise ReportError(f"more than {MOST_TESTS} tests")
    if root not in ("testsuite", "testsuites"):
        raise ReportError(f"not a junit report: its root is {root[:40]!r}")
    return Tests(outcomes=outcomes)


def read_coverage(report: bytes) -> Coverage:
    """The coverage in a Cobertura report, line by line; its own totals are not believed. Raises ReportError."""
    # A line may be listed below its method and below its class.
    seen: dict[tuple[str, str], tuple[bool, int, int]] = {}
    root = ""
    for depth, element in _elements(report):
        root = element.tag if depth == 0 else root
        if element.tag != "class":
            continue
        file = element.get("filename", "")
        for line in element.iter("line"):
            branches, taken = _branches(line.get("condition-coverage", ""))
            seen[file, line.get("number", "")] = (_number(line.get("hits", "0")) > 0, branches, taken)
            if len(seen) > 10 * MOST_TESTS:
                raise ReportError("more lines than can be counted")
    if root != "coverage":
        raise ReportError(f"not a coverage report: its root is {root[:40]!r}")
    return Coverage(
        lines=len(seen),
        covered_lines=sum(hit for hit, _, _ in seen.values()),
        branches=sum(branches for _, branches, _ in seen.values()),
        covered_branches=sum(taken for _, _, taken in seen.values()),
    )


def read_report(report: bytes) -> Mapping[str, float]:
    """The metrics of either kind of report. Raises ReportError."""
    try:
        return read_tests(report).metrics()
    except ReportError as error:
        if "not a junit report" not in str(error):
            raise
    return read_coverage(report).metrics()


def _elements(report: bytes) -> Iterator[tuple[int, Element]]:
    """(depth, element) as each ends, children first; what was read goes."""
    from defusedxml.common import DefusedXmlException
    from defusedxml.ElementTree import iterparse

    if len(report) > MOST_BYTES:
        raise ReportError(f"a report of more than {MOST_BYTES} bytes")
    count, above = 0, list[Element]()
    try:
        for event, element in iterparse(io.BytesIO(report), events=("start", "end"), forbid_dtd=False):
            if event == "start":
                count += 1
                above.append(element)
                if len(above) > MOST_DEPTH or count > MOST_ELEMENTS:
                    raise ReportError("too many elements, or nested too deeply")
                continue
            above.pop()
            yield len(above), element
            if above and not any(one.tag in _WHOLE for one in above):
                above[-1].remove(element)  # nobody needs it any more: memory is one test case's or one class's
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
        if isinstance(error, ReportError):
            raise
        raise ReportError(f"not XML that can be read: {type(error).__name__}") from error


def _branches(text: str) -> tuple[int, int]:
    """(branches, taken ones) of a text like `50% (1/2)`."""
    inside = text.partition("(")[2].partition(")")[0]
    taken, _, branches = inside.partition("/")
    if not inside:
        return 0, 0
    found, hit = _number(branches), _number(taken)
    if hit > found:
        raise ReportError("more branches taken than there are")
    return found, hit


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 12:
        raise ReportError(f"{text[:20]!r} where a count belongs")
    return int(text)

"""Test reports as untrusted data: outcomes, lost tests, and everything that is no report."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arsandbox.sandbox import test_results
from arsandbox.sandbox.metrics import read_metrics
from arsandbox.sandbox.test_results import ReportError, read_coverage, read_report, read_tests

JUNIT = b"""<?xml version="1.0" encoding="utf-8"?><testsuites name="pytest tests"><testsuite name="pytest" tests="6">
<testcase classname="tests.test_a" name="test_one" time="0.1" /><testcase classname="tests.test_a" name="test_two[x-1]">
<failure message="assert 1 == 2">long text</failure></testcase>
<testcase classname="tests.test_a" name="test_three"><skipped type="pytest.skip" message="no" /></testcase>
<testcase classname="tests.test_b" name="test_four"><error message="in set-up" /></testcase>
<testcase classname="tests.test_b" name="test_five"><skipped type="pytest.xfail" message="" /></testcase>
<testcase classname="tests.test_b" name="test_six"><system-out>words</system-out></testcase>
</testsuite></testsuites>"""
COVERAGE = b"""<?xml version="1.0" ?><!DOCTYPE coverage SYSTEM "http://cobertura.sourceforge.net/xml/coverage-04.dtd">
<coverage line-rate="0.99" lines-valid="1" lines-covered="1"><packages><package name="p"><classes>
<class name="a.py" filename="a.py"><methods/><lines><line number="1" hits="1"/><line number="2" hits="0"/>
<line number="3" hits="2" branch="true" condition-coverage="50% (1/2)"/></lines></class>
<class name="b.py" filename="b.py"><lines><line number="1" hits="0"/></lines></class>
</classes></package></packages></coverage>"""


def test_outcomes_of_a_junit_report() -> None:
    tests = read_tests(JUNIT)
    assert tests.of("passed") == ["tests.test_a::test_one", "tests.test_b::test_six"]
    assert tests.of("failed") == ["tests.test_a::test_two[x-1]", "tests.test_b::test_four"]
    assert tests.of("skipped") == ["tests.test_a::test_three", "tests.test_b::test_five"]
    assert tests.metrics() == {"tests": 6, "passed": 2, "failed": 2, "skipped": 2, "pass_rate": 0.5}


def test_what_is_missing_or_newly_skipped_counts_as_failed() -> None:
    expected = [*read_tests(JUNIT).expected(), "tests.test_a::test_three", "tests.test_c::test_gone"]
    compared = read_tests(JUNIT).against(expected)
    assert (compared.expected, compared.passed, compared.pass_rate) == (6, 2, 2 / 6)
    assert compared.missing == ("tests.test_c::test_gone",)
    assert compared.skipped == ("tests.test_a::test_three",)
    assert read_tests(JUNIT).against([]).pass_rate is None


def test_a_test_named_twice_has_the_worst_outcome() -> None:
    twice = b'<testsuite><testcase name="t"><failure/></testcase><testcase name="t"/></testsuite>'
    assert read_tests(twice).of("failed") == ["::t"]


def test_coverage_is_counted_and_its_totals_are_not_believed() -> None:
    coverage = read_coverage(COVERAGE)
    assert (coverage.lines, coverage.covered_lines, coverage.branches, coverage.covered_branches) == (4, 2, 2, 1)
    assert read_report(COVERAGE) == {"lines": 4, "line_rate": 0.5, "branch_rate": 0.5}


BOMB = b'<!DOCTYPE t [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]><testsuite><testcase name="&b;"/></testsuite>'
FILE = b'<!DOCTYPE t [<!ENTITY a SYSTEM "file:///etc/passwd">]><testsuite><testcase name="x">&a;</testcase></testsuite>'


@pytest.mark.parametrize(
    "report",
    [
        b"", b"no xml", b"<testsuite>", b"<html/>", BOMB, FILE, b"<a>" * 100_000,
        b'<testsuite><testcase name="' + b"x" * 2000 + b'"/></testsuite>',
        b'<?xml version="1.0" encoding="no-such"?><testsuite/>',
        b'<coverage><class filename="a"><line number="1" hits="-1"/></class></coverage>',
        b'<coverage><class filename="a"><line number="1" hits="1" condition-coverage="(3/2)"/></class></coverage>',
    ],
)  # fmt: skip
def test_what_is_no_report_is_refused(report: bytes) -> None:
    with pytest.raises(ReportError):
        read_report(report)


def test_memory_stays_small_whatever_the_report_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    many = b"<testsuite>" + b"<x/>" * 400_000 + b'<testcase name="t"/></testsuite>'
    tracemalloc.start()
    try:
        assert read_tests(many).of("passed") == ["::t"]
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()
    monkeypatch.setattr(test_results, "MOST_ELEMENTS", 1000)
    with pytest.raises(ReportError, match="too many"):
        read_tests(many)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_damaged_reports_give_numbers_or_a_refusal(data: st.DataObject) -> None:
    report = bytearray(data.draw(st.sampled_from([JUNIT, COVERAGE])))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(report) - 1))
        report[at : at + data.draw(st.integers(0, 30))] = data.draw(st.binary(max_size=30))
        if not report:
            return
    try:
        found = read_report(bytes(report))
    except ReportError:
        return
    assert all(isinstance(value, float) for value in found.values())
    assert 0 <= found.get("pass_rate", 0) <= 1 and 0 <= found.get("line_rate", 0) <= 1


def test_closing_lines() -> None:
    output = b"==== 3 passed, 1 failed, 2 skipped, 1 warning in 0.12s ====\nTOTAL      100     20    80%\n"
    assert read_metrics(output).values == {
        "passed": 3, "failed": 1, "skipped": 2, "pass_rate": 0.75, "line_rate": 0.8,
    }  # fmt: skip
    assert read_metrics(b"=== 2 errors in 61.00s (0:01:01) ===\n").values["pass_rate"] == 0
    assert read_metrics(b"=== short test summary info ===\nTOTAL 1 2\n").values == {}

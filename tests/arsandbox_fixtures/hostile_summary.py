"""What the hostile suite says at the end of a session."""

from __future__ import annotations

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many attacks were made on each engine, and how many were skipped (none may be where the engine is there)."""
    made: dict[str, int] = {}
    for report in terminalreporter.stats.get("passed", []) + terminalreporter.stats.get("failed", []):
        if "tests/hostile/" in report.nodeid and "[" in report.nodeid:
            kind = next((e for e in ("docker", "embedded") if f"-{e}]" in report.nodeid), None)
            key = f"on {kind}" if kind else ("controls" if "without_the" in report.nodeid else "before any sandbox")
            made[key] = made.get(key, 0) + 1
    if made:
        line = ", ".join(f"{count} {key}" for key, count in sorted(made.items()))
        terminalreporter.write_line(f"hostile suite: {line}; {len(terminalreporter.stats.get('skipped', []))} skipped")

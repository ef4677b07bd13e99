"""Fixtures of the hostile suite; the helpers are those of tests/integration."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

_HERE = Path(__file__).parent


def load(name: str, path: Path) -> ModuleType:
    """A helper module under one name, whoever asks first."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


support = load("arsandbox_test_support", _HERE.parent / "integration" / "support.py")
controls = load("arsandbox_test_controls", _HERE / "controls.py")


@pytest.fixture(scope="session")
def home() -> Iterator[Path]:
    """The session's state directory, with the image `cpu`."""
    support.image_digest()
    yield support.session_home()
    support.close_connections()


@pytest.fixture
def box(home: Path, tmp_path: Path) -> Callable[..., Any]:
    """Runs a program in a sandbox of its own."""
    count = iter(range(1000))

    def run(program: str | None = None, **options: Any) -> Any:
        place = tmp_path / f"box{next(count)}"
        place.mkdir()
        return support.box(place, program, **options)

    return run


def pytest_terminal_summary(terminalreporter: Any) -> None:
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

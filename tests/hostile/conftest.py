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

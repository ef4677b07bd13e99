"""Fixtures of the command-line tests; the helpers are those of tests/integration."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def _support() -> ModuleType:
    """support.py under one name, whoever asks first: its state directory and image are made once a session."""
    name = "arsandbox_test_support"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "integration" / "support.py")
        assert spec is not None and spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


support = _support()


@pytest.fixture(scope="session")
def home() -> Iterator[Path]:
    """The session's state directory, with the image `cpu`."""
    support.image_digest()
    yield support.session_home()
    support.close_connections()


@pytest.fixture
def project(home: Path, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Makes git repositories with a training task that takes no time."""
    yield from support.projects(tmp_path)


@pytest.fixture
def box(home: Path, tmp_path: Path) -> Callable[..., Any]:
    """Runs a program in a sandbox of its own."""
    count = iter(range(1000))

    def run(program: str | None = None, **options: Any) -> Any:
        place = tmp_path / f"box{next(count)}"
        place.mkdir()
        return support.box(place, program, **options)

    return run

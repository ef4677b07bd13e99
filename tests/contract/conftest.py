"""The state directory and image that the contract's tests share with the other tests against an engine."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

pytest.register_assert_rewrite("arsandbox.sandbox.testing")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What the contract says of deadlines is said in seconds, which other tests would use up."""
    for item in items:
        function = getattr(item, "function", None)
        if getattr(function, "__qualname__", "").startswith("EndingsContract."):
            item.add_marker("alone")


def _support() -> ModuleType:
    name = "arsandbox_test_support"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "integration" / "support.py")
        assert spec is not None and spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture(scope="session")
def docker_image() -> Iterator[str]:
    """The digest of the image `cpu` in the Docker engine."""
    support = _support()
    yield support.image_digest()
    support.close_connections()


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state directory of this test alone, for engines that need no image."""
    place = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("ARSANDBOX_HOME", str(place))
    return place

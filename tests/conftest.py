"""What the whole test session shares, also between parallel workers: one cache of image layers."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

_LAYERS = "ARSANDBOX_TEST_LAYERS"


def _standins() -> None:
    """tests/standins/nvidia.py under one name, for every test module that needs it."""
    name = "arsandbox_test_nvidia"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / "standins" / "nvidia.py")
        assert spec is not None and spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)


_standins()


@pytest.fixture(scope="session")
def nvml_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the stand-in libnvidia-ml.so.1 is."""
    place: Path | None = sys.modules["arsandbox_test_nvidia"].compiled(tmp_path_factory.mktemp("nvml"))
    if place is None:
        pytest.skip("there is no C compiler for the stand-in libnvidia-ml.so.1")
    return place


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput") and _LAYERS not in os.environ:
        os.environ[_LAYERS] = tempfile.mkdtemp(prefix="ars-layers-")  # the workers inherit it
        config.add_cleanup(lambda: shutil.rmtree(Path(os.environ.pop(_LAYERS)), ignore_errors=True))

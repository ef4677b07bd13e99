"""One cache of image layers for the whole test session, also for parallel workers."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest

_LAYERS = "ARSANDBOX_TEST_LAYERS"


def layer_cache() -> Path:
    """The session's directory of image layers."""
    return Path(os.environ[_LAYERS])


def pytest_configure(config: pytest.Config) -> None:
    """Make the directory before any test runs; it goes with the session."""
    if not hasattr(config, "workerinput") and _LAYERS not in os.environ:
        os.environ[_LAYERS] = tempfile.mkdtemp(prefix="ars-layers-")  # the workers inherit it
        config.add_cleanup(lambda: shutil.rmtree(Path(os.environ.pop(_LAYERS)), ignore_errors=True))

"""What the whole test session shares, also between parallel workers: one cache of image layers."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest

_LAYERS = "ARSANDBOX_TEST_LAYERS"


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput") and _LAYERS not in os.environ:
        os.environ[_LAYERS] = tempfile.mkdtemp(prefix="ars-layers-")  # the workers inherit it
        config.add_cleanup(lambda: shutil.rmtree(Path(os.environ.pop(_LAYERS)), ignore_errors=True))

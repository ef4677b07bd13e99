"""A machine with GPUs, as far as the stand-in driver goes."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

import pytest

from arsandbox.sandbox import advisories
from arsandbox.sandbox.gpu import grant as granting
from arsandbox.sandbox.gpu import nvml
from arsandbox_fixtures.nvidia import UUIDS, Driver, Gpu


@pytest.fixture
def driver(nvml_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    """A machine with two idle GPUs. The library stays loaded: without the variable its driver is not."""
    ctypes.CDLL(str(nvml_directory / "libnvidia-ml.so.1"))  # found again by its soname
    found = Driver(tmp_path / "driver")
    monkeypatch.setenv("STANDIN_NVML", str(found.file))
    monkeypatch.setattr(advisories, "toolkit_version", lambda: None)
    monkeypatch.setattr("arsandbox.sandbox.gpu.sampling.INTERVAL_S", 0.01)
    monkeypatch.setattr(granting, "_SETTLED_S", 0.3)
    monkeypatch.setattr("arsandbox.sandbox.state.machine_locks", lambda: tmp_path / "locks")
    monkeypatch.setattr(nvml.Session, "read", found.watch(nvml.Session.read))
    nvml.facts.cache_clear()
    found.tell(*map(Gpu, UUIDS[:2]))
    yield found
    nvml.facts.cache_clear()

"""Floods of output against a whole `arsandbox run`; how sandboxes end is in the engines' contract (tests/contract)."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from arsandbox.policies.model import MIB
from arsandbox_fixtures.leftovers import leftovers
from arsandbox_fixtures.task import CONFIG, answering

pytestmark = [pytest.mark.engine, pytest.mark.timeout(120)]


@pytest.mark.parametrize("flood", ["x * 65536", "'loss: 1.5\\\\n' * 6000"])
def test_a_flood_does_not_grow_the_controller(project: Any, flood: str) -> None:
    quiet = project()
    train = answering(10, before="pass")
    calm = peak_of(quiet, train)
    noisy = project({"arsandbox.toml": CONFIG + 'output = "48m"\n'})
    program = f"""
        import os
        x = "x"
        block = ({flood}).encode()
        while True: os.write(1, block)
    """
    loud = peak_of(noisy, answering(10, before=program), verdict="output")
    assert loud - calm < 24 * MIB, (loud, calm)
    log = next(noisy.state().glob("experiments/*/train.log"))
    assert 40 * MIB < max(p.stat().st_size for p in log.parents[1].glob("*/train.log")) <= 48 * MIB


def peak_of(project: Any, train: str, verdict: str = "baseline") -> int:
    """The peak resident memory of a controller that runs `train` as the base commit."""
    project.commit({"train.py": train})
    running = project.start("--json")
    peak = 0
    while running.process.poll() is None:
        try:
            status = Path(f"/proc/{running.process.pid}/status").read_text()
            peak = max([peak, *(int(row.split()[1]) * 1024 for row in status.splitlines() if row.startswith("VmHWM"))])
        except OSError:
            break
        time.sleep(0.01)
    done = running.wait()
    assert done.record["verdict"] == verdict, done
    return peak


def test_nothing_is_left_of_all_this(home: Path) -> None:
    assert leftovers(home) == []

"""Every attack that runs inside a sandbox is stopped; without the one protection that it names it succeeds.

All attacks share one sandbox of an engine, and all attacks with the same control one sandbox without it.
"""

from __future__ import annotations

import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest

from arsandbox.policies.model import Limits
from arsandbox.sandbox.engines.registry import open_engine
from arsandbox.sandbox.models import ImageRef
from arsandbox.sandbox.probe.catalogue import load
from arsandbox.sandbox.probe.group import Answer, attempt
from arsandbox_fixtures.controls import without
from arsandbox_fixtures.image import image_digest

pytestmark = pytest.mark.engine

ATTACKS = {attack.name: attack for attack in load()}
CONTROLLED = {name: attack for name, attack in ATTACKS.items() if attack.control.off}
LIMITS = Limits(cpus=1, memory_bytes=256 * 1024**2, pids=128, disk_bytes=32 * 1024**2, disk_inodes=4000)
ENGINES = ("docker", "embedded")


def _image(engine: Any) -> ImageRef:
    """The image `cpu`, or what stands in for it where an engine has no images."""
    own = engine.find_image("cpu") if hasattr(engine, "find_image") else None
    return own or ImageRef(name="cpu", digest=image_digest())


@functools.cache
def answers(engine: str, off: str = "") -> dict[str, Answer]:
    """What came of all attacks in one sandbox, or of those with the control `off` in one without that protection."""
    opened = open_engine(engine)
    image = _image(opened)
    if not off:
        return attempt(opened, image, list(ATTACKS.values()), LIMITS)
    place = Path(tempfile.mkdtemp(prefix="control-"))
    try:
        with without(off, place):
            chosen = [attack for attack in CONTROLLED.values() if attack.control.off == off]
            return attempt(opened, image, chosen, LIMITS)
    finally:
        shutil.rmtree(place, ignore_errors=True)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ATTACKS)
def test_the_attack_is_stopped(home: Path, engine: str, name: str) -> None:
    attack, answer = ATTACKS[name], answers(engine)[name]
    if attack.expected(engine) == "not offered":
        assert answer.outcome == "succeeded", f"it is stopped after all: {answer}"
        return
    assert answer.outcome == "stopped", f"{attack.tries}: {answer}"
    assert not answer.errno or answer.errno in (*attack.errno, "SIGSYS"), f"stopped by chance: {answer}"


@pytest.mark.parametrize("name", CONTROLLED)
def test_without_the_protection_it_succeeds(home: Path, name: str) -> None:
    answer = answers("docker", CONTROLLED[name].control.off)[name]
    assert answer.outcome == "succeeded", f"without {CONTROLLED[name].control.off}: {answer}"

"""The fake engine keeps the port's mechanics."""

from __future__ import annotations

from pathlib import Path

import pytest

from arsandbox.sandbox.engines.fake import FakeEngine, Script
from arsandbox.sandbox.testing import MechanicsContract, Subject


class TestFake(MechanicsContract):
    @pytest.fixture
    def subject(self, own_home: Path) -> Subject:
        told: dict[str, Script] = {}
        engine = FakeEngine(lambda spec: told[spec.experiment])
        return Subject("fake", engine, engine.find_image("any"), tell=told.__setitem__)

"""The embedded engine keeps the whole contract, as whoever runs this: see test_embedded_user.py, too."""

from __future__ import annotations

from pathlib import Path

import pytest

from arsandbox.sandbox.engines.registry import open_engine
from arsandbox.sandbox.testing import EngineContract, Subject

pytestmark = [pytest.mark.engine, pytest.mark.timeout(180)]


class TestEmbedded(EngineContract):
    @pytest.fixture
    def subject(self, own_home: Path) -> Subject:
        engine = open_engine("embedded")
        image = engine.find_image("host")
        assert image is not None
        return Subject("embedded", engine, image)

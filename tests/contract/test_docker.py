"""The Docker engine keeps the whole contract."""

from __future__ import annotations

import pytest

from arsandbox.sandbox.engines.registry import open_engine
from arsandbox.sandbox.models import ImageRef
from arsandbox.sandbox.testing import EngineContract, Subject

pytestmark = [pytest.mark.engine, pytest.mark.timeout(180)]


class TestDocker(EngineContract):
    @pytest.fixture
    def subject(self, docker_image: str) -> Subject:
        return Subject("docker", open_engine("docker"), ImageRef(name="cpu", digest=docker_image))

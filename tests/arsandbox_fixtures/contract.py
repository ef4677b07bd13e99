"""What the engines' contract needs: a state directory of each test's own, and the image where an engine has images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state directory of this test alone, for engines that need no image."""
    place = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("ARSANDBOX_HOME", str(place))
    return place


@pytest.fixture(scope="session")
def docker_image() -> Iterator[str]:
    """The digest of the image `cpu` in the Docker engine."""
    # Here, so that the other engines' contracts do without Docker.
    from arsandbox_fixtures.docker_engine import close_connections
    from arsandbox_fixtures.image import image_digest

    yield image_digest()
    close_connections()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What the contract says of deadlines is said in seconds, which other tests would use up."""
    for item in items:
        function = getattr(item, "function", None)
        if getattr(function, "__qualname__", "").startswith("EndingsContract."):
            item.add_marker("alone")

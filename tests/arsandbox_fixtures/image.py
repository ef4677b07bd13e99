"""The image `cpu` in the Docker engine, and the session's state directory that knows it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from arsandbox.images.build import BuiltImage, build_image
from arsandbox.images.catalogue import Catalogue
from arsandbox.images.recipe import load_recipe
from arsandbox.sandbox.engines.registry import open_engine
from arsandbox.sandbox.errors import ArsandboxError
from arsandbox_fixtures.docker_engine import close_connections
from arsandbox_fixtures.home import session_home
from arsandbox_fixtures.layer_cache import layer_cache


def build_cpu(load: Callable[[Iterable[bytes]], str]) -> BuiltImage:
    """The image `cpu`, made of the session's layers and given to `load`."""
    return build_image(load_recipe("cpu"), cache=layer_cache(), load=load, progress=lambda line: None)


def image_digest() -> str:
    """The digest of the image `cpu`, built on the first call; fails the test where there is no engine.

    Asked again for each test: another test module may have removed the image from the shared engine.
    """
    home = session_home()
    try:
        engine = open_engine("docker")
    except ArsandboxError as error:
        pytest.fail(f"these tests need a Docker engine (DOCKER_HOST): {error}")
    pinned = {entry.name: entry.digest for entry in Catalogue(home / "images.json").entries()}
    if "cpu" not in pinned or not engine.has_image(pinned["cpu"]):
        return Catalogue(home / "images.json").pin(build_cpu(engine.load_image)).digest
    return pinned["cpu"]


@pytest.fixture(scope="session")
def home() -> Iterator[Path]:
    """The session's state directory, with the image `cpu`."""
    image_digest()
    yield session_home()
    close_connections()

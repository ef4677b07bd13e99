"""Images by digest, against a real registry (Debian's docker-registry) on loopback."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker.errors
import pip
import pytest

from arsandbox.images.archive import ArchiveLayer, compose
from arsandbox.images.build import BuiltImage
from arsandbox.images.catalogue import Catalogue
from arsandbox.images.layers import Layer, LayerCache
from arsandbox.images.recipe import load_recipe
from arsandbox.images.tarlayer import file_member, tree_members, with_parents, write_layer
from arsandbox.images.wheels import packages_folder
from arsandbox.sandbox.engines.docker import exchange
from arsandbox.sandbox.engines.registry import open_engine
from arsandbox.sandbox.errors import MachineError
from arsandbox_fixtures.command_line import arsandbox
from arsandbox_fixtures.docker_engine import docker_client
from arsandbox_fixtures.home import new_home
from arsandbox_fixtures.image import image_digest
from arsandbox_fixtures.task import TRAIN
from arsandbox_fixtures.waiting import wait_for

PROGRAM = shutil.which("docker-registry", path=f"{os.environ['PATH']}:{Path(sys.prefix) / 'bin'}")
pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(PROGRAM is None, reason="docker-registry is not installed: scripts/test brings it"),
    pytest.mark.timeout(240),
]


@dataclass
class Registry:
    """A running registry: "HOST:PORT" and where it keeps its blobs."""

    address: str
    storage: Path
    process: subprocess.Popen[bytes]

    def push(self, digest: str, name: str) -> str:
        """Push the engine's image `digest`; returns its reference by digest. Fails the test if that fails."""
        client = docker_client()
        client.images.get(digest).tag(f"{self.address}/{name}", "latest")
        try:
            lines = list(client.api.push(f"{self.address}/{name}", tag="latest", stream=True, decode=True))
        finally:
            client.images.remove(f"{self.address}/{name}:latest")
        assert not [line for line in lines if "error" in line], lines
        manifest = next(line["aux"]["Digest"] for line in lines if "aux" in line)
        return f"{self.address}/{name}@{manifest}"

    def layer_blobs(self, reference: str) -> list[Path]:
        """The files of the image's layers."""
        name, _, digest = reference.removeprefix(f"{self.address}/").partition("@")
        request = urllib.request.Request(
            f"http://{self.address}/v2/{name}/manifests/{digest}",
            headers={"Accept": "application/vnd.docker.distribution.manifest.v2+json"},
        )
        with urllib.request.urlopen(request) as answer:
            layers = [layer["digest"].removeprefix("sha256:") for layer in json.load(answer)["layers"]]
        return [self.storage / "docker/registry/v2/blobs/sha256" / one[:2] / one / "data" for one in layers]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with started(tmp_path_factory.mktemp("registry")) as running:
        yield running


@contextlib.contextmanager
def started(place: Path) -> Iterator[Registry]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = place / "config.yml"
    config.write_text(
        "version: 0.1\nlog: {level: error}\n"
        f"storage: {{filesystem: {{rootdirectory: {place / 'storage'}}}}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n"
    )
    with (place / "log").open("wb") as log:
        process = subprocess.Popen([str(PROGRAM), "serve", str(config)], stdout=log, stderr=log)
    try:

        def answers() -> bool:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/") as answer:
                return bool(answer.status == 200)
            return False

        wait_for(answers, what="the registry's answer")
        yield Registry(f"127.0.0.1:{port}", place / "storage", process)
    finally:
        process.terminate()
        process.wait(10)


def small_image(place: Path, *, volumes: bool = False) -> str:
    """A new image of one tiny layer, loaded; returns its ID."""
    cache = LayerCache(place / "layers")

    def content(target: Any) -> tuple[tuple[str, str], ...]:
        write_layer(target, [file_member("random", os.urandom(100_000))])
        return ()

    made = cache.obtain("aa", content)
    layers = [ArchiveLayer(cache.path(made), made.sha256, made.size_bytes, "test")]
    archive = compose(load_recipe("cpu"), "x86_64", layers)
    digest = open_engine("docker").load_image(archive.stream())
    if not volumes:
        return digest
    container = docker_client().containers.create(digest, ["x"])
    committed = container.commit(changes=["VOLUME /data"])
    container.remove()
    return str(committed.id)


def forget(digest: str) -> None:
    """Remove an image and what was built on it; the rest of a tree without names goes with its last child."""
    client = docker_client()
    for child in [one["Id"] for one in client.api.images(all=True) if one["ParentId"] == digest]:
        forget(child)
    with contextlib.suppress(docker.errors.ImageNotFound):
        client.images.remove(digest, force=True)


def test_a_pull_by_digest_brings_the_very_image(home: Path, registry: Registry, tmp_path: Path) -> None:
    digest = small_image(tmp_path)
    reference = registry.push(digest, "own/small")
    forget(digest)
    found = exchange.pull(docker_client(), reference)
    assert (found.digest, found.system, found.volumes) == (digest, "linux", ())
    assert open_engine("docker").has_image(digest)
    forget(digest)


def test_a_digest_that_the_registry_lacks_is_not_asked_for_again(
    home: Path, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, exchange.__name__)
    with pytest.raises(MachineError, match="is not in its registry"):
        exchange.pull(docker_client(), f"{registry.address}/own/small@sha256:{'0' * 64}")
    assert not caplog.records


def test_a_corrupted_blob_is_never_an_image(
    home: Path, registry: Registry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, exchange.__name__)
    digest = small_image(tmp_path)
    reference = registry.push(digest, "own/corrupted")
    forget(digest)
    (blob,) = registry.layer_blobs(reference)
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 1
    blob.write_bytes(data)
    with pytest.raises(MachineError, match=rf"cannot pull .*{reference[-12:]} \(3 tries\)"):
        exchange.pull(docker_client(), reference)
    assert len(caplog.records) == exchange.TRIES - 1
    assert not open_engine("docker").has_image(digest)


def test_a_dead_registry_is_given_up_on(home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, exchange.__name__)
    with started(tmp_path) as running:
        reference = f"{running.address}/own/small@sha256:{'0' * 64}"
    began = time.monotonic()
    with pytest.raises(MachineError, match=r"cannot pull .* \(3 tries\).*refused") as caught:
        exchange.pull(docker_client(), reference)
    assert time.monotonic() - began < 60
    assert len(caplog.records) == exchange.TRIES - 1
    assert caught.value.exit_code == 4 and "is the registry up" in caught.value.hint


def test_an_image_of_ones_own_runs_by_its_digest(home: Path, project: Any, registry: Registry, tmp_path: Path) -> None:
    """`image add`, a run in it, `lock`, and what a changed pin does to a locked project."""
    digest = image_digest()
    reference = registry.push(digest, "own/base")
    task = project()
    env = {**task.env, "ARSANDBOX_HOME": str(new_home())}
    task.env, task.home = env, Path(env["ARSANDBOX_HOME"])
    try:
        added = arsandbox("image", "add", "mine", reference, "--json", env=env)
        assert added.code == 0, added
        assert added.record["digest"] == digest and added.record["reference"] == reference
        done = task.run("--json", "--image", "mine")
        assert done.code == 0, done
        assert done.record["image"] == {"name": "mine", "digest": digest}

        unlocked = task.commit({"arsandbox.lock": '{"version": 1, "images": {}}'}, "a lock of nothing")
        refused = task.run("--image", "mine")
        assert refused.code == 3 and "does not lock the image 'mine'" in refused.err, refused
        written = arsandbox("image", "lock", "mine", "--repo", task.path, env=env)
        assert written.code == 0 and written.out == f"mine {digest}\n", written
        lock = json.loads((task.path / "arsandbox.lock").read_text())["images"]["mine"]
        assert (lock["digest"], lock["reference"]) == (digest, reference)
        task.git("commit", "-qam", "lock")
        assert task.git("rev-parse", "HEAD") != unlocked
        assert task.run("--image", "mine").code == 0
        assert arsandbox("image", "verify", "--repo", task.path, env=env).code == 0

        # Somebody lets the name stand for something else.
        catalogue = task.home / "images.json"
        catalogue.write_text(catalogue.read_text().replace(digest, "sha256:" + "1" * 64))
        refused = task.run("--image", "mine")
        assert refused.code == 3 and f"arsandbox.lock at {task.git('rev-parse', 'HEAD')[:12]} says" in refused.err
        assert "fix: build or add the locked one, or accept this one: arsandbox image lock mine" in refused.err
        verified = arsandbox("image", "verify", "--repo", task.path, "--json", env=env)
        assert verified.code == 3 and json.loads(verified.out)[0]["standing"] == "drifted", verified
    finally:
        shutil.rmtree(task.home, ignore_errors=True)
        with contextlib.suppress(docker.errors.ImageNotFound):
            docker_client().images.remove(reference)  # its name alone: others run the image


def test_what_cannot_be_added(home: Path, registry: Registry, tmp_path: Path) -> None:
    for name, reference, code, said in (
        ("mine", f"{registry.address}/own/small:latest", 2, "does not name an image by its digest"),
        ("cpu", f"{registry.address}/own/small@sha256:{'0' * 64}", 2, "belongs to a recipe"),
        ("../x", f"{registry.address}/own/small@sha256:{'0' * 64}", 2, "not usable"),
        ("mine", f"{registry.address}/own/small@sha256:{'0' * 64}", 4, "is not in its registry"),
    ):
        done = arsandbox("image", "add", name, reference)
        assert done.code == code and said in done.err, done
    digest = small_image(tmp_path, volumes=True)
    reference = registry.push(digest, "own/volumes")
    done = arsandbox("image", "add", "mine", reference)
    assert done.code == 3 and "declares volumes (/data)" in done.err, done
    forget(digest)


def test_verify_finds_a_layer_that_was_changed_below_the_engine(home: Path, tmp_path: Path) -> None:
    digest = small_image(tmp_path)
    own_home = new_home()
    env = {"ARSANDBOX_HOME": str(own_home)}
    built = BuiltImage(
        name="mine", digest=digest, size_bytes=1, recipe_sha256="", packages=(), built_seconds=1, reference="r"
    )
    Catalogue(own_home / "images.json").pin(built)
    try:
        done = arsandbox("image", "verify", "mine", "--repo", tmp_path, env=env)
        assert done.code == 0 and "ok" in done.out, done
        upper = Path(docker_client().images.get(digest).attrs["GraphDriver"]["Data"]["UpperDir"])
        if not os.access(upper, os.W_OK):
            pytest.skip("the engine's storage cannot be written by this user")
        with (upper / "random").open("r+b") as file:
            file.write(b"changed")
        done = arsandbox("image", "verify", "mine", "--repo", tmp_path, "--json", env=env)
        assert done.code == 3 and json.loads(done.out)[0]["standing"] == "damaged", done
        forget(digest)
        done = arsandbox("image", "verify", "mine", "--repo", tmp_path, "--json", env=env)
        assert done.code == 4 and json.loads(done.out)[0]["standing"] == "missing", done
    finally:
        forget(digest)
        shutil.rmtree(own_home, ignore_errors=True)


@pytest.mark.group("engines")
def test_wheels_are_installed_on_a_base_that_was_pulled(home: Path, project: Any, registry: Registry) -> None:
    """`image build NAME --from REF`, on a base with Python and pip: what python:slim is elsewhere."""
    image_digest()
    cache = Path(os.environ["ARSANDBOX_TEST_LAYERS"])
    made = [Layer.model_validate_json(path.read_bytes()) for path in cache.glob("*.json")]
    rootfs = next(one for one in made if "libc6" in dict(one.packages))

    def with_pip(target: Any) -> tuple[tuple[str, str], ...]:
        folder = f"{packages_folder('3.11')}/pip"
        write_layer(
            target, with_parents(tree_members(Path(pip.__file__).parent, folder, lambda n: "__pycache__" not in n))
        )
        return ()

    layers = [rootfs, LayerCache(cache).obtain("f1", with_pip)]
    archive = compose(
        load_recipe("cpu"), "x86_64",
        [ArchiveLayer(LayerCache(cache).path(one), one.sha256, one.size_bytes, "test base") for one in layers],
    )  # fmt: skip
    base = open_engine("docker").load_image(archive.stream())
    reference = registry.push(base, "own/python")
    own_home = new_home()
    task = project()
    task.env, task.home = {"ARSANDBOX_HOME": str(own_home)}, own_home
    try:
        built = arsandbox("image", "build", "cpu", "--from", reference, "--json", env=task.env, timeout=200)
        assert built.code == 0, built
        assert built.record["reference"] == reference and built.record["digest"] != base
        task.commit({"train.py": "import numpy\n" + TRAIN + "    assert numpy.__file__.startswith('/opt/train/')\n"})
        done = task.run("--json")
        assert done.code == 0, done
        assert done.record["image"]["digest"] == built.record["digest"]
        forget(built.record["digest"])
    finally:
        shutil.rmtree(own_home, ignore_errors=True)
        forget(base)

"""The `cpu` image and Dockerfile.train, built for real on the engine that DOCKER_HOST names."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import docker
import pip
import pytest
from docker.errors import BuildError, ImageNotFound
from docker.models.containers import Container

from arsandbox.images.archive import Archive, ArchiveLayer, compose
from arsandbox.images.build import BuiltImage, build_image
from arsandbox.images.layers import Layer, LayerCache
from arsandbox.images.recipe import Recipe, load_recipe
from arsandbox.images.rootfs import build_rootfs
from arsandbox.images.tarlayer import tree_members, with_parents, write_layer
from arsandbox.images.wheels import packages_folder, platforms
from arsandbox_fixtures.layer_cache import layer_cache
from arsandbox_fixtures.places import ROOT

pytestmark = [pytest.mark.engine, pytest.mark.group("long"), pytest.mark.timeout(240)]

# Its own variable gives it an ID of its own: these tests remove it, and others run the image `cpu` meanwhile.
_CPU = load_recipe("cpu")
RECIPE = _CPU.model_copy(update={"environment": {**_CPU.environment, "ARSANDBOX_TEST_BUILD": os.urandom(8).hex()}})


def image_ids(client: docker.DockerClient, pieces: Iterable[bytes]) -> str:
    return str(client.images.load(pieces)[0].id)  # type: ignore[arg-type]  # a stream is fine


def run(client: docker.DockerClient, image: str, command: list[str], **more: Any) -> str:
    """The command's output, under the restrictions of a run. Fails unless it ends with 0."""
    container: Container = client.containers.create(
        image, command, network_disabled=True, network_mode="none", read_only=True, cap_drop=["ALL"],
        security_opt=["no-new-privileges"], **more,
    )  # fmt: skip
    try:
        container.start()
        code = container.wait(timeout=60)["StatusCode"]
        output = container.logs().decode()
        assert code == 0, output
        return output
    finally:
        container.remove(force=True)


def remove_with_children(client: docker.DockerClient, digest: str) -> None:
    """Remove an image and what failed builds left on top of it, and no image of anybody else."""
    for child in [one["Id"] for one in client.api.images(all=True) if one["ParentId"] == digest]:
        remove_with_children(client, child)
    with contextlib.suppress(ImageNotFound):  # removing a child takes its untagged parents along
        client.images.remove(digest, force=True)


@pytest.fixture(scope="module")
def client() -> Iterator[docker.DockerClient]:
    client = docker.from_env()
    client.ping()
    yield client
    client.close()


@pytest.fixture(scope="module")
def cache() -> Path:
    return layer_cache()


@pytest.fixture(scope="module")
def image(client: docker.DockerClient, cache: Path) -> Iterator[BuiltImage]:
    # build_image itself refuses an ID that differs from the computed one.
    built = build_image(RECIPE, cache=cache, load=lambda pieces: image_ids(client, pieces), progress=print)
    yield built
    client.images.remove(built.digest, force=True)


def test_the_engine_has_the_image_under_the_computed_id(client: docker.DockerClient, image: BuiltImage) -> None:
    found = client.images.get(image.digest)
    assert found.id == image.digest
    assert found.tags == [f"arsandbox/cpu:{image.digest[7:19]}"]
    assert found.labels == {"arsandbox.image": "cpu", "arsandbox.recipe": RECIPE.digest}
    assert image.size_bytes < 300_000_000
    assert {"python3.11", "libc6", "busybox-static"} <= {name for name, _ in image.packages}
    assert "ca-certificates" not in dict(image.packages)


def test_a_build_from_the_cache_is_the_same_image(client: docker.DockerClient, image: BuiltImage, cache: Path) -> None:
    again = build_image(RECIPE, cache=cache, load=lambda pieces: image_ids(client, pieces), progress=print)
    assert again.digest == image.digest
    assert again.packages == image.packages


def test_a_build_from_nothing_is_the_same_image(client: docker.DockerClient, image: BuiltImage, tmp_path: Path) -> None:
    """Neither the image nor anything of its cache is there when it is built the second time."""
    client.images.remove(image.digest, force=True)
    said: list[str] = []
    moved: list[str] = []
    again = build_image(
        RECIPE,
        cache=tmp_path / "empty",
        load=lambda pieces: image_ids(client, pieces),
        progress=said.append,
        transfer=lambda name, done, total: moved.append(name),
    )
    assert again.digest == image.digest == client.images.get(image.digest).id
    assert (again.packages, again.wheels) == (image.packages, image.wheels)
    assert [line.partition(":")[0] for line in said if line.endswith("building")] == ["system", "wheels", "bytecode"]
    assert {"loading", *dict(image.wheels)} == set(moved)  # every wheel came anew
    assert not list((tmp_path / "empty" / "wheels").rglob("*.whl"))  # and is kept as a layer alone


def test_the_check_runs_as_the_recipes_user(client: docker.DockerClient, image: BuiltImage) -> None:
    recipe = RECIPE
    run(client, image.digest, list(recipe.check), user=recipe.user)
    said = run(client, image.digest, ["sh", "-c", "id -u; id -g; id -un; pwd; python -V; python3 -V"])
    assert said.split() == ["61000", "61000", "sandbox", "/workspace", "Python", "3.11.2", "Python", "3.11.2"]


def test_the_standard_library_is_whole_and_compiled(client: docker.DockerClient, image: BuiltImage) -> None:
    modules = "bz2, ctypes, decimal, hashlib, lzma, multiprocessing, socket, sqlite3, ssl, uuid, zlib"
    program = (
        f"import {modules}, numpy, os, socket\n"
        "assert socket.gethostbyname('localhost') == '127.0.0.1'\n"
        "assert socket.getaddrinfo(socket.gethostname(), 80)\n"
        "for module in (numpy, multiprocessing): assert os.path.exists(module.__cached__), module\n"
        "print(float(numpy.linalg.norm(numpy.eye(4))), numpy.__path__[0])"
    )
    said = run(client, image.digest, ["python", "-c", program])
    assert said.split() == ["2.0", "/usr/local/lib/python3.11/dist-packages/numpy"]


def test_the_image_holds_nothing_dangerous_or_of_this_machine(client: docker.DockerClient, image: BuiltImage) -> None:
    # As root, so that no folder stays unseen.
    everything = ["find", "/", "-xdev", "-perm", "/6000"]
    assert run(client, image.digest, everything, user="0:0", cap_add=["DAC_READ_SEARCH"]) == ""
    names = run(client, image.digest, ["find", "/", "-xdev"], user="0:0", cap_add=["DAC_READ_SEARCH"]).split("\n")
    assert "/workspace" in names
    for prefix in ("/etc/apt", "/etc/ssl", "/usr/share/ca-certificates", "/var/lib/apt", "/var/lib/dpkg"):
        assert not [name for name in names if name == prefix or name.startswith(prefix + "/")]
    assert not [name for name in names if name.endswith((".crt", ".pem", ".deb"))]


# Dockerfile.train


@pytest.fixture(scope="module")
def base(client: docker.DockerClient, image: BuiltImage, cache: Path) -> Iterator[str]:
    """A base with Python and pip but without the wheels: what python:slim is elsewhere."""
    archive = base_archive(RECIPE, cache)
    digest = image_ids(client, archive.stream())
    yield digest
    remove_with_children(client, digest)


def base_archive(recipe: Recipe, cache: Path) -> Archive:
    def pip_layer(target: object) -> tuple[tuple[str, str], ...]:
        folder = Path(pip.__file__).parent
        prefix = f"{packages_folder(recipe.python)}/pip"
        members = tree_members(folder, prefix, lambda name: "__pycache__" not in name)
        write_layer(target, with_parents(members))  # type: ignore[arg-type]
        return ()

    def rootfs_layer(target: object) -> tuple[tuple[str, str], ...]:
        scratch = cache / "scratch"
        scratch.mkdir(mode=0o711)
        return build_rootfs(recipe, target, scratch, print)  # type: ignore[arg-type]

    store = LayerCache(cache)
    # The image's system layer is the one that brought Debian's packages; build it if it is not there.
    found = [Layer.model_validate_json(path.read_bytes()) for path in cache.glob("*.json")]
    rootfs = next((one for one in found if "libc6" in dict(one.packages)), None) or store.obtain("f0", rootfs_layer)
    layers = [rootfs, store.obtain("f1", pip_layer)]
    composed = [ArchiveLayer(store.path(one), one.sha256, one.size_bytes, "test base") for one in layers]
    return compose(recipe, platform.machine(), composed)


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build context as in a checkout, without a wheelhouse."""
    folder = tmp_path_factory.mktemp("context")
    (folder / "images" / "cpu").mkdir(parents=True)
    for name in ("Dockerfile.train", ".dockerignore", "images/cpu/requirements.lock"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def build_train(client: docker.DockerClient, context: Path, base: str) -> str:
    built, _ = client.images.build(
        path=str(context),
        dockerfile="Dockerfile.train",
        buildargs={"BASE": base, "PIP_NO_INDEX": "1"},
        network_mode="none",
        rm=True,
        forcerm=True,
    )
    return str(built.id)


def test_dockerfile_train_builds_from_a_wheelhouse_without_a_network(
    client: docker.DockerClient, context: Path, base: str, tmp_path: Path
) -> None:
    offline = tmp_path / "context"
    shutil.copytree(context, offline)
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"),
            *("--only-binary", ":all:", "--python-version", "3.11", "--implementation", "cp"),
            *(word for tag in platforms(platform.machine()) for word in ("--platform", tag)),
            *("-r", str(offline / "images/cpu/requirements.lock"), "-d", str(offline / "wheelhouse")),
        ],
        check=True,
    )
    digest = build_train(client, offline, base)
    try:
        program = "import numpy, os, safetensors; print(numpy.__path__[0], os.getuid(), os.getgid(), os.getcwd())"
        said = run(client, digest, ["python3", "-c", program])
        assert said.split() == ["/opt/train/numpy", "61000", "61000", "/workspace"]
        environment = dict(entry.split("=", 1) for entry in client.images.get(digest).attrs["Config"]["Env"])
        assert not [name for name in environment if name.startswith("PIP")]
        assert environment["PATH"] == RECIPE.environment["PATH"]
    finally:
        client.images.remove(digest, force=True)


def test_dockerfile_train_needs_no_wheelhouse_folder(client: docker.DockerClient, context: Path, base: str) -> None:
    """With neither folder nor network it is pip that fails, not the missing folder."""
    with pytest.raises(BuildError) as caught:
        build_train(client, context, base)
    log = "".join(str(line.get("stream", "")) for line in caught.value.build_log)
    assert "No matching distribution found for numpy" in log


def test_dockerfile_train_refuses_a_wheel_with_another_hash(
    client: docker.DockerClient, context: Path, base: str, tmp_path: Path
) -> None:
    tampered = tmp_path / "context"
    shutil.copytree(context, tampered)
    lock = tampered / "images" / "cpu" / "requirements.lock"
    lock.write_text("safetensors==0.8.0 --hash=sha256:" + "0" * 64 + "\n")
    folder = tampered / "wheelhouse"
    folder.mkdir()
    tag = f"manylinux_2_17_{platform.machine()}"
    (folder / f"safetensors-0.8.0-cp310-abi3-{tag}.whl").write_bytes(b"not the wheel that was pinned")
    with pytest.raises(BuildError) as caught:
        build_train(client, tampered, base)
    log = "".join(str(line.get("stream", "")) for line in caught.value.build_log)
    assert "DO NOT MATCH THE HASHES" in log

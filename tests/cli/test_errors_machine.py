"""Images, engines and state directories that are unfit: one clear line, a fix, the right exit code."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from arsandbox.sandbox.workspace.overlay import unmount_below
from arsandbox_fixtures.command_line import arsandbox
from arsandbox_fixtures.complaints import check
from arsandbox_fixtures.home import new_home
from arsandbox_fixtures.leftovers import leftovers
from arsandbox_fixtures.task import answering

pytestmark = [pytest.mark.engine, pytest.mark.timeout(120)]


# --- images and the engine --------------------------------------------------------------------------------


def test_an_unknown_image(project: Any) -> None:
    done = project().run("--image", "cpuu")
    assert done.code == 2
    check(done, 2, "cpuu", fix=None)
    assert "cpu" in done.err.replace("cpuu", ""), "the nearest name"
    assert arsandbox("image", "build", "cpuu").code == 2


def test_an_image_that_is_not_built(project: Any, tmp_path: Path) -> None:
    done = project().run("--json", cwd=tmp_path, timeout=60)
    assert done.code == 0
    empty = Path(tempfile.mkdtemp(prefix="ars-"))
    try:
        done = arsandbox("run", "--repo", Path(done.record["repo"]), env={"ARSANDBOX_HOME": str(empty)})
        check(done, 4, "cpu", "not built", fix="arsandbox image build cpu")
    finally:
        shutil.rmtree(empty)


def test_an_image_that_the_engine_has_lost(project: Any) -> None:
    other = new_home()
    try:
        task = project(home=other)
        catalogue = json.loads((other / "images.json").read_text())
        catalogue["images"]["cpu"]["digest"] = "sha256:" + "0" * 64
        (other / "images.json").write_text(json.dumps(catalogue))
        check(task.run(), 4, "cpu", fix="arsandbox image build cpu")
        assert task.history() == []
    finally:
        shutil.rmtree(other)


def test_a_damaged_catalogue(project: Any) -> None:
    other = new_home()
    try:
        (other / "images.json").write_text("{")
        check(project(home=other).run(), 5, "images.json", "damaged")
    finally:
        shutil.rmtree(other)


@pytest.mark.parametrize("command", [["run"], ["gc"], ["doctor"], ["demo", "--engine", "docker"]])
def test_no_engine(project: Any, command: list[str]) -> None:
    task = project()
    env = {"DOCKER_HOST": f"unix://{task.path}/dead.sock"}
    done = arsandbox(*command, env=env, cwd=task.path)
    assert done.code == 4, done
    if command == ["doctor"]:
        assert "no Docker engine answers" in done.out and "fix: " in done.out
    else:
        check(done, 4, "no Docker engine answers", fix="docker")


def test_a_socket_on_which_nobody_listens(project: Any, tmp_path: Path) -> None:
    place = Path(tempfile.mkdtemp(prefix="ars-sock-"))
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(place / "d.sock"))
    try:
        done = project().run()
        assert done.code == 0
        env = {"DOCKER_HOST": f"unix://{place}/d.sock"}
        check(arsandbox("gc", env=env), 4, "no Docker engine answers", fix="docker")
    finally:
        shutil.rmtree(place)


def test_a_docker_host_that_is_nonsense(home: Path) -> None:
    check(arsandbox("gc", env={"DOCKER_HOST": "nonsense://x"}), 4, fix=None)
    check(arsandbox("gc", env={"DOCKER_HOST": "tcp://127.0.0.1:1"}), 4, fix=None)


@pytest.fixture
def nobody(home: Path) -> Iterator[tuple[list[str], Path]]:
    """A prefix that runs a command as an unprivileged user, and a directory of that user."""
    if os.geteuid() != 0:
        pytest.fail("needs root, to become somebody else")
    place = Path(tempfile.mkdtemp(prefix="ars-nobody-"))
    shutil.copy(home / "images.json", place / "images.json")
    for path in (place, place / "images.json"):
        os.chown(path, 65534, 65534)
    yield ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"], place
    shutil.rmtree(place)


def test_a_socket_without_permission(project: Any, nobody: tuple[list[str], Path]) -> None:
    prefix, place = nobody
    task = project()
    copy = place / "repository"
    shutil.copytree(task.path, copy, symlinks=True)
    subprocess.run(["chown", "-R", "65534:65534", str(copy)], check=True)
    # A socket of root's that others may not use, in front of the engine that is really there.
    guarded = Path(tempfile.mkdtemp(prefix="ars-root-"))
    guarded.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as closed:
        closed.bind(str(guarded / "d.sock"))
        closed.listen()
        (guarded / "d.sock").chmod(0o660)
        env = {"DOCKER_HOST": f"unix://{guarded}/d.sock", "ARSANDBOX_HOME": str(place), "HOME": str(place)}
        try:
            for command in (["run", "--repo", copy], ["gc"]):
                done = arsandbox(*command, env=env, prefix=prefix, cwd=Path("/"))
                check(done, 4, "permission", fix="docker")
            done = arsandbox("doctor", env=env, prefix=prefix, cwd=Path("/"))
            assert done.code == 4 and "permission" in done.out
        finally:
            shutil.rmtree(guarded)


def test_a_home_that_is_not_ours(project: Any, nobody: tuple[list[str], Path], home: Path) -> None:
    prefix, place = nobody
    env = {"ARSANDBOX_HOME": str(home), "HOME": str(place)}
    done = arsandbox("image", "list", env=env, prefix=prefix, cwd=Path("/"))
    assert done.code == 5, done
    check(done, 5, str(home), fix=None)


@pytest.mark.parametrize("name", ["with space", "with,comma", "with:colon"])
def test_a_home_that_overlayfs_cannot_hold(tmp_path: Path, name: str) -> None:
    done = arsandbox("image", "list", env={"ARSANDBOX_HOME": str(tmp_path / name)})
    check(done, 2, "state directory", fix="ARSANDBOX_HOME")


def test_a_home_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = arsandbox("image", "list", env={"ARSANDBOX_HOME": str(tmp_path / "file")})
    check(done, 5, "file", fix="ARSANDBOX_HOME")


@pytest.fixture
def small_disk(home: Path) -> Iterator[Path]:
    """A state directory on a tmpfs of 200 MB, which knows the image."""
    place = Path(tempfile.mkdtemp(prefix="ars-full-"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200m,mode=0700", "tmpfs", str(place)], check=True)
    shutil.copy(home / "images.json", place / "images.json")
    yield place
    unmount_below(place)
    place.rmdir()


@pytest.mark.parametrize("left", [0, 400_000, 40_000_000])
def test_a_full_disk(project: Any, small_disk: Path, left: int) -> None:
    """Before, while and after the state is set up; nothing is promoted, and with room again all is well."""
    task = project(home=small_disk)
    if left % 400_000 == 0 and left:
        assert task.run("--json").code == 0
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError:
            pass
    size = filler.stat().st_size
    os.truncate(filler, max(0, size - left))
    done = task.run("--patch", task.patch(answering(5)))
    assert done.code in (4, 5), done
    said = [line for line in done.err.splitlines() if line.startswith("arsandbox: ")]
    assert len(said) == 1, done
    assert "internal error" not in done.err, done
    assert set(task.branches()) == {"main"}
    filler.unlink()
    again = task.run("--json", "--patch", task.patch(answering(5)))
    assert again.record["promotion"] is not None, again
    task.verify()
    assert leftovers(small_disk) == [f"mount {small_disk}"]  # the disk itself


def test_an_image_that_needs_a_gpu_on_a_machine_without_one(project: Any) -> None:
    task = project()
    task.env |= {"LD_LIBRARY_PATH": "", "STANDIN_NVML": ""}
    done = task.run("--image", "cuda12")
    driver, hint = done.err.strip().splitlines()
    assert done.code == 4 and "driver" in driver and "apt-get install nvidia-driver" in hint, done
    rehearsed = task.run("--image", "cuda12", "--dry-run")
    assert rehearsed.code == 0 and f"a real run would stop here: {driver.removeprefix('arsandbox: ')}" in rehearsed.err
    done = task.run("--image", "cuda12", "--gpus", "none")
    assert done.code == 4 and "arsandbox image build cuda12" in done.err, done
    done = task.run("--gpus", "all")
    assert done.code == 2 and "--gpus: 'all' is neither" in done.err, done

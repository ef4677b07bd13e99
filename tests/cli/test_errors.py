"""Wrong calls and unfit machines: one clear line, a fix, the right exit code, never a traceback."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from arsandbox.sandbox.workspace.overlay import unmount_below
from arsandbox_fixtures.command_line import Done, arsandbox
from arsandbox_fixtures.home import new_home
from arsandbox_fixtures.leftovers import leftovers
from arsandbox_fixtures.task import CONFIG, answering

pytestmark = [pytest.mark.engine, pytest.mark.timeout(120)]


def check(done: Done, code: int, *words: str, fix: str | None = "") -> None:
    """One line that says what is wrong with all of `words`, and a fix that holds `fix` (None: none asked)."""
    assert done.code == code, done
    lines = done.err.strip().splitlines()
    said = [line for line in lines if line.startswith("arsandbox: ")]
    assert len(said) == 1, done
    for word in words:
        assert word in said[0], (word, done)
    assert len(said[0]) < 500, done
    if fix is not None:
        assert lines[-1].startswith("  fix: "), done
        assert fix in lines[-1], done
        assert len(lines) == 2, done


def test_no_git_repository(home: Path, tmp_path: Path) -> None:
    for command in (["run"], ["history"], ["init"]):
        done = arsandbox(*command, "--repo", tmp_path)
        check(done, 2, "not in a git repository", fix="git init")


def test_no_git_program(home: Path, tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    for command in (["run"], ["history"], ["init"], ["loop", "--propose", "sweep"]):
        done = arsandbox(*command, "--repo", tmp_path, env={"PATH": str(tmp_path)})
        check(done, 4, "git is not installed", fix="apt-get install git")


def test_no_such_directory(home: Path, tmp_path: Path) -> None:
    check(arsandbox("run", "--repo", tmp_path / "missing"), 2, "no such directory", fix=None)


def test_a_repo_that_is_a_file(home: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    check(arsandbox("run", "--repo", tmp_path / "file"), 2, "file", fix=None)


def test_an_unborn_head(home: Path, tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    check(arsandbox("run", "--repo", tmp_path), 2, "HEAD has no commit yet", fix="git commit")


def test_a_bare_repository(project: Any, tmp_path: Path) -> None:
    task = project()
    bare = tmp_path / "bare.git"
    subprocess.run(["git", "clone", "-q", "--bare", str(task.path), str(bare)], check=True)
    check(arsandbox("run", "--repo", bare), 2, "bare", fix="clone")


def test_a_damaged_repository(project: Any) -> None:
    task = project()
    shutil.rmtree(task.path / ".git" / "objects")
    assert task.run().code in (2, 5)
    task = project()
    (task.path / ".git" / "HEAD").write_text("garbage\n")
    assert task.run().code in (2, 5)
    task = project()
    (task.path / ".git" / "config").write_text("[core\nnonsense")
    done = task.run()
    assert done.code in (2, 5), done
    assert len([line for line in done.err.splitlines() if line.startswith("arsandbox: ")]) == 1


def test_a_submodule_in_the_base(project: Any) -> None:
    task, other = project(), project()
    task.git("-c", "protocol.file.allow=always", "submodule", "add", "-q", str(other.path), "vendored")
    task.git("commit", "-q", "-m", "with a submodule")
    done = task.run()
    assert done.code in (2, 3, 5), done
    check(done, done.code, "vendored", "submodule", fix="vendor")
    assert leftovers() == []


def test_an_edit_outside_editable_is_rejected_and_recorded(project: Any) -> None:
    task = project()
    task.write({"README.md": "other words\n"})
    done = task.run("--json")
    assert done.code == 3, done
    assert (done.record["verdict"], done.record["stages"]) == ("rejected", [])
    assert "README.md" in done.record["reason"] and "train.py" in done.record["reason"]
    assert task.history() == [done.record]
    assert task.cli("show", done.record["id"], "--json").record == done.record


@pytest.mark.parametrize("path", ["evaluate.py", "arsandbox.toml"])
def test_an_edit_of_a_protected_file_is_rejected(project: Any, path: str) -> None:
    task = project()
    task.write({path: (task.path / path).read_text() + "\n# mine\n", "train.py": answering(5)})
    done = task.run()
    assert done.code == 3, done
    assert path in done.err and "protected" in done.err
    assert task.history()[0]["verdict"] == "rejected"


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("a symlink", lambda p: ((p / "train.py").unlink(), (p / "train.py").symlink_to("/etc/passwd"))),
        ("a new file next to it", lambda p: subprocess.run(
            "echo x > sitecustomize.py; git add -N sitecustomize.py", shell=True, cwd=p, check=True)),
        ("a deleted file", lambda p: (p / "README.md").unlink()),
    ],
)  # fmt: skip
def test_other_edits_that_may_not_pass(project: Any, name: str, change: Callable[[Path], object]) -> None:
    task = project({"arsandbox.toml": CONFIG.replace('["train.py"]', '["train.py", "*.py"]')})
    change(task.path)
    done = task.run("--json")
    assert (done.code, done.record["verdict"]) == (3, "rejected"), (name, done)


# --- patches ----------------------------------------------------------------------------------------------


def test_an_empty_patch(project: Any, tmp_path: Path) -> None:
    task = project()
    for text in ("", "\n \n"):
        (tmp_path / "empty.patch").write_text(text)
        check(task.run("--patch", tmp_path / "empty.patch"), 2, "empty.patch", "is empty", fix="git diff")
    assert task.history() == []


def test_a_missing_patch(project: Any, tmp_path: Path) -> None:
    done = project().run("--patch", tmp_path / "no.patch")
    check(done, 2, "no.patch", "No such file", fix=None)


def test_a_patch_that_is_a_directory(project: Any, tmp_path: Path) -> None:
    check(project().run("--patch", tmp_path), 2, str(tmp_path), fix=None)


def test_a_patch_that_does_not_apply(project: Any) -> None:
    task = project()
    edit = task.patch(answering(5))
    task.commit({"train.py": "print('something else')\n"})
    check(task.run("--patch", edit), 2, "edit.patch", "does not apply", "train.py", fix="against the base")


def test_a_patch_that_is_no_patch(project: Any, tmp_path: Path) -> None:
    (tmp_path / "x.patch").write_bytes(os.urandom(5000))
    check(project().run("--patch", tmp_path / "x.patch"), 2, "x.patch", fix="git diff")


def test_patch_and_commit_exclude_each_other(project: Any, tmp_path: Path) -> None:
    check(project().run("--patch", tmp_path / "x", "--commit", "HEAD"), 2, "--patch", "--commit")


def test_an_unknown_revision(project: Any) -> None:
    check(project().run("--commit", "nonsense"), 2, "nonsense", fix="git log")
    check(project().run("--base", "--upload-pack=x"), 2, "--upload-pack=x", fix=None)


# --- hostile configuration --------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["core.fsmonitor", "core.hooksPath", "filter.x.clean", "include.path"])
def test_a_git_config_that_runs_programs(project: Any, tmp_path: Path, key: str) -> None:
    task = project()
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    program.chmod(0o755)
    if key == "include.path":
        (tmp_path / "included").write_text(f"[core]\n\tfsmonitor = {program}\n")
        program = tmp_path / "included"
    task.git("config", key, str(program))
    (task.path / ".gitattributes").write_text("* filter=x\n")
    for command in ("run", "prepare"):
        done = arsandbox(command, "--repo", task.path)
        check(done, 3, key.split(".")[0], fix="unset")
    assert arsandbox("history", "--repo", task.path).code in (0, 3)
    assert not (tmp_path / "ran").exists()


def test_a_misspelt_key_in_the_config(project: Any) -> None:
    task = project({"arsandbox.toml": CONFIG.replace("budget =", "buget =")})
    check(task.run(), 2, "arsandbox.toml", "buget", fix="did you mean 'budget'?")
    task = project({"arsandbox.toml": CONFIG.replace("memory =", "memmory =")})
    check(task.run(), 2, "limits.memmory", fix="did you mean 'memory'?")
    task = project({"arsandbox.toml": CONFIG.replace("[metric]", "[metrics]")})
    check(task.run(), 2, "metrics", fix="'metric'")


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ('budget = "20s"', 'budget = "5x"', "5x"),
        ('goal = "min"', 'goal = "lowest"', "goal"),
        ('editable = ["train.py"]', 'editable = ["../train.py"]', "editable"),
        ("cpus = 1", "cpus = -1", "cpus"),
        ("[metric]", "[metric", "TOML"),
        ('memory = "96m"', 'memory = "lots"', "lots"),
    ],
)
def test_a_bad_value_in_the_config(project: Any, old: str, new: str, word: str) -> None:
    assert old in CONFIG
    check(project({"arsandbox.toml": CONFIG.replace(old, new)}).run(), 2, "arsandbox.toml", word, fix=None)


def test_a_config_that_is_not_committed(project: Any) -> None:
    task = project()
    task.git("rm", "-q", "--cached", "arsandbox.toml")
    task.git("commit", "-q", "-m", "without a config")
    check(task.run(), 2, "arsandbox.toml", "not committed", fix="git add arsandbox.toml")


def test_no_config_at_all(project: Any) -> None:
    task = project()
    task.git("rm", "-q", "arsandbox.toml")
    task.git("commit", "-q", "-m", "without a config")
    check(task.run(), 2, "arsandbox.toml", "--metric", fix="arsandbox init")


# --- options ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--budget", "5x"], ["--budget", "5x"]),
        (["--budget", "0s"], ["--budget"]),
        (["--grace", "soon"], ["--grace", "soon"]),
        (["--memory", "lots"], ["--memory", "lots"]),
        (["--disk", "2x"], ["--disk", "2x"]),
        (["--memory", "1k"], ["memory"]),
        (["--pids", "many"], ["--pids", "many"]),
        (["--goal", "best"], ["--goal", "best"]),
        (["--tag", "../up"], ["--tag", "../up"]),
        (["--seed", "-1"], ["--seed", "-1"]),
        (["--engine", "podman"], ["--engine", "podman"]),
    ],
)  # fmt: skip
def test_a_bad_value_of_an_option(project: Any, options: list[str], words: list[str]) -> None:
    check(project().run(*options), 2, *words, fix=None)


def test_a_bad_budget_names_a_correct_example(project: Any) -> None:
    check(project().run("--budget", "5x"), 2, "--budget", fix="5m")


def test_more_cpus_than_there_are(project: Any) -> None:
    check(project().run("--cpus", "4000"), 4, "4000", fix="--cpus")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["run", "--buget", "5m"], "--budget"),
        (["hystory"], "history"),
        (["image", "biuld", "cpu"], "build"),
        (["history", "--jsonll"], "--jsonl"),
    ],
)
def test_a_misspelt_command_or_option_is_answered_with_the_nearest(home: Path, arguments: list[str], word: str) -> None:
    done = arsandbox(*arguments)
    check(done, 2)
    assert word in done.err.splitlines()[0], done


def test_a_missing_argument(home: Path) -> None:
    check(arsandbox("show"), 2, "ID")


def test_an_unknown_experiment(project: Any) -> None:
    task = project()
    for command in ("show", "diff", "logs"):
        check(task.cli(command, "20990101"), 2, "20990101", fix="arsandbox history")


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

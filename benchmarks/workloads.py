"""What is timed: a no-op in a sandbox, in a bare hardened container, by the docker CLI, and as an experiment."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from arsandbox.policies.model import GIB, MIB, Limits
from arsandbox.sandbox import experiment, state
from arsandbox.sandbox.engines.docker import container
from arsandbox.sandbox.engines.docker.client import connect
from arsandbox.sandbox.engines.port import Engine, SandboxSpec
from arsandbox.sandbox.events import Silent
from arsandbox.sandbox.models import ImageRef, Stage, Verdict
from arsandbox.sandbox.record import Record
from arsandbox.sandbox.settings import Options
from arsandbox.sandbox.stage import StagePlan, run_stage

LIMITS = Limits(cpus=1, memory_bytes=GIB, disk_bytes=256 * MIB, disk_inodes=20_000, pids=256)
NO_OP = ("true",)
_TOUCHING = ("sh", "-c", "for f in src/0/0.py src/0/1.py src/0/2.py new; do echo changed > $f; done")
_CONFIG = """\
command = ["sh", "-c", "echo METRIC loss=1.0"]
editable = ["src/"]
budget = "60s"
[metric]
name = "loss"
[limits]
cpus = 1
memory = "1g"
disk = "256m"
inodes = 20000
pids = 256

[decision]
rule = "greedy"
"""


class Stages:
    """One stage in four ways; each call returns the seconds it took."""

    def __init__(self, engine: Engine, image: ImageRef, scratch: Path) -> None:
        self._engine, self._image, self._scratch = engine, image, scratch
        self._api = connect().api
        self._layer = scratch / "layer"
        self._layer.mkdir()
        self._layer.chmod(0o777)
        self._name = map("bench-{}".format, itertools.count())

    def through_the_port(self) -> float:
        """The whole stage as an experiment runs it: quota, volume, container, watch, scan, collect, remove."""
        began = time.perf_counter()
        self._stage(NO_OP, [self._layer], collect=True)
        return time.perf_counter() - began

    def scan(self, layers: list[Path]) -> float:
        """Only the reading back, after a run that changed three files and added one."""
        return self._stage(_TOUCHING, layers)

    def by_the_api(self) -> float:
        """Create, start, wait for and remove a container with the same flags, without a workspace."""
        spec = self._spec(self._scratch / "unused")
        began = time.perf_counter()
        config = container.host_config(self._api, spec, volume="none", runtime="runc")
        config.pop("Mounts", None)
        identity = self._api.create_container(
            image=self._image.digest, command=list(NO_OP), entrypoint=[], user="61100:61100", network_disabled=True,
            environment=container.environment(spec, 61100), working_dir="/", host_config=config,
        )["Id"]  # fmt: skip
        self._api.start(identity)
        self._api.wait(identity)
        self._api.remove_container(identity, v=True, force=True)
        return time.perf_counter() - began

    def by_the_cli(self) -> float:
        """`docker run --rm` with the same flags."""
        limits = LIMITS
        flags = [
            "--read-only", "--network=none", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--ipc=private",
            "--cgroupns=private", f"--cpus={limits.cpus:g}", f"--memory={limits.memory_bytes}",
            f"--memory-swap={limits.memory_bytes}", f"--pids-limit={limits.pids}", f"--shm-size={limits.shm_bytes}",
            f"--tmpfs=/tmp:rw,nosuid,nodev,mode=1777,size={limits.tmp_bytes}", "--ulimit=core=0:0",
            f"--ulimit=nofile={limits.open_files}:{limits.open_files}", "--log-driver=none", "--user=61100:61100",
        ]  # fmt: skip
        began = time.perf_counter()
        subprocess.run(
            ["docker", "run", "--rm", *flags, self._image.digest, *NO_OP],
            check=True, capture_output=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        return time.perf_counter() - began

    def _stage(self, command: tuple[str, ...], layers: list[Path], *, collect: bool = False) -> float:
        name = next(self._name)
        scratch = state.make_private(self._scratch / name)
        out = Path(tempfile.mkdtemp(dir=scratch))
        plan = StagePlan(
            stage=Stage.TRAIN, image=self._image, command=command, environment={}, layers=layers, limits=LIMITS,
            limit_s=60.0, log=scratch / "log",
        )  # fmt: skip
        labels = {"arsandbox.benchmark": name}
        with run_stage(self._engine, plan, experiment=name, scratch=scratch, labels=labels, listener=Silent()) as run:
            began = time.perf_counter()
            changes = run.sandbox.changes()
            scanned = time.perf_counter() - began
            if not collect and len(changes.paths) != 4:
                raise RuntimeError(f"the scan found {len(changes.paths)} changes instead of 4")
            if collect:
                run.sandbox.collect(["out"], out, most_bytes=MIB, most_files=10)
        shutil.rmtree(scratch)
        return scanned

    def _spec(self, scratch: Path) -> SandboxSpec:
        return SandboxSpec(
            experiment="bench", stage=Stage.TRAIN, image=self._image, command=NO_OP, environment={}, layers=(),
            limits=LIMITS, deadline_s=60.0, scratch=scratch, labels={},
        )  # fmt: skip


class Experiments:
    """No-op experiments in a repository of `files` files; every one edits three files in a way not seen before."""

    def __init__(self, engine: Engine, image: ImageRef, place: Path, files: int) -> None:
        self._engine, self._image, self._place = engine, image, place
        self._edits = itertools.count(1)
        _make_repository(place, files)

    def baseline(self) -> Record:
        """The first experiment of a repository: builds the base snapshot."""
        return self._run(experiment.Request(self._place, self._options()))

    def by_patch(self) -> Record:
        """Three changed files as `--patch`."""
        number = next(self._edits)
        lines = [_diff(f"src/0/{index}.py", f"x = {index}", f"x = {index}  # {number}") for index in range(3)]
        patch = self._place.parent / "edit.patch"
        patch.write_text("".join(lines))
        return self._run(experiment.Request(self._place, self._options(), patch=patch))

    def by_working_tree(self) -> Record:
        """The same as a change of the working tree."""
        number = next(self._edits)
        changed = [self._place / f"src/0/{index}.py" for index in range(3)]
        before = [path.read_text() for path in changed]
        for path, text in zip(changed, before, strict=True):
            path.write_text(f"{text.rstrip()}  # {number}\n")
        try:
            return self._run(experiment.Request(self._place, self._options()))
        finally:
            for path, text in zip(changed, before, strict=True):
                path.write_text(text)

    def layers(self) -> list[Path]:
        """The lower layers of the base, as a run mounts them."""
        from arsandbox.sandbox.repository import Repository
        from arsandbox.sandbox.workspace.layers import LayerStore

        repository = Repository.open(self._place)
        return list(LayerStore(repository.state / "layers", repository.objects).layers(repository.head()).paths)

    def _options(self) -> Options:
        return Options(promote=False)

    def _run(self, request: experiment.Request) -> Record:
        plan = experiment.plan(request, find_image=lambda _: self._image)
        record = experiment.run(plan, self._engine, Silent())
        if record.verdict not in (Verdict.BASELINE, Verdict.DISCARD):
            raise RuntimeError(f"the no-op ended as {record.verdict.value}: {record.reason}")
        return record


def timed(call: Callable[[], Any]) -> float:
    """Seconds that `call` took."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _diff(path: str, before: str, after: str) -> str:
    return f"diff --git a/{path} b/{path}\n--- a/{path}\n+++ b/{path}\n@@ -1 +1 @@\n-{before}\n+{after}\n"


def _make_repository(place: Path, files: int) -> None:
    """A repository with one commit and a checked-out working tree, hundred files a directory."""
    environment = {"PATH": os.environ["PATH"], "HOME": os.devnull, "GIT_CONFIG_GLOBAL": os.devnull}

    def git(*arguments: str, stdin: bytes = b"") -> None:
        subprocess.run(
            ["git", "-C", str(place), *arguments], input=stdin, check=True, env=environment, capture_output=True
        )

    place.mkdir()
    git("init", "--quiet", "--initial-branch=main")
    stream = [b"commit refs/heads/main\ncommitter bench <bench@localhost> 0 +0000\ndata 4\nbase\n"]
    content = {"arsandbox.toml": _CONFIG, **{f"src/{n // 100}/{n % 100}.py": f"x = {n}\n" for n in range(files)}}
    for path, text in content.items():
        stream.append(f"M 100644 inline {path}\ndata {len(text)}\n{text}\n".encode())
    git("fast-import", "--quiet", stdin=b"".join(stream))
    git("reset", "--quiet", "--hard", "main")


def scratch_home(stack: ExitStack) -> Path:
    """A state directory of this benchmark alone, on the file system of the usual one; removed at the end."""
    place = Path(tempfile.mkdtemp(prefix="benchmark-", dir=state.home()))
    stack.callback(shutil.rmtree, place, ignore_errors=True)
    os.environ["ARSANDBOX_HOME"] = str(place / "home")
    return place

"""What the integration and command-line tests share: a state directory with an image, repositories, the CLI.

Loaded by both conftest.py files; nothing here is a test.
"""

from __future__ import annotations

import atexit
import functools
import gc
import json
import os
import shutil
import socket
import subprocess
import sysconfig
import tempfile
import textwrap
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker
import docker.errors
import pytest
from testcontainers.core.docker_client import DockerClient

from arsandbox.images.build import build_image
from arsandbox.images.catalogue import Catalogue
from arsandbox.images.recipe import load_recipe
from arsandbox.policies.model import Limits
from arsandbox.sandbox import host, state
from arsandbox.sandbox.engines.docker.client import connect
from arsandbox.sandbox.engines.docker.engine import DockerEngine
from arsandbox.sandbox.engines.port import Collected, Engine, Outcome, SandboxSpec
from arsandbox.sandbox.engines.registry import open_engine
from arsandbox.sandbox.errors import ArsandboxError
from arsandbox.sandbox.models import ChangeSet, EngineInfo, ImageRef, Reason, Stage
from arsandbox.sandbox.workspace.overlay import unmount_below

os.environ["TESTCONTAINERS_RYUK_DISABLED"] = "true"
MIB = 1024**2
COMMAND = Path(sysconfig.get_path("scripts")) / "arsandbox"
EXAMPLES = Path(__file__).parents[2] / "examples"
SECRET = "hunter2-" + os.urandom(8).hex()
LIMITS = Limits(
    cpus=1, memory_bytes=96 * MIB, pids=64, disk_bytes=16 * MIB, disk_inodes=4000, tmp_bytes=4 * MIB,
    shm_bytes=MIB, output_bytes=MIB,
)  # fmt: skip


# --- the state directory and the engine -------------------------------------------------------------------


@functools.cache
def session_home() -> Path:
    """A fresh state directory, ARSANDBOX_HOME of this process and all it starts; removed at exit."""
    path = Path(tempfile.mkdtemp(prefix="ars-"))
    atexit.register(_remove_home, path)
    os.environ["ARSANDBOX_HOME"] = str(path)
    os.environ["ARSANDBOX_TEST_SECRET"] = SECRET  # must never be seen inside a sandbox
    os.environ.pop("ARSANDBOX_DEBUG", None)
    return path


def _remove_home(path: Path) -> None:
    unmount_below(path)
    shutil.rmtree(path, ignore_errors=True)


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
        built = build_image(
            load_recipe("cpu"),
            cache=Path(os.environ["ARSANDBOX_TEST_LAYERS"]),  # see tests/conftest.py
            load=engine.load_image,
            progress=lambda line: None,
        )
        return Catalogue(home / "images.json").pin(built).digest
    return pinned["cpu"]


def new_home(prefix: str = "ars-") -> Path:
    """Another state directory, which knows the session's image; the caller removes it."""
    path = Path(tempfile.mkdtemp(prefix=prefix))
    shutil.copy(session_home() / "images.json", path / "images.json")
    return path


@functools.cache
def docker_client() -> docker.DockerClient:
    """The engine, seen apart from arsandbox's own code."""
    client = DockerClient().client
    atexit.register(client.close)
    return client


def collect_quietly() -> None:
    """Collect what engine calls leave to the garbage collector, so that it is not blamed on a later test.

    test_engine.py has a test of its own for sockets that are left open.
    """
    enabled = gc.isenabled()
    gc.disable()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
    if enabled:
        gc.enable()


def close_connections() -> None:
    """Close this process's connections to the engine."""
    collect_quietly()
    if connect.cache_info().currsize:
        connect().close()
        connect.cache_clear()


def home_label(home: Path) -> str:
    """The label filter of everything that belongs to the state directory `home`."""
    import hashlib

    return f"{host.HOME_LABEL}={hashlib.sha256(os.fsencode(home.resolve())).hexdigest()[:16]}"


def containers(home: Path | None = None) -> list[Any]:
    """The containers of `home` (the session's by default), running or not."""
    return docker_client().containers.list(
        all=True, filters={"label": home_label(home or session_home())}, ignore_removed=True
    )


def volumes(home: Path | None = None) -> list[Any]:
    """The volumes of `home`."""
    return docker_client().volumes.list(filters={"label": home_label(home or session_home())})


def mounts_below(directory: Path) -> list[str]:
    """Mount points at or below `directory`."""
    points = [line.split(" ")[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [point for point in points if point == str(directory) or point.startswith(f"{directory}/")]


def leftovers(home: Path | None = None) -> list[str]:
    """Everything that a finished run must not leave."""
    home = home or session_home()
    found = [f"container {one.name}" for one in containers(home)]
    found += [f"volume {one.name}" for one in volumes(home)]
    found += [f"mount {point}" for point in mounts_below(home)]
    found += [f"directory {path}" for path in (home / "repos").glob("*/runs/*")]
    found += [f"directory {path}" for path in (home / "repos").glob("*/layers/building-*")]
    return found


def wait_for(condition: Callable[[], Any], *, seconds: float = 30, what: str = "it") -> Any:
    """The first true value of `condition`; fails the test after `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    pytest.fail(f"{what} did not happen within {seconds:g}s")


# --- an engine of a test's own ----------------------------------------------------------------------------

CAN_START_A_DAEMON = (
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a dockerd"),
    pytest.mark.skipif(shutil.which("dockerd") is None, reason="there is no dockerd to start"),
)


@contextmanager
def private_daemon(place: Path, configuration: dict[str, Any]) -> Iterator[docker.DockerClient]:
    """A dockerd with the programs in `place` first in its PATH, and the image `cpu`; `place` is removed at the end."""
    (place / "daemon.json").write_text(json.dumps(configuration))
    name = f"arsandbox-{os.urandom(6).hex()}"
    command = [
        "dockerd", "--data-root", f"{place}/data", "--exec-root", f"{place}/exec", "--pidfile", f"{place}/pid",
        "--host", f"unix://{place}/docker.sock", "--config-file", f"{place}/daemon.json",
        "--containerd-namespace", name, "--containerd-plugins-namespace", f"{name}-plugins",
        "--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false",
    ]  # fmt: skip
    if "--oom-score-adjust" in subprocess.run(["dockerd", "--help"], capture_output=True, text=True, check=True).stdout:
        command += ["--oom-score-adjust", "0"]
    environment = {**os.environ, "PATH": f"{place}:{os.environ['PATH']}"}
    with (place / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        wait_for(lambda: _answers(place / "docker.sock"), seconds=60, what=f"a dockerd ({place}/log)")
        client = docker.DockerClient(base_url=f"unix://{place}/docker.sock", timeout=60)
        info = EngineInfo(name="docker", version="0", runtime="runc", isolation="container", privilege="root")
        build_image(
            load_recipe("cpu"),
            cache=Path(os.environ["ARSANDBOX_TEST_LAYERS"]),
            load=DockerEngine(client, info).load_image,
            progress=lambda line: None,
        )
        collect_quietly()
        yield client
        client.close()
    finally:
        process.terminate()
        process.wait(60)
        for point in reversed(mounts_below(place)):
            subprocess.run(["umount", "-l", point], check=True)
        shutil.rmtree(place)


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        return connection.connect_ex(str(path)) == 0


# --- one sandbox ------------------------------------------------------------------------------------------


class Collecting:
    """A watcher that keeps the output."""

    def __init__(self) -> None:
        self.text = b""
        self.ticks = 0

    def output(self, chunk: bytes) -> None:
        self.text += chunk

    def tick(self, elapsed_s: float, memory_bytes: int) -> None:
        self.ticks += 1


@dataclass
class Boxed:
    """A sandbox that has ended: its outcome, output and workspace."""

    outcome: Outcome
    output: bytes
    changes: ChangeSet
    collected: Collected
    target: Path
    home_free_before: int
    home_free_after: int

    @property
    def reason(self) -> Reason:
        return self.outcome.termination.reason

    @property
    def text(self) -> str:
        return self.output.decode(errors="replace")


def box(place: Path, program: str | None = None, **options: Any) -> Boxed:
    """Run `program` in a sandbox of its own; `place` is an empty directory of the test on a plain path."""
    try:
        return _box(place, program, **options)
    finally:
        collect_quietly()


def _box(
    place: Path,
    program: str | None = None,
    *,
    command: Sequence[str] = ("python", "program.py"),
    files: dict[str, str] | None = None,
    environment: dict[str, str] | None = None,
    deadline_s: float = 20.0,
    collect: Sequence[str] = (),
    most_bytes: int = 64 * MIB,
    engine: Engine | None = None,
    **limits: Any,
) -> Boxed:
    digest = image_digest()
    layer, scratch, target = place / "layer", place / "scratch", place / "target"
    for directory in (layer, scratch, target):
        directory.mkdir()
    layer.chmod(0o777)
    for name, text in {**(files or {}), **({"program.py": textwrap.dedent(program)} if program else {})}.items():
        file = layer / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.parent.chmod(0o777)
        file.write_text(text)
        file.chmod(0o666)
    identity = state.new_experiment_id()
    spec = SandboxSpec(
        experiment=identity,
        stage=Stage.TRAIN,
        image=ImageRef(name="cpu", digest=digest),
        command=tuple(command),
        environment=environment or {},
        layers=(layer,),
        limits=LIMITS.model_copy(update=limits),
        deadline_s=deadline_s,
        scratch=scratch,
        labels=host.labels(identity, "2030-01-01T00:00:00+00:00"),
    )
    watcher = Collecting()
    before = shutil.disk_usage(place).free
    with (engine or open_engine("docker")).sandbox(spec) as sandbox:
        outcome = sandbox.run(watcher)
        changes = sandbox.changes()
        collected = sandbox.collect(collect, target, most_bytes=most_bytes, most_files=1000)
        after = shutil.disk_usage(place).free
    del sandbox
    assert not mounts_below(scratch)
    return Boxed(outcome, watcher.text, changes, collected, target, before, after)


# --- a repository and the command line --------------------------------------------------------------------


TRUTH, MARKER = 3.0, "MARKER-" + os.urandom(8).hex()

CONFIG = """
image = "cpu"
budget = "20s"
command = ["python", "train.py"]
editable = ["train.py"]
protected = ["evaluate.py"]

[metric]
name = "loss"
goal = "min"
source = "evaluate"
plausible = [-1e6, 1e6]

[decision]
rule = "greedy"

[evaluate]
command = ["python", "evaluate.py"]
artifacts = ["out/"]
data = ["heldout/"]

[limits]
cpus = 1
memory = "96m"
pids = 64
disk = "16m"
inodes = 15000
"""

TRAIN = """\
import os

ANSWER = 10.0
SAY = None


def write(answer):
    os.makedirs("out", exist_ok=True)
    with open("out/answer.txt", "w") as file:
        file.write(str(answer))


if __name__ == "__main__":
    write(ANSWER)
    print("---")
    print(f"loss: {ANSWER - 3.0 if SAY is None else SAY}")
"""

EVALUATE = """\
answer = float(open("out/answer.txt").read())
truth = float(open("heldout/truth.txt").read().split()[0])
print(f"METRIC loss={abs(answer - truth)}")
"""


def answering(answer: float, *, say: float | None = None, before: str = "", after: str = "") -> str:
    """A train.py with that answer; `before` and `after` are statements around its work."""
    text = TRAIN.replace("ANSWER = 10.0", f"ANSWER = {answer}").replace("SAY = None", f"SAY = {say}")
    head = '    write(ANSWER)\n    print("---")'
    assert head in text
    text = text.replace(head, textwrap.indent(textwrap.dedent(before), "    ") + "\n" + head)
    return text + textwrap.indent(textwrap.dedent(after), "    ") + "\n"


@dataclass
class Done:
    """A command that ended."""

    code: int
    out: str
    err: str
    peak_rss: int = 0

    @property
    def record(self) -> dict[str, Any]:
        """The one JSON document on standard output."""
        document = json.loads(self.out)
        assert isinstance(document, dict), self.out
        return document

    def __str__(self) -> str:
        return f"exit {self.code}\n--- stdout\n{self.out}\n--- stderr\n{self.err}"


@dataclass
class Running:
    """The CLI while it runs."""

    process: subprocess.Popen[str]

    def wait(self, seconds: float = 90) -> Done:
        out, err = self.process.communicate(timeout=seconds)
        return Done(self.process.returncode, out, err)


def arsandbox(
    *arguments: str | Path, env: dict[str, str] | None = None, cwd: Path | None = None, timeout: float = 120,
    prefix: Sequence[str] = (),
) -> Done:  # fmt: skip
    """Run the console script and wait; no traceback may ever be on standard error."""
    done = start(*arguments, env=env, cwd=cwd, prefix=prefix).wait(timeout)
    assert "Traceback" not in done.err, done
    return done


def start(
    *arguments: str | Path, env: dict[str, str] | None = None, cwd: Path | None = None, prefix: Sequence[str] = ()
) -> Running:
    """Start the console script."""
    session_home()
    return Running(
        subprocess.Popen(
            [*prefix, str(COMMAND), *map(str, arguments)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
            env={**os.environ, **(env or {})}, cwd=cwd,
        )
    )  # fmt: skip


@dataclass
class Project:
    """A small git repository with a training task that takes no time."""

    path: Path
    home: Path
    env: dict[str, str] = field(default_factory=dict)
    tag: str = "t"

    @classmethod
    def create(cls, path: Path, files: dict[str, str] | None = None, *, home: Path | None = None) -> Project:
        path.mkdir(parents=True)
        home = home or session_home()
        project = cls(path, home, {"ARSANDBOX_HOME": str(home)})
        project.git("init", "-q", "-b", "main")
        project.git("config", "user.name", "someone")
        project.git("config", "user.email", "someone@example.org")
        content = {
            "arsandbox.toml": CONFIG,
            "train.py": TRAIN,
            "evaluate.py": EVALUATE,
            "heldout/truth.txt": f"{TRUTH}\n{MARKER}\n",
            "assets/a.txt": "a\n",
            "assets/deep/b.txt": "b\n",
            "README.md": "a task\n",
        }
        project.commit({**content, **(files or {})}, "base")
        return project

    def git(self, *arguments: str, check: bool = True, cwd: Path | None = None, stdin: str | None = None) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=cwd or self.path, input=stdin, text=True, capture_output=True, check=False,
            env={**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"},
        )  # fmt: skip
        assert done.returncode == 0 or not check, f"git {arguments}: {done.stderr}"
        return done.stdout.strip()

    def write(self, files: dict[str, str]) -> None:
        for name, text in files.items():
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            (self.path / name).write_text(text)

    def commit(self, files: dict[str, str], message: str = "change") -> str:
        self.write(files)
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", message)
        return self.git("rev-parse", "HEAD")

    def patch(self, train: str, name: str = "edit.patch") -> Path:
        """A patch file (outside the repository) that makes train.py read `train`."""
        old = subprocess.run(
            ["git", "show", "HEAD:train.py"], cwd=self.path, capture_output=True, text=True, check=True
        ).stdout
        place = Path(tempfile.mkdtemp(prefix="diff-", dir=self.path.parent))
        for side, text in (("a", old), ("b", train)):
            (place / side).mkdir()
            (place / side / "train.py").write_text(text)
        done = subprocess.run(
            ["git", "diff", "--no-index", "--no-prefix", "a/train.py", "b/train.py"],
            cwd=place, capture_output=True, check=False,
        )  # fmt: skip
        assert done.returncode == 1, done.stderr
        (place / name).write_bytes(done.stdout)
        return place / name

    def _arguments(self, arguments: Sequence[str | Path]) -> list[str | Path]:
        return ["run", "--repo", self.path, "--tag", self.tag, *arguments]

    def run(self, *arguments: str | Path, **options: Any) -> Done:
        """`arsandbox run` on this repository."""
        return arsandbox(*self._arguments(arguments), env=self.env, **options)

    def start(self, *arguments: str | Path, **options: Any) -> Running:
        return start(*self._arguments(arguments), env=self.env, **options)

    def run_train(self, train: str, *arguments: str | Path) -> Done:
        """Run `train` as the candidate's train.py, with --json."""
        return self.run("--patch", self.patch(train), "--json", *arguments)

    def cli(self, command: str, *arguments: str | Path, **options: Any) -> Done:
        """Another command on this repository."""
        return arsandbox(command, *arguments, "--repo", self.path, env=self.env, **options)

    def history(self) -> list[dict[str, Any]]:
        """All records, oldest first."""
        done = self.cli("history", "--jsonl")
        assert done.code == 0, done
        return [json.loads(line) for line in reversed(done.out.splitlines())]

    def branches(self) -> dict[str, str]:
        rows = self.git("for-each-ref", "--format=%(refname:short) %(objectname)", "refs/heads").splitlines()
        return dict(row.split(" ") for row in rows)

    def verify(self) -> None:
        done = self.cli("verify")
        assert done.code == 0, done

    def state(self) -> Path:
        """This repository's state directory."""
        found = [p for p in (self.home / "repos").iterdir() if p.name.startswith(f"{self.path.name}-")]
        assert len(found) == 1, found
        return found[0]

    def experiment_files(self, identity: str) -> Path:
        return self.state() / "experiments" / identity

    def wait_for_training(self, *, seconds: float = 60) -> Any:
        """A running container of this home that is in the training stage."""

        def running() -> Any:
            return next((c for c in containers(self.home) if c.status == "running" and "-train-" in c.name), None)

        return wait_for(running, seconds=seconds, what="the start of the training")


def projects(base: Path) -> Iterator[Callable[..., Project]]:
    """A factory of projects below `base`."""
    made: list[Project] = []

    def create(files: dict[str, str] | None = None, *, home: Path | None = None) -> Project:
        image_digest()
        name = f"{base.name.replace('_', '-')}-{len(made)}"
        made.append(Project.create(base / name, files, home=home))
        return made[-1]

    yield create


def driven(program: str, arguments: Sequence[str | Path], env: dict[str, str], *, timeout: float = 120) -> Done:
    """Run the CLI inside `program`, which changes one of its functions before it calls main()."""
    session_home()
    done = subprocess.run(
        [str(Path(sysconfig.get_path("scripts")) / "python"), "-P", "-c", program, *map(str, arguments)],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=timeout,
        env={**os.environ, **env},
    )  # fmt: skip
    return Done(done.returncode, done.stdout, done.stderr)

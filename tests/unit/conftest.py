"""Fixtures that unit tests share: a state directory of their own, throw-away repositories, records."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from arsandbox_test_nvidia import UUIDS, Driver, Gpu
from hypothesis import settings

from arsandbox.sandbox import advisories
from arsandbox.sandbox.gpu import grant as granting
from arsandbox.sandbox.gpu import nvml
from arsandbox.sandbox.models import EngineInfo, ImageRef, Patch, Verdict
from arsandbox.sandbox.record import MetricInfo, PolicyInfo, Record


def _load(name: str, file: Path) -> ModuleType:
    """A module beside the tests under a name of its own: they are no package."""
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_fake_loop = _load("arsandbox_fake_loop", Path(__file__).with_name("fake_loop.py"))
settings.register_profile("unit", deadline=None, derandomize=True, database=None)
settings.load_profile("unit")

GIT_ENVIRONMENT = {
    "PATH": os.environ.get("PATH", os.defpath),
    "HOME": "/nonexistent",
    "LC_ALL": "C",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_AUTHOR_DATE": "2024-01-02T03:04:05Z",
    "GIT_COMMITTER_DATE": "2024-01-02T03:04:05Z",
}


class TestRepository:
    """A git repository made with the git program alone, independent of the code under test."""

    __test__ = False

    def __init__(self, path: Path) -> None:
        self.path = path

    def git(self, *arguments: str, stdin: bytes = b"", check: bool = True) -> str:
        done = subprocess.run(
            ["git", "-c", "user.name=tester", "-c", "user.email=tester@localhost", *arguments],
            cwd=self.path,
            env=GIT_ENVIRONMENT,
            input=stdin,
            capture_output=True,
            check=False,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"git {arguments}: {done.stderr.decode(errors='replace')}")
        return os.fsdecode(done.stdout).strip("\n")

    def write(self, files: Mapping[str, bytes | str]) -> None:
        for name, content in files.items():
            target = self.path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content.encode() if isinstance(content, str) else content)

    def commit(self, message: str = "change") -> str:
        self.git("add", "-A", "--force")
        self.git("commit", "-q", "--allow-empty", "--no-verify", "-m", message)
        return self.git("rev-parse", "HEAD")


@pytest.fixture(autouse=True)
def signal_handlers() -> Iterator[None]:
    """What a test lets signals do ends with it: children of later tests would inherit that one is ignored."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def arsandbox_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state directory of this test alone, and no inherited git settings."""
    place = tmp_path / "state-home"
    monkeypatch.setenv("ARSANDBOX_HOME", str(place))
    monkeypatch.delenv("ARSANDBOX_DEBUG", raising=False)
    for name in list(os.environ):
        if name.startswith("GIT_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    return place


MakeRepository = Callable[..., TestRepository]


@pytest.fixture
def make_repo(tmp_path: Path) -> MakeRepository:
    """`make_repo(files, name="repo", ...)`: a repository whose one commit holds `files` (none: unborn)."""

    def make(
        files: Mapping[str, bytes | str] | None = None, *, name: str = "repo", object_format: str = "sha1"
    ) -> TestRepository:
        place = tmp_path / name
        place.mkdir(parents=True)
        repo = TestRepository(place)
        repo.git("init", "-q", "-b", "main", "--template=", f"--object-format={object_format}")
        if files:
            repo.write(files)
            repo.commit("base")
        return repo

    return make


@pytest.fixture
def driver(nvml_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    """A machine with two idle GPUs. The library stays loaded: without the variable its driver is not."""
    ctypes.CDLL(str(nvml_directory / "libnvidia-ml.so.1"))  # found again by its soname
    found = Driver(tmp_path / "driver")
    monkeypatch.setenv("STANDIN_NVML", str(found.file))
    monkeypatch.setattr(advisories, "toolkit_version", lambda: None)
    monkeypatch.setattr("arsandbox.sandbox.gpu.sampling.INTERVAL_S", 0.01)
    monkeypatch.setattr(granting, "_SETTLED_S", 0.3)
    monkeypatch.setattr("arsandbox.sandbox.state.machine_locks", lambda: tmp_path / "locks")
    monkeypatch.setattr(nvml.Session, "read", found.watch(nvml.Session.read))
    nvml.facts.cache_clear()
    found.tell(*map(Gpu, UUIDS[:2]))
    yield found
    nvml.facts.cache_clear()


@pytest.fixture
def fake_loop(make_repo: MakeRepository, tmp_path: Path) -> Callable[..., Any]:
    """`fake_loop(rule="greedy", noise=0.0, config="")`: a repository, an empty queue, and the loop over both."""

    def make(*, rule: str = "greedy", noise: float = 0.0, name: str = "repo", config: str = "") -> Any:
        text = _fake_loop.CONFIG.format(rule=rule) + config
        made = make_repo({"arsandbox.toml": text, "train.py": _fake_loop.train()}, name=name)
        return _fake_loop.FakeLoop(made, tmp_path / f"{name}-queue", noise)

    return make


@pytest.fixture
def make_record() -> Callable[..., Record]:
    """`make_record(id, **changes)`: a complete record with plausible values."""

    def make(identity: str = "20240102-030405-678-abcdef", **changes: Any) -> Record:
        values: dict[str, Any] = {
            "id": identity,
            "repo": "repo",
            "branch": "arsandbox/nov22",
            "base_commit": "a" * 40,
            "candidate_tree": "b" * 40,
            "patch": Patch(sha256="c" * 64, files=("train.py",), insertions=1, deletions=1),
            "image": ImageRef(name="cpu", digest="sha256:" + "d" * 64),
            "command": ("python", "train.py"),
            "seed": 7,
            "budget_s": 300.0,
            "grace_s": 30.0,
            "engine": EngineInfo(name="docker", version="1", runtime="runc", isolation="container", privilege="root"),
            "policy": PolicyInfo(sha256="e" * 64, effective={"network": "none"}),
            "metric": MetricInfo(name="val_bpb", goal="min", value=0.9971, source="evaluate"),
            "metrics": {"val_bpb": 0.9971},
            "trust": "L2",
            "setup_sha256": "f" * 64,
            "verdict": Verdict.KEEP,
            "reason": "val_bpb 0.9971 against 1.01: better by 0.0129",
            "started_at": "2024-01-02T03:04:05.678Z",
            "finished_at": "2024-01-02T03:09:05.678Z",
        }
        return Record(**{**values, **changes})

    return make


class Late(BaseException):
    """Raised again and again by the alarm, and no Exception, so that no handler on the way swallows it."""


@pytest.fixture
def within() -> Callable[[float], AbstractContextManager[None]]:
    """`with within(2):` fails the test when the block takes longer, even when it blocks for ever."""

    @contextmanager
    def limit(seconds: float) -> Iterator[None]:
        def late(number: int, frame: object) -> None:
            raise Late

        before = signal.signal(signal.SIGALRM, late)
        remaining = signal.setitimer(signal.ITIMER_REAL, seconds, 0.5)
        try:
            yield
        except Late:
            raise AssertionError(f"still busy after {seconds} s") from None
        finally:
            signal.setitimer(signal.ITIMER_REAL, *remaining)
            signal.signal(signal.SIGALRM, before)

    return limit

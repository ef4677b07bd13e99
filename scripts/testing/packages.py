"""The package as its users get it: an sdist and a wheel of it, installed far from the checkout, and their demo."""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import results
from .processes import Processes

ENGINES = ("embedded", "docker")
_STORY = ("baseline", "keep", "discard", None, "oom")


class FailedError(Exception):
    """A check failed; its text says why."""


@dataclass(frozen=True)
class Trial:
    """A place outside the checkout, and how programs run there."""

    root: Path
    place: Path
    processes: Processes
    left_s: Callable[[], float | None]

    @property
    def python(self) -> Path:
        """The Python of the fresh environment."""
        return self.place / "venv" / "bin" / "python"

    def run(self, command: Sequence[str | Path], env: Mapping[str, str] | None = None) -> str:
        """What the program printed; FailedError with its last lines where it fails."""
        text: list[str] = []
        error = quietly(command, cwd=self.place, processes=self.processes, env=env, limit_s=self.left_s(), printed=text)
        if error is not None:
            raise FailedError(error)
        return text[0]

    def users_environment(self) -> dict[str, str]:
        """The environment of somebody without a checkout: nothing of .venv, and a state directory of its own.

        The rest is kept, since it says how this machine reaches Docker and the package index.
        """
        path = [entry for entry in os.environ["PATH"].split(":") if not Path(entry).is_relative_to(self.root)]
        kept = {
            name: value
            for name, value in os.environ.items()
            if name != "VIRTUAL_ENV" and not name.startswith(("PYTHON", "ARSANDBOX_"))
        }
        return kept | {"PATH": ":".join(path), "ARSANDBOX_HOME": str(self.place / "state")}


def check(
    root: Path, report: Path, passed: Sequence[str], processes: Processes, left_s: Callable[[], float | None]
) -> int:
    """Build, install, then each engine's demo; what has passed is not done again, but for what later checks need."""
    names = ["packages/build and install", *(f"packages/demo on {engine}" for engine in ENGINES)]
    if not set(names).difference(passed):
        return 0
    status = 0
    with tempfile.TemporaryDirectory(prefix="arsandbox-packages-") as place:
        trial = Trial(root, Path(place), processes, left_s)
        for name, work in zip(names, (build, demo_embedded, demo_docker), strict=True):
            if name not in passed or work is build:
                code = _noted(report, name, trial, work)
                status = status or code
                if code and work is build:
                    break
    return status


def build(trial: Trial) -> None:
    """An sdist, a wheel made of the sdist, and that wheel with the extra `embedded` in a fresh environment."""
    dist = trial.place / "dist"
    trial.run([sys.executable, "-m", "build", "--outdir", dist, trial.root])
    (wheel,) = dist.glob("*.whl")
    if not list(dist.glob("*.tar.gz")):
        raise FailedError("no sdist was built")
    # By the Python that .venv was made of: an environment notes who made it.
    trial.run([Path(sys.executable).resolve(), "-m", "venv", trial.place / "venv"])
    quiet = ("-q", "--no-input", "--disable-pip-version-check")
    trial.run([trial.python, "-m", "pip", "install", *quiet, f"{wheel}[embedded]"])
    trial.run([trial.python, "-m", "pip", "check"])
    if found := [str(path) for path in sorted((trial.place / "venv").rglob("*")) if _names(path, trial.root)]:
        raise FailedError(f"the installed package names the checkout: {', '.join(found[:5])}")
    said = trial.run([trial.python, "-c", "import arsandbox; print(arsandbox.__file__)"], trial.users_environment())
    if not Path(said.strip()).is_relative_to(trial.place):
        raise FailedError(f"arsandbox was imported from {said.strip()}")


def demo_embedded(trial: Trial) -> None:
    """The story on the engine that needs no daemon."""
    _demo(trial, "embedded")


def demo_docker(trial: Trial) -> None:
    """The story on Docker, with an image built from nothing."""
    _demo(trial, "docker")


def quietly(
    command: Sequence[str | Path],
    *,
    cwd: Path,
    processes: Processes,
    env: Mapping[str, str] | None = None,
    limit_s: float | None = None,
    printed: list[str] | None = None,
) -> str | None:
    """Run a program whose output matters only when it fails: None, or the last lines of it in one."""
    with tempfile.TemporaryFile() as output:
        try:
            status = processes.run(command, cwd=cwd, env=env, limit_s=limit_s, output=output)
        except OSError as error:
            return str(error)
        output.seek(0)
        text = output.read().decode(errors="replace")
    if printed is not None:
        printed.append(text)
    if status == 0:
        return None
    last = " | ".join(text.strip().splitlines()[-6:])
    return f"{Path(command[0]).name} {' '.join(map(str, command[1:4]))} ended with {status}: {last}"


def _demo(trial: Trial, engine: str) -> None:
    env = trial.users_environment()
    program = trial.python.with_name("arsandbox")
    place = trial.place / f"demo-{engine}"
    said = trial.run([program, "demo", "--engine", engine, "--json", "--directory", place], env)
    records = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    told = [record["verdict"] for record in records]
    if len(told) != len(_STORY) or any(want not in (None, got) for want, got in zip(_STORY, told, strict=True)):
        raise FailedError(f"the demo told another story: {told}")
    if told[3] == "keep" or {record["engine"]["name"] for record in records} != {engine}:
        raise FailedError(f"the demo believed the cheat, or ran elsewhere: {told}")


def _noted(report: Path, name: str, trial: Trial, work: Callable[[Trial], None]) -> int:
    """Do one check, and add its result to the report, of what passed and of what did not."""
    print(f"scripts/test: {name}", flush=True)
    began = time.monotonic()
    try:
        work(trial)
    except FailedError as error:
        print(f"scripts/test: {name} failed: {error}", flush=True)
        results.add(report, results.Result(name, "failed", round(time.monotonic() - began, 3)))
        return 1
    results.add(report, results.Result(name, "passed", round(time.monotonic() - began, 3)))
    return 0


def _names(path: Path, root: Path) -> bool:
    """Whether an installed file holds the checkout's path."""
    if path.is_symlink() or not path.is_file() or not re.search(r"\.(pth|json|py|cfg)$|RECORD$|/bin/", str(path)):
        return False
    return str(root).encode() in path.read_bytes()

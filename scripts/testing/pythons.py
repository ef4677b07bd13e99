"""The group `pythons`: the unit and command-line tests on every Python that the package names, and its packages."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from . import packages
from .processes import Processes

if TYPE_CHECKING:
    from .runner import Runner, Section

FOLDERS = ("tests/unit", "tests/cli")
# One Python more than that of .venv at the least: with one alone this group would say nothing new.
CI_NEEDS = 2
_PROBE = "import ensurepip, sys, venv; print('%d.%d' % sys.version_info[:2], sys.executable)"


def run(runner: Runner, section: Section) -> int:
    """The tests on each Python, then the packages: the first exit status that is not 0.

    A selection takes the place of the folders, and leaves the packages out.
    """
    status, had = 0, 0
    for version in versions(runner.root):
        made = environment(runner.root, version, runner.processes)
        if isinstance(made, str):
            print(f"scripts/test: left out: Python {version}: {made}", flush=True)
            continue
        had += 1
        print(f"scripts/test: the tests on Python {version}", flush=True)
        selection = runner.options.selection or FOLDERS
        code = runner.pytest(section, selection, python=made, prefix=f"{version} ")
        status = status or code
    if runner.ci and had < CI_NEEDS:
        print(f"scripts/test: CI=true, and only {had} of these Pythons can be had", flush=True)
        status = status or 1
    if runner.options.whole:
        code = packages.check(runner.root, section.report, section.passed, runner.processes, section.left_s)
        status = status or code
    return status


def versions(root: Path) -> list[str]:
    """The Pythons that the package names, as 3.11."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    found = (re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", line) for line in project["classifiers"])
    return [match[1] for match in found if match]


def find(version: str, processes: Processes, root: Path) -> Path | None:
    """An interpreter that can make environments: from PATH, from pyenv, else from the distribution's package."""
    for candidate in _candidates(version):
        if usable := _usable(candidate, version):
            return usable
    if _apt_install([f"python{version}", f"python{version}-venv"], processes, root):
        return _usable(f"python{version}", version)
    return None


def environment(root: Path, version: str, processes: Processes) -> Path | str:
    """The Python of a virtual environment with the tests' packages; where there is none, why, in words."""
    place = root / ".venv" / "pythons" / version
    place.parent.mkdir(parents=True, exist_ok=True)
    with _locked(place.parent / ".lock"):
        python = find(version, processes, root)
        if python is None:
            return "this machine has none, and its package manager could not install one"
        project = hashlib.sha256((root / "pyproject.toml").read_bytes()).hexdigest()
        stamp, made = f"{project} {root} {python}\n", place / "bin" / "python"
        if _text(place / ".stamp") == stamp:
            return made
        print(f"scripts/test: setting up Python {version} in {place}", flush=True)
        shutil.rmtree(place, ignore_errors=True)
        steps: Sequence[Sequence[str | Path]] = (
            [python, "-m", "venv", place],
            [made, "-m", "pip", "install", "-q", "--no-input", "--disable-pip-version-check", "-e", ".[test]"],
        )
        for step in steps:
            if error := packages.quietly(step, cwd=root, processes=processes):
                return error
        (place / ".stamp").write_text(stamp)
        return made


def _candidates(version: str) -> Iterator[str]:
    yield f"python{version}"
    if shutil.which("pyenv"):
        told = subprocess.run(["pyenv", "root"], capture_output=True, text=True, check=False)
        installed = Path(told.stdout.strip() or "/nonexistent").glob(f"versions/{version}.*/bin/python{version}")
        yield from map(str, sorted(installed, key=_release, reverse=True))


def _release(path: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", path.parents[1].name)]


def _usable(candidate: str, version: str) -> Path | None:
    try:
        done = subprocess.run([candidate, "-c", _PROBE], capture_output=True, text=True, check=False)
    except OSError:
        return None
    found, _, path = done.stdout.strip().partition(" ")
    return Path(path) if done.returncode == 0 and found == version else None


def _apt_install(names: Sequence[str], processes: Processes, root: Path) -> bool:
    """Whether Debian's packages could be installed, as root or with passwordless sudo."""
    if shutil.which("apt-get") is None:
        return False
    sudo = [] if os.geteuid() == 0 else ["sudo", "-n"]
    if sudo and (shutil.which("sudo") is None or packages.quietly([*sudo, "true"], cwd=root, processes=processes)):
        return False
    apt = [*sudo, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-y", "-o", "DPkg::Lock::Timeout=120"]
    install = [*apt, "install", "--no-install-recommends", *names]
    if packages.quietly(install, cwd=root, processes=processes) is None:
        return True
    packages.quietly([*apt, "update"], cwd=root, processes=processes)
    return packages.quietly(install, cwd=root, processes=processes) is None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""

"""Where wheels come from: the indexes and folders that pip on this machine is set up with."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from arsandbox.images.lockfile import LockedWheel
from arsandbox.images.programs import run_program
from arsandbox.sandbox.errors import MachineError

if TYPE_CHECKING:
    from unearth import PackageFinder

_PIP = "install pip for the Python that runs arsandbox"


@dataclass(frozen=True)
class Found:
    """A wheel's place: its file name, its address (`https://` or `file://`) and its SHA-256 (64 hex digits)."""

    file_name: str
    url: str
    sha256: str


class Indexes:
    """Looks wheels up for one `python` ("MAJOR.MINOR") and the platform tags `platforms`, best first."""

    def __init__(self, python: str, platforms: Sequence[str]) -> None:
        self._python, self._platforms = python, list(platforms)

    def locate(self, wheel: LockedWheel) -> Found:
        """Where the best wheel with an allowed hash lies. Raises MachineError where there is none, or no index."""
        try:
            best = self._finder.find_best_match(wheel.requirement, hashes={"sha256": list(wheel.hashes)}).best
        except Exception as error:  # noqa: BLE001 - unearth lets whatever its HTTP client raises through
            said = _CREDENTIALS.sub("//", str(error))
            raise MachineError(f"no package index answers for {wheel.requirement}: {said}", hint=_HINT) from None
        if best is None:
            raise MachineError(
                f"no wheel of {wheel.requirement} with a locked hash fits Python {self._python}, {self._platforms[-1]}",
                hint=_HINT,
            )
        sha256 = (best.link.hashes or {}).get("sha256", "")
        if sha256 not in wheel.hashes:
            raise MachineError(f"the index gives no sha256 for {best.link.filename}", hint=_HINT)
        return Found(best.link.filename, best.link.url_without_fragment, sha256)

    @cached_property
    def _finder(self) -> PackageFinder:
        from unearth import PackageFinder, TargetPython

        settings = pip_settings()
        major, minor = self._python.split(".")
        return PackageFinder(
            index_urls=[] if settings.get("no-index") in {"1", "true", "yes", "on"} else index_urls(settings),
            find_links=settings.get("find-links", "").split(),
            trusted_hosts=settings.get("trusted-host", "").split(),
            target_python=TargetPython(py_ver=(int(major), int(minor)), platforms=self._platforms, impl="cp"),
            only_binary=[":all:"],
        )


_CREDENTIALS = re.compile(r"//[^/@\s]*@")
_HINT = "`pip config list` shows where this machine looks for wheels; pip's find-links may name a folder that has it"


def pip_settings() -> dict[str, str]:
    """What pip is configured with, by option: its environment variables win over its files, `install` over `global`."""
    # -P: with -m alone Python would import a pip.py of the current directory, which may be anybody's repository.
    argv = [sys.executable, "-P", "-m", "pip", "config", "list"]
    said = run_program(argv, missing_hint=_PIP, failed_hint=_PIP).decode()
    found: dict[str, dict[str, str]] = {"global": {}, "install": {}, ":env:": {}}
    for line in said.splitlines():
        key, separator, value = line.partition("=")
        section, _, name = key.strip().rpartition(".")
        if separator and section in found:
            found[section][name] = str(ast.literal_eval(value))
    return {**found["global"], **found["install"], **found[":env:"]}


def index_urls(settings: dict[str, str]) -> list[str]:
    """pip's index and its further ones, in pip's order; pip's own default where none is set."""
    from pip._internal.models.index import PyPI  # its default, said nowhere else that a program could read

    return [settings.get("index-url", PyPI.simple_url), *settings.get("extra-index-url", "").split()]

"""The wheel layer: the wheels that a lock file's hashes allow, where Debian's Python looks."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from arsandbox.images.programs import run_program
from arsandbox.images.recipe import Recipe
from arsandbox.images.tarlayer import Member, tree_members, with_parents, write_layer

# Newest first: pip prefers what comes first. Debian 12 has glibc 2.36.
_GLIBC_MINORS = range(36, 16, -1)

# `bin/` holds scripts that start the host's Python. The four metadata files say how and by which pip the
# wheel was installed, which must not change an image. Tests of libraries are dead weight.
_DROPPED = re.compile(
    r"^bin(/|$)|(^|/)__pycache__(/|$)|(^|/)tests(/|$)|\.pyc$|\.dist-info/(RECORD|INSTALLER|REQUESTED|direct_url\.json)$"
)


def packages_folder(python: str) -> str:
    """Where Debian's `python` ("MAJOR.MINOR") finds packages that are not Debian's, relative to the root."""
    return f"usr/local/lib/python{python}/dist-packages"


def platforms(machine: str) -> list[str]:
    """The wheel platform tags that run on Debian 12 on `machine` ("x86_64" or "aarch64"), best first."""
    return [*(f"manylinux_2_{minor}_{machine}" for minor in _GLIBC_MINORS), f"manylinux2014_{machine}"]


def build_wheels(recipe: Recipe, machine: str, target: IO[bytes], scratch: Path) -> None:
    """Install the recipe's lock file for `machine` with pip and write the layer to `target`.

    pip finds the wheels where this machine is set up to look; hashes make the source irrelevant.
    Raises MachineError if pip fails: no index, a missing wheel or a wrong hash.
    """
    lock = scratch / "requirements.lock"
    lock.write_text(recipe.requirements, encoding="utf-8")
    tree = scratch / "wheels"
    run_program(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"),
            *("--no-compile", "--no-deps", "--require-hashes", "--only-binary", ":all:"),
            *("--implementation", "cp", "--python-version", recipe.python, "--target", str(tree)),
            *(word for platform in platforms(machine) for word in ("--platform", platform)),
            *("--requirement", str(lock)),
        ],
        missing_hint="install pip for the Python that runs arsandbox",
        failed_hint=f"pip could not install {recipe.wheels}: is an index or --find-links folder reachable?",
    )
    write_layer(target, with_parents(_members(recipe, tree)))


def _members(recipe: Recipe, tree: Path) -> Iterator[Member]:
    yield from tree_members(tree, packages_folder(recipe.python), lambda name: not _DROPPED.search(name))

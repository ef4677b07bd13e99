"""The bytecode layer: compiled modules, so that a run on a read-only root need not compile on every start.

The image's own Python compiles, started from unpacked files through its own loader: that needs no root,
no chroot and no container, and gives the same bytes whatever Python the host has.
"""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from arsandbox.images.programs import run_program
from arsandbox.images.recipe import Recipe
from arsandbox.images.tarlayer import tree_members, with_parents, write_layer
from arsandbox.images.wheels import packages_folder
from arsandbox.sandbox.errors import MachineError

_LOADERS = {"x86_64": "ld-linux-x86-64.so.2", "aarch64": "ld-linux-aarch64.so.1"}


def build_bytecode(recipe: Recipe, machine: str, layers: Sequence[Path], target: IO[bytes], scratch: Path) -> None:
    """Compile the standard library and packages found in `layers` and write the layer to `target`.

    The modules are marked as never to be checked against their sources: times in an image say nothing.
    Raises MachineError if the image's Python does not start on this machine.
    """
    root = scratch / "root"
    library = f"usr/lib/{machine}-linux-gnu"
    python = f"usr/bin/python{recipe.python}"
    packages = packages_folder(recipe.python)
    sources = [f"usr/lib/python{recipe.python}", packages]
    (root / packages).mkdir(parents=True)
    for layer in layers:
        _unpack(layer, root, (f"{library}/lib", f"{library}/ld-", python, f"{sources[0]}/", f"{packages}/"), packages)
    run_program(
        [
            *(str(root / library / _LOADERS[machine]), "--library-path", str(root / library)),
            # -s and -p write the path inside the image into each module; one worker, because the order
            # of work shows in the bytes.
            *(str(root / python), "-S", "-s", "-m", "compileall", "-q", "-j", "1"),
            *("--invalidation-mode", "unchecked-hash", "-s", str(root), "-p", "/"),
            *(str(root / source) for source in sources),
        ],
        missing_hint="the packages of the recipe bring no loader for this machine's processor",
        failed_hint="the image's own Python must run on this machine, from a folder that allows programs",
        env={
            "PYTHONHOME": str(root / "usr"),
            "PYTHONHASHSEED": "0",
            "PYTHONDONTWRITEBYTECODE": "1",
            "LC_ALL": "C.UTF-8",
        },
        # 1: some file is not valid Python (templates in wheels are not); the count below decides.
        accept=(0, 1),
    )
    members = [
        member
        for source in sources
        for member in tree_members(root / source, source, lambda name: name.endswith(".pyc"))
    ]
    if not members:
        raise MachineError("the image's Python compiled nothing", hint="run again with --no-cache")
    write_layer(target, with_parents(members))


def _unpack(layer: Path, root: Path, prefixes: tuple[str, ...], packages: str) -> None:
    with tarfile.open(layer) as archive:
        for entry in archive:
            path = root / entry.name
            if not entry.name.startswith(prefixes) or ".." in Path(entry.name).parts:
                continue
            if entry.name.startswith(packages) and not entry.name.endswith(".py"):
                continue  # gigabytes of libraries that the compiler never loads
            if entry.isreg():
                path.parent.mkdir(parents=True, exist_ok=True)
                source = archive.extractfile(entry)
                if source is not None:
                    with source, path.open("wb") as output:
                        shutil.copyfileobj(source, output, 1024 * 1024)
                    path.chmod(0o755)
            elif entry.issym() and "/" not in entry.linkname:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.symlink_to(entry.linkname)

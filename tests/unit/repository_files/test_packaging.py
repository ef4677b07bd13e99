"""The wheel holds exactly the tracked files of the package, under the names that users import."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

from hatchling.builders.wheel import WheelBuilder

from arsandbox_fixtures.places import ROOT

FOLDERS = ("sandbox", "cli", "policies", "images", "examples")


def test_the_wheel_holds_the_tracked_files(tmp_path: Path) -> None:
    wheel = next(WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"]))
    with zipfile.ZipFile(wheel) as archive:
        names = {n for n in archive.namelist() if ".dist-info/" not in n}
    listed = subprocess.run(
        ["git", "ls-files", "-z", *FOLDERS, "src/arsandbox/__init__.py", "src/arsandbox/py.typed"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    tracked = {path for path in listed.split("\0") if path}
    expected = {f"arsandbox/{path.removeprefix('src/arsandbox/')}" for path in tracked}
    expected.add("arsandbox/images/Dockerfile.train")  # at the root of the repository, for plain `docker build`
    assert names == expected


def test_the_short_names_are_links_of_the_package() -> None:
    for folder in FOLDERS:
        link = ROOT / "src/arsandbox" / folder
        assert link.is_symlink() and link.resolve() == ROOT / folder

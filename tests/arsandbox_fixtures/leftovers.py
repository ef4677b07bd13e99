"""What a finished run must not leave."""

from __future__ import annotations

from pathlib import Path

from arsandbox_fixtures.docker_engine import containers, volumes
from arsandbox_fixtures.home import session_home


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

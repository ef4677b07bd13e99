"""Every cheat is real: it fools a runner that believes what it is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from arsandbox_fixtures.cheats.corpus import Cheat, cheats

pytestmark = [pytest.mark.engine, pytest.mark.timeout(180)]


def fooled(cheat: Cheat, seen: Any) -> bool:
    """Whether the naive runner did what the cheat wants."""
    wanted, marker = cheat.naive, cheat.naive.marker.encode()
    match wanted.fooled:
        case "kept":
            return bool(seen.kept)
        case "shown":
            return marker in seen.output
        case "outlived":
            return seen.survivors > 0
        case "stored":
            files = [path for path in seen.stored.rglob("*") if path.is_file()]
            if marker:
                return any(marker in path.read_bytes() for path in files)
            return sum(path.stat().st_size for path in files) + len(seen.output) >= wanted.bytes


def one_of_each_threat() -> list[Any]:
    """Every cheat; all but the first of each threat are in the group hostile."""
    threats: set[str] = set()
    found = []
    for cheat in cheats():
        found.append(
            pytest.param(cheat, id=cheat.id, marks=(pytest.mark.group("hostile"),) if cheat.threat in threats else ())
        )
        threats.add(cheat.threat)
    return found


@pytest.mark.parametrize("cheat", one_of_each_threat())
def test_a_naive_runner_is_fooled(
    cheat: Cheat, naive_runner: Callable[[str], Any], record_property: Callable[[str, object], None]
) -> None:
    runner = naive_runner(cheat.project)
    base = runner.run()
    assert base.kept and base.survivors == 0, base.output.decode(errors="replace")
    runner.apply(cheat.patch)
    for _ in range(cheat.naive.runs):
        seen = runner.run()
    assert fooled(cheat, seen), (base.value, seen.value, seen.output[-2000:].decode(errors="replace"))
    record_property(
        "cheat", (cheat.id, "naive", f"{cheat.naive.fooled} {seen.value:.4g}" if seen.kept else cheat.naive.fooled)
    )

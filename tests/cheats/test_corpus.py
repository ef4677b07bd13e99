"""The corpus is complete and says what the documentation says; no engine is needed."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from arsandbox.sandbox.models import Verdict
from arsandbox_fixtures.cheats.corpus import LEVELS, Cheat, Honest, cheats, files_of, honest, levels_of, projects
from arsandbox_fixtures.cheats.table import page
from arsandbox_fixtures.places import ROOT

DOCUMENT = ROOT / "docs" / "cheats.md"
THREATS = {f"T{number:02}" for number in range(1, 32)}


def test_the_corpus_is_as_large_as_promised() -> None:
    assert len(cheats()) >= 40
    assert len(honest()) >= 20
    assert {cheat.threat for cheat in cheats()} == THREATS
    assert {cheat.project for cheat in cheats()} == set(projects())


@pytest.mark.parametrize("cheat", cheats(), ids=lambda cheat: cheat.id)
def test_a_cheat_says_what_each_level_answers(cheat: Cheat) -> None:
    assert cheat.id.startswith(f"{cheat.threat}-")
    assert tuple(sorted(cheat.levels)) == levels_of(cheat.project)
    for answer in cheat.levels.values():
        assert Verdict(answer.expected) in Verdict
        assert answer.outcome == "passes" or answer.expected not in ("keep", "baseline", "pending")
    # A level never gives back what a lower one has stopped.
    outcomes = [cheat.levels[level].outcome for level in sorted(cheat.levels)]
    assert outcomes == sorted(outcomes, key=["passes", "stopped"].index)


@pytest.mark.parametrize("edit", [*cheats(), *honest()], ids=lambda edit: edit.id)
def test_a_patch_applies_to_its_project(edit: Cheat | Honest, tmp_path: Path) -> None:
    for name, content in files_of(edit.project).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    subprocess.run(["git", "apply", "--check", str(edit.patch)], cwd=tmp_path, check=True)


def test_the_documentation_holds_the_table() -> None:
    if os.environ.get("WRITE_CHEATS"):
        DOCUMENT.write_text(page())
    assert DOCUMENT.read_text() == page(), "write it anew: see tests/cheats/README.md"


def test_the_levels_are_those_of_the_documentation() -> None:
    text = (DOCUMENT.parent / "integrity.md").read_text()
    assert re.findall(r"^\| (L[0-9]) ", text, re.MULTILINE) == list(LEVELS)

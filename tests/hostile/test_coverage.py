"""Every row of the checklist has an attack or a test, and every field of the policy one that shows it enforced."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from arsandbox.policies.meet import rules
from arsandbox.sandbox.probe.catalogue import load
from arsandbox_fixtures.places import ROOT

COVERAGE = tomllib.loads((Path(__file__).parent / "coverage.toml").read_text())
OWN = {
    path.parent.name: tomllib.loads(path.read_text()) for path in Path(__file__).parent.glob("attacks/*/attack.toml")
}
INSIDE = {attack.name: attack for attack in load()}


def test_every_row_is_shown() -> None:
    shown = {row for attack in INSIDE.values() for row in attack.rows}
    shown |= {row for attack in OWN.values() for row in attack["rows"]} | {int(row) for row in COVERAGE["rows"]}
    assert shown == set(range(1, 38))


def test_every_field_of_the_policy_is_shown_to_be_enforced() -> None:
    assert set(COVERAGE["fields"]) == set(rules())
    assert all(COVERAGE["fields"].values())


@pytest.mark.parametrize(
    "entry", sorted({entry for part in COVERAGE.values() for entries in part.values() for entry in entries})
)
def test_what_is_named_exists(entry: str) -> None:
    file, _, function = entry.partition("::")
    if not function:
        assert file in OWN or file in INSIDE
        return
    assert re.search(rf"^ *def {function}\(", (ROOT / file).read_text(), re.MULTILINE), entry


def test_there_are_attacks_enough_and_no_name_twice() -> None:
    assert not set(OWN) & set(INSIDE)
    assert len(OWN) + len(INSIDE) >= 60

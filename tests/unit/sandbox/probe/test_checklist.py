"""How the checklist's rows follow from the answers, and that the attacks' data holds together."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from arsandbox.sandbox.errors import StateError
from arsandbox.sandbox.models import EngineInfo, Guarantee, Guarantees
from arsandbox.sandbox.probe.catalogue import HOME, Attack, Control, load
from arsandbox.sandbox.probe.checklist import PROMISES, TITLES, judge
from arsandbox.sandbox.probe.group import Answer


def _engine(**weak: Guarantee) -> EngineInfo:
    return EngineInfo(
        name="e", version="1", runtime="r", isolation="container", privilege="root",
        guarantees=Guarantees(**{"egress": Guarantee.ENFORCED, **weak}),
    )  # fmt: skip


def _attack(name: str, **fields: object) -> Attack:
    return Attack.model_validate(
        {"name": name, "tries": "x", "rows": [6], "control": {"reason": "y"}, "payload": "", **fields}
    )


def _answer(name: str, outcome: str, detail: str = "d") -> Answer:
    return Answer.model_validate({"name": name, "outcome": outcome, "detail": detail})


@pytest.mark.parametrize(
    ("outcomes", "status"),
    [
        (("stopped", "stopped"), "pass"),
        (("stopped", "succeeded"), "fail"),
        (("broken", "stopped"), "fail"),
    ],
)
def test_one_attack_that_gets_through_or_breaks_fails_its_row(outcomes: tuple[str, str], status: str) -> None:
    attacks = [_attack("a"), _attack("b")]
    answers = {a.name: _answer(a.name, outcome) for a, outcome in zip(attacks, outcomes, strict=True)}
    (row,) = judge(attacks, answers, _engine())
    assert (row.row, row.status) == (6, status)


def test_only_a_declared_gap_is_not_offered() -> None:
    declared = _attack("a", expect={"e": "not offered"}, gap="it is missing")
    (row,) = judge([declared], {"a": _answer("a", "succeeded")}, _engine())
    assert (row.status, row.detail) == ("not offered", "a: it is missing")
    (row,) = judge([declared], {"a": _answer("a", "succeeded")}, _engine().model_copy(update={"name": "other"}))
    assert row.status == "fail"


def test_a_promise_that_is_not_always_kept_shows() -> None:
    rows = judge([_attack("a")], {"a": _answer("a", "stopped")}, _engine(memory=Guarantee.BEST_EFFORT))
    assert [(row.row, row.status) for row in rows] == [(6, "pass"), (17, "not offered")]
    assert "memory: best effort" in rows[1].detail


def test_every_promise_has_a_row() -> None:
    assert set(PROMISES) == set(Guarantees.model_fields)
    assert set(PROMISES.values()) <= set(TITLES)


def test_a_gap_must_be_said_and_a_control_is_one_of_two() -> None:
    with pytest.raises(ValueError, match="gap"):
        _attack("a", expect={"docker": "not offered"})
    for bad in ({}, {"off": "x", "reason": "y"}):
        with pytest.raises(ValueError, match="either"):
            Control.model_validate(bad)


def test_every_attack_is_whole_and_every_row_has_a_title() -> None:
    attacks = load()
    assert len(attacks) >= 60
    for attack in attacks:
        assert "def attack()" in attack.payload, attack.name
        compile(attack.payload, attack.name, "exec")
        assert set(attack.rows) <= set(TITLES), attack.name
    assert {path.name for path in HOME.iterdir() if path.is_dir()} == {attack.name for attack in attacks}


def test_a_malformed_attack_is_named(tmp_path: Path) -> None:
    shutil.copytree(HOME / "mount", tmp_path / "mount")
    (tmp_path / "mount" / "attack.toml").write_text("rows = []\n")
    with pytest.raises(StateError, match="mount"):
        load(tmp_path)

"""What each trust level makes of each cheat is what the corpus says; no honest edit is refused at any level."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from arsandbox_fixtures.cheats.corpus import Cheat, Honest, cheats, honest, levels_of
from arsandbox_fixtures.docker_engine import containers

pytestmark = [pytest.mark.engine, pytest.mark.timeout(240)]


def at_levels(
    items: tuple[Any, ...], levels: Callable[[Any], tuple[str, ...]], first: Callable[[int, Any, tuple[str, ...]], str]
) -> list[Any]:
    """Each item at each of its levels; all but the level that `first` chooses are in the group hostile."""
    found = []
    for index, item in enumerate(items):
        every = levels(item)
        for level in every:
            marks = () if level == first(index, item, every) else (pytest.mark.group("hostile"),)
            found.append(pytest.param(item, level, id=f"{item.id}-{level}", marks=marks))
    return found


def strongest(index: int, cheat: Cheat, levels: tuple[str, ...]) -> str:
    """A cheat is tried at its strongest level; at L3 where L4, with its second box, has nothing else to say."""
    same = "L3" in levels and levels[-1] == "L4" and cheat.levels["L3"] == cheat.levels["L4"]
    return "L3" if same else levels[-1]


def in_turn(index: int, edit: Honest, levels: tuple[str, ...]) -> str:
    """Honest edits take turns, so that each level sees some."""
    return levels[index % len(levels)]


CHEATS = at_levels(cheats(), lambda cheat: tuple(sorted(cheat.levels)), strongest)
HONEST = at_levels(honest(), lambda edit: edit.levels or levels_of(edit.project), in_turn)


def codes(record: Any) -> set[str]:
    return {finding.code for finding in record.findings}


def explained(record: Any) -> str:
    return json.dumps(
        {
            "verdict": record.verdict, "reason": record.reason, "value": record.metric.value,
            "baseline": record.baseline and record.baseline.value, "reported": record.self_reported,
            "findings": [f"{finding.code}: {finding.detail}" for finding in record.findings],
        },
        indent=1, default=str,
    )  # fmt: skip


@pytest.mark.parametrize(("cheat", "level"), CHEATS)
def test_a_level_answers_a_cheat_as_it_claims(
    cheat: Cheat, level: str, tasks: Callable[[str, str], Any], record_property: Callable[[str, object], None]
) -> None:
    answer, task = cheat.levels[level], tasks(cheat.project, level)
    record = task.run(cheat.patch, runs=cheat.naive.runs)
    record_property("cheat", (cheat.id, level, " ".join([record.verdict.value, *sorted(codes(record))])[:23]))
    assert record.verdict.value == answer.expected, explained(record)
    assert set(answer.findings) <= codes(record), explained(record)
    assert answer.outcome == "passes" or record.promotion is None, explained(record)
    if answer.outcome == "passes" and cheat.naive.fooled == "kept":
        assert record.promotion is not None, explained(record)
    if answer.outcome == "stopped" and cheat.naive.fooled == "shown":
        assert cheat.naive.marker not in record.model_dump_json(), "what the run printed is in the record"
    text = record.model_dump_json()
    assert "\\u001b" not in text, "a control sequence is in the record"
    assert not containers(), "a container is left"


@pytest.mark.parametrize(("edit", "level"), HONEST)
def test_no_honest_edit_is_refused(
    edit: Honest, level: str, tasks: Callable[[str, str], Any], record_property: Callable[[str, object], None]
) -> None:
    record = tasks(edit.project, level).run(edit.patch)
    record_property("honest", (edit.id, level, record.verdict.value))
    assert record.verdict.value in ("keep", "discard"), explained(record)
    if edit.wins is not None:
        assert (record.promotion is not None) == edit.wins, explained(record)

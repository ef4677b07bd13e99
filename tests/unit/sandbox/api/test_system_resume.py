"""experiment_loop on the fake engine: called again after its process died, it goes on from what the ledger holds."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import arsandbox
from arsandbox.sandbox.models import Verdict
from arsandbox_fixtures.fake_loop import FORK, KILLED, FakeLoop, train


def rounds(made: FakeLoop) -> list[Any]:
    return list(
        arsandbox.experiment_loop(
            made.made.path, metric="loss", propose=f"patches:{made.queue}", count=9, tag=made.tag, engine="fake"
        )
    )


def dead_at(made: FakeLoop, step: str) -> int | None:
    def run() -> None:
        os.environ["ARSANDBOX_TEST_DIE_AT"] = step
        rounds(made)
        os._exit(0)

    process = FORK.Process(target=run)
    process.start()
    process.join(60)
    return process.exitcode


@pytest.fixture
def scripted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[float]], None]:
    """`scripted([1.0, 2.0])`: what the trainings of the next process print, the last value again and again."""
    path = tmp_path / "script.json"
    monkeypatch.setenv("ARSANDBOX_FAKE_SCRIPT", str(path))

    def tell(values: list[float]) -> None:
        told = [{"output": f"METRIC loss={value}\n"} for value in values]
        path.write_text(json.dumps({"isolation": "container", "stages": {"train": told}}))

    return tell


@pytest.mark.parametrize(
    ("step", "then"),
    [
        ("begun", [10.0, 9.0, 11.0]),
        ("measured:2", [9.0, 11.0]),
        ("intended", [11.0]),
        ("published", [11.0]),
        ("recorded:2", [11.0]),
    ],
)
def test_nothing_is_counted_or_promoted_twice_or_lost(
    step: str, then: list[float], fake_loop: Callable[..., FakeLoop], scripted: Callable[[list[float]], None]
) -> None:
    made = fake_loop()
    made.offer({"1": train(9.0), "2": train(extra=2.0)})
    scripted([10.0, 9.0, 11.0])
    assert dead_at(made, step) == KILLED
    scripted(then)  # what was measured is not measured again
    said = {one.description[:1]: one.status for one in rounds(made)}
    assert said["2"] == "reverted" and said[""] == "exhausted"
    records = [record for record in made.records() if record.description.startswith(("1", "2"))]
    verdicts = [(r.description[:1], r.verdict) for r in records if r.verdict is not Verdict.INTERRUPTED]
    assert verdicts == [("1", Verdict.KEEP), ("2", Verdict.DISCARD)]
    made.check(over=True)


def test_a_pending_result_is_confirmed_before_anything_is_proposed(
    fake_loop: Callable[..., FakeLoop], scripted: Callable[[list[float]], None]
) -> None:
    made = fake_loop(rule="confirm")
    made.offer({"1": train(9.0)})
    noise = [10.0, 10.1, 9.9, 10.05, 9.95, 10.1, 9.9, 10.0]
    # The baseline, the screening run; the calibration; then the first of a pair.
    scripted([noise[0], 5.0, *noise[1:], 5.0])
    assert dead_at(made, "begun:11") == KILLED
    assert [r.verdict for r in made.records() if r.part is None] == [Verdict.BASELINE, Verdict.PENDING]
    scripted([10.0])  # of the pairs, both sides alike: whatever their order, nothing is better
    said = [one.status for one in rounds(made)]
    assert said[0] in ("reverted", "rejected") and said[1:] == ["exhausted"], said  # equal for each seed is "pinned"
    ended = [r for r in made.records() if r.confirms is not None]
    assert [record.confirms for record in ended] == [r.id for r in made.records() if r.verdict is Verdict.PENDING]
    made.check(over=True)

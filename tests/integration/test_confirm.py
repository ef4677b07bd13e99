"""Decisions under noise against a real engine: calibrate, screen, confirm, continue, refuse pinned luck."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest

from arsandbox_fixtures.leftovers import leftovers
from arsandbox_fixtures.projects import Project
from arsandbox_fixtures.task import CONFIG, TRAIN, answering

pytestmark = [pytest.mark.engine, pytest.mark.timeout(280)]

CONFIRMING = CONFIG.replace('rule = "greedy"', 'rule = "confirm"')
NOISE = "    import random\n    ANSWER += random.Random(int(os.environ['ARSANDBOX_SEED'])).gauss(0, 0.1)\n"


def noisy(answer: float, noise: str = NOISE) -> str:
    """A train.py whose answer spreads by 0.1 around `answer`, by the seed that the controller gives."""
    return TRAIN.replace("ANSWER = 10.0", f"ANSWER = {answer}").replace(
        "    write(ANSWER)", f"{noise}    write(ANSWER)"
    )


@pytest.fixture(scope="module")
def _shared(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    place = tmp_path_factory.mktemp("confirm") / "task"
    return Project.create(place, {"arsandbox.toml": CONFIRMING, "train.py": noisy(10.0)})


def of_role(task: Any, role: str, of: str | None = None) -> list[dict[str, Any]]:
    found = [r for r in task.history() if r["part"] and r["part"]["role"] == role]
    return [r for r in found if of is None or r["part"]["of"] == of]


def test_a_true_improvement_is_pending_then_confirmed_and_promoted(_shared: Any) -> None:
    pending = _shared.run_train(noisy(9.0)).record
    assert (pending["verdict"], pending["promotion"]) == ("pending", None)
    assert "not calibrated yet" in pending["reason"]
    assert _shared.cli("promote", pending["id"]).code == 2  # no way around the confirmation

    done = _shared.cli("confirm", pending["id"], "--json")
    assert done.code == 0, done
    record = done.record
    assert (record["verdict"], record["confirms"]) == ("keep", pending["id"])
    found = record["decision"]
    assert found["pairs"] in (3, 5) and found["p_value"] < found["bound"]
    assert record["reason"].startswith("better by ") and f"over {found['pairs']} pairs, p = " in record["reason"]
    assert (found["tests"], found["alpha_spent"]) == (1, 0.002)
    assert pending["metric"]["value"] not in found["runs"]  # the screening run is left out
    assert record["metric"]["value"] == pytest.approx(statistics.fmean(found["runs"]))
    assert record["baseline"]["value"] == pytest.approx(statistics.fmean(found["champion_runs"]))

    calibration = of_role(_shared, "calibration")
    assert len(calibration) == 7 and {r["verdict"] for r in calibration} == {"measured"}
    pairs = of_role(_shared, "confirmation", pending["id"])
    assert len(pairs) == 2 * found["pairs"] and {r["id"] for r in pairs} == set(found["experiments"])
    seeds = [r["seed"] for r in _shared.history() if r["confirms"] is None]
    assert len(seeds) == len(set(seeds))  # every draw had a seed of its own
    tip = _shared.git("rev-parse", record["promotion"]["ref"])
    assert tip == record["promotion"]["commit"]

    again = _shared.cli("confirm", pending["id"], "--json")
    assert again.record == record and _shared.git("rev-parse", record["promotion"]["ref"]) == tip
    assert _shared.cli("verify").code == 0
    assert leftovers(_shared.home) == []


def test_a_null_edit_or_an_identical_one_gets_nothing(_shared: Any) -> None:
    worse = _shared.run_train(noisy(10.5), "--tag", "nulls").record
    assert worse["verdict"] == "discard"
    again = _shared.run_train(noisy(10.5), "--tag", "nulls").record
    assert again["verdict"] == "discard" and worse["id"] in again["reason"]
    assert again["metric"]["value"] is None and again["stages"] == []
    assert [f["code"] for f in again["findings"]] == ["resubmitted"]


def test_pinned_luck_goes_to_quarantine(_shared: Any) -> None:
    pinned = _shared.run_train(noisy(8.0, noise=""), "--tag", "pinned", "--confirm")
    assert pinned.code == 3, pinned
    record = pinned.record
    assert record["verdict"] == "quarantine" and "pinned" in record["reason"] and record["promotion"] is None


def test_a_metric_without_spread_is_decided_at_once(project: Any) -> None:
    task = project({"arsandbox.toml": CONFIRMING})
    first = task.run_train(answering(9), "--confirm").record
    assert first["verdict"] == "keep" and first["promotion"] is not None
    assert "no spread over 3 seeds" in first["reason"]
    assert of_role(task, "confirmation") == []
    second = task.run_train(answering(8)).record
    assert second["verdict"] == "keep" and second["confirms"] is None

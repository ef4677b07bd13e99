"""Reruns of a real task through the command line: what agrees, what does not, and what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from arsandbox_fixtures.image import image_digest
from arsandbox_fixtures.leftovers import leftovers
from arsandbox_fixtures.places import EXAMPLES
from arsandbox_fixtures.projects import Project
from arsandbox_fixtures.reruns import grades, rerun

pytestmark = [pytest.mark.engine, pytest.mark.group("long"), pytest.mark.timeout(300)]
RESTING = {"agrees", "disagrees"}


@contextmanager
def changed(file: Path, content: bytes | None) -> Iterator[None]:
    """The file says something else, or is gone, for a while."""
    before = file.read_bytes()
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    try:
        yield
    finally:
        file.write_bytes(before)


@contextmanager
def added(file: Path, content: str) -> Iterator[None]:
    file.write_text(content)
    file.chmod(0o644)
    try:
        yield
    finally:
        file.unlink()


def tiny_lm(extra: str) -> dict[str, str]:
    source = EXAMPLES / "tiny-lm"
    files = {str(p.relative_to(source)): p.read_text() for p in source.iterdir() if p.is_file()}
    files["arsandbox.toml"] += extra
    return files


# --- a real task ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(home: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """tiny-lm with a fixed number of steps: the task, its baseline and its promoted winner."""
    image_digest()
    files = tiny_lm('\n[environment]\nTINY_LM_STEPS = "60"\n')
    task = Project.create(tmp_path_factory.mktemp("rerun") / "tiny-lm", files)
    done = task.run("--json", "--patch", EXAMPLES / "tiny-lm-edits" / "winner.patch")
    assert done.code == 0, done
    baseline, winner = task.history()
    assert (baseline["verdict"], winner["verdict"]) == ("baseline", "keep")
    assert winner["promotion"] is not None and winner["data_sha256"]
    return task, baseline, winner


def test_a_fixed_seed_gives_the_same_artifacts(trained: Any) -> None:
    task, _, winner = trained
    before = task.branches()
    done = rerun(task, winner["id"], "--exact")
    assert done.code == 0, done
    again = done.record
    assert again["verdict"] == "agrees" and grades(again) == ["R0", "R1"]
    assert again["rerun"] | {"differences": []} == {
        "of": winner["id"], "mode": "exact", "reached": ["R0", "R1"], "recorded": again["rerun"]["recorded"],
        "quantity": "difference", "values": [winner["metric"]["value"]], "baseline_values": [], "interval": None,
        "artifacts_equal": True, "differences": [], "seeds": [winner["seed"]],
    }  # fmt: skip
    assert again["rerun"]["differences"] == []  # the same machine, a moment later
    assert again["artifacts"] == winner["artifacts"] and again["artifacts"]
    assert again["metric"] == winner["metric"]
    assert again["promotion"] is None and again["id"] != winner["id"]
    assert task.branches() == before
    assert task.history()[-1] == again
    task.verify()
    assert leftovers() == []


def test_a_rerun_s_record_tells_of_the_rerun(trained: Any) -> None:
    """Times, change set and exit code are the rerun's own, not copies of the recorded run's."""
    task, _, winner = trained
    again = rerun(task, winner["id"], "--exact").record
    assert again["started_at"] > winner["finished_at"] and again["finished_at"] > again["started_at"]
    assert again["usage"] != winner["usage"]
    assert [s["stage"] for s in again["stages"]] == ["train", "evaluate"]
    assert all(s["started_at"] >= again["started_at"] for s in again["stages"])
    assert again["timing"] != winner["timing"], "the record claims the times of another run"


def test_fresh_seeds_predict_the_recorded_difference(trained: Any) -> None:
    task, baseline, winner = trained
    done = rerun(task, winner["id"][-6:], "--statistical", "--times", "3")
    assert done.code in (0, 1), done
    again, result = done.record, done.record["rerun"]
    assert (result["mode"], result["quantity"]) == ("statistical", "difference")
    assert result["recorded"] == winner["metric"]["value"] - baseline["metric"]["value"]
    ours, theirs = result["values"], result["baseline_values"]
    assert len(ours) == len(theirs) == 3 and len({*ours, *theirs}) == 6, "the seeds were not fresh"
    assert max(ours) < min(theirs)
    pooled = np.sqrt((np.var(ours, ddof=1) + np.var(theirs, ddof=1)) / 2)
    low, high = stats.t.interval(0.99, 4, loc=np.mean(ours) - np.mean(theirs), scale=pooled * np.sqrt(2 + 2 / 3))
    assert result["interval"] == pytest.approx([low, high])
    inside = low <= result["recorded"] <= high
    assert (done.code, again["verdict"], "R2" in grades(again)) == (
        (0, "agrees", True) if inside else (1, "disagrees", False)
    )
    assert "R0" in grades(again)  # the artifact was kept
    assert f"{result['interval'][0]:.6g}" in again["reason"]
    task.verify()


def test_a_baseline_is_compared_by_its_value(trained: Any) -> None:
    task, baseline, _ = trained
    done = rerun(task, baseline["id"], "--statistical", "--times", "3")
    result = done.record["rerun"]
    assert (result["quantity"], result["recorded"]) == ("value", baseline["metric"]["value"])
    assert len(set(result["values"])) == 3 and result["baseline_values"] == []
    low, high = stats.t.interval(
        0.99, 2, loc=np.mean(result["values"]), scale=np.std(result["values"], ddof=1) * np.sqrt(4 / 3)
    )
    assert result["interval"] == pytest.approx([low, high])
    assert done.code == (0 if low <= result["recorded"] <= high else 1)


def test_auto_stops_at_the_first_grade_that_holds(trained: Any) -> None:
    task, baseline, _ = trained
    done = task.cli("rerun", baseline["id"])
    assert done.code == 0, done
    rows = dict(line.split(None, 1) for line in done.out.splitlines() if line[:1] == "R")
    assert [name for name, text in rows.items() if text.strip() == "reached"] == ["R0", "R1"]
    assert task.history()[-1]["rerun"]["interval"] is None


def refused(task: Any, identity: str, *arguments: str, code: int, words: str) -> None:
    before = [r for r in task.history() if r["verdict"] in RESTING]
    done = rerun(task, identity, *arguments)
    assert done.code == code, done
    lines = [line for line in done.err.splitlines() if line.startswith("arsandbox: ")]
    assert len(lines) == 1 and re.search(words, lines[0]), done.err
    assert [r for r in task.history() if r["verdict"] in RESTING] == before
    assert leftovers() == []


def test_a_changed_patch_is_refused(trained: Any) -> None:
    task, _, winner = trained
    patch = task.experiment_files(winner["id"]) / "patch.diff"
    with changed(patch, patch.read_bytes().replace(b"1e-2", b"2e-2")):
        for mode in ("--exact", "--statistical"):
            refused(task, winner["id"], mode, code=3, words="stored patch .* was changed")
    with changed(patch, None):
        refused(task, winner["id"], code=4, words="patch .* is gone")


def test_a_changed_artifact_is_refused(trained: Any) -> None:
    task, _, winner = trained
    artifact = task.experiment_files(winner["id"]) / "artifacts" / "out" / "model.safetensors"
    content = artifact.read_bytes()
    with changed(artifact, content[:-1] + bytes([content[-1] ^ 1])):
        refused(task, winner["id"], "--exact", code=3, words="stored artifact .* was changed")
    with changed(artifact, None):
        refused(task, winner["id"], "--exact", code=3, words="stored artifact .* was changed")


def test_a_file_that_was_added_to_the_artifacts_is_refused(trained: Any) -> None:
    """A numpy.py beside them would be imported by the evaluator, and R0 would say what it likes."""
    task, _, winner = trained
    fake = task.experiment_files(winner["id"]) / "artifacts" / "numpy.py"
    forged = f"print('METRIC val_bpb={winner['metric']['value']}'); raise SystemExit(0)\n"
    with added(fake, forged):
        refused(task, winner["id"], "--exact", code=3, words="artifact")


def prepared_data(task: Any, record: dict[str, Any]) -> Path:
    for manifest in (task.state() / "data").glob("*/manifest.json"):
        if json.loads(manifest.read_text())["sha256"] == record["data_sha256"]:
            return manifest.parent
    raise AssertionError("the prepared data is not there")


@pytest.mark.parametrize("part", ["visible", "heldout"])
def test_changed_prepared_data_is_refused(part: str, trained: Any) -> None:
    task, _, winner = trained
    file = max((p for p in (prepared_data(task, winner) / part).rglob("*") if p.is_file()), key=lambda p: p.name)
    content = file.read_bytes()
    with changed(file, bytes([content[0] ^ 1]) + content[1:]):
        refused(task, winner["id"], "--exact", code=3, words="prepared data .* was changed")
    with changed(file, None):
        refused(task, winner["id"], code=3, words="prepared data .* was changed")


@pytest.mark.parametrize("part", ["visible", "heldout"])
def test_a_file_that_was_added_to_the_prepared_data_is_refused(part: str, trained: Any) -> None:
    task, _, winner = trained
    with added(prepared_data(task, winner) / part / "safetensors.py", "raise SystemExit('not the real one')\n"):
        refused(task, winner["id"], "--exact", code=3, words="prepared data .* was changed")


def test_a_changed_manifest_of_the_data_is_refused_and_missing_data_is_no_one_s_fault(trained: Any) -> None:
    task, _, winner = trained
    manifest = prepared_data(task, winner) / "manifest.json"
    document = json.loads(manifest.read_text())
    document["files"].pop(sorted(document["files"])[0])
    with changed(manifest, json.dumps(document).encode()):
        refused(task, winner["id"], code=3, words="prepared data .* was changed")
    place, aside = manifest.parent, task.path.parent / "aside"
    place.rename(aside)
    try:
        refused(task, winner["id"], code=4, words="prepared data .* is gone")
    finally:
        aside.rename(place)


def test_a_run_by_the_clock_is_compared_as_far_as_it_can_be(project: Any) -> None:
    """The learning rate follows the clock, so no two runs are equal: R2, or a record that says why not."""
    task = project(tiny_lm(""))
    recorded = task.run("--json", "--budget", "3s").record
    assert recorded["verdict"] == "baseline", recorded["reason"]
    done = rerun(task, recorded["id"], "--times", "3")
    again = done.record
    assert (done.code, again["verdict"]) in ((0, "agrees"), (1, "disagrees")), done
    assert "R0" in grades(again) and "R1" not in grades(again)
    assert again["rerun"]["artifacts_equal"] is False
    assert "R1 cannot be promised" in again["reason"]
    assert again["rerun"]["mode"] == "statistical" and len(again["rerun"]["values"]) == 3
    assert ("R2" in grades(again)) == (done.code == 0)
    task.verify()

"""Reruns through the command line: what agrees, what does not, and what is refused; disturbed measurements."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from arsandbox_fixtures.command_line import driven, start
from arsandbox_fixtures.docker_engine import docker_client
from arsandbox_fixtures.home import new_home
from arsandbox_fixtures.image import image_digest
from arsandbox_fixtures.leftovers import leftovers
from arsandbox_fixtures.places import EXAMPLES
from arsandbox_fixtures.projects import Project
from arsandbox_fixtures.task import CONFIG, answering

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]
RESTING = {"agrees", "disagrees"}


def rerun(task: Any, *arguments: str, **options: Any) -> Any:
    return task.cli("rerun", *arguments, "--json", timeout=240, **options)


def grades(record: dict[str, Any]) -> list[str]:
    return list(record["rerun"]["reached"])


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


# --- a task that takes no time ----------------------------------------------------------------------------


def test_every_promotion_of_a_branch(project: Any) -> None:
    task = project()
    first = task.run_train(answering(5)).record
    second = task.run_train(answering(4)).record
    loser = task.run_train(answering(9)).record
    assert [r["verdict"] for r in (first, second, loser)] == ["keep", "keep", "discard"]
    done = rerun(task, "--all-promoted")
    assert done.code == 0, done
    made = [json.loads(line) for line in done.out.splitlines()]
    assert [r["rerun"]["of"] for r in made] == [first["id"], second["id"]]
    assert all(r["verdict"] == "agrees" for r in made)
    assert rerun(task, "--all-promoted", "--branch", "arsandbox/t").code == 0
    assert rerun(task, "--all-promoted", "--branch", "arsandbox/none").code == 2
    for arguments in ((), (first["id"], "--all-promoted"), (first["id"], "--exact", "--statistical")):
        assert rerun(task, *arguments).code == 2, arguments
    assert rerun(task, first["id"], "--statistical", "--times", "2").code == 2


def test_one_that_disagrees_is_enough_for_exit_1(project: Any) -> None:
    task = project()
    first = task.run_train(answering(5)).record
    clocked = f"import time\nif time.time() > {time.time() + 30}: ANSWER = 60.0"
    second = task.run_train(answering(4, before=clocked)).record
    assert second["verdict"] == "keep"
    time.sleep(max(0.0, float(re.search(r"> ([\d.]+):", clocked)[1]) - time.time() + 0.5))  # type: ignore[index]
    done = rerun(task, "--all-promoted", "--exact")
    made = [json.loads(line) for line in done.out.splitlines()]
    assert [(r["rerun"]["of"], r["verdict"]) for r in made] == [(first["id"], "agrees"), (second["id"], "disagrees")]
    assert done.code == 1
    assert "two runs of the recorded seed agree with each other, not with the record" in made[1]["reason"]
    assert grades(made[1]) == ["R0"] and made[1]["rerun"]["artifacts_equal"] is False
    # The same by statistics: a value that has jumped is outside of what fresh runs predict.
    done = rerun(task, second["id"], "--statistical", "--times", "3")
    assert (done.code, done.record["verdict"]) == (1, "disagrees"), done
    assert "outside" in done.record["reason"] and "R2" not in grades(done.record)
    assert done.record["rerun"]["interval"] == [57.0 - 2.0] * 2
    task.verify()


def test_a_rerun_is_never_a_baseline_and_never_rerun(project: Any) -> None:
    task = project()
    baseline = task.run("--json").record
    again = rerun(task, baseline["id"]).record
    assert again["verdict"] == "agrees" and again["setup_sha256"] == baseline["setup_sha256"]
    winner = task.run_train(answering(5)).record
    assert winner["baseline"]["experiment"] == baseline["id"]
    assert [r["verdict"] for r in task.history()] == ["baseline", "agrees", "keep"]
    done = rerun(task, again["id"])
    assert done.code == 2 and "no measured value to compare with" in done.err
    promoted_again = rerun(task, winner["id"]).record
    loser = task.run_train(answering(20)).record
    assert promoted_again["verdict"] == "agrees" and loser["baseline"]["experiment"] == winner["id"]
    task.verify()


def test_a_run_without_a_value_cannot_be_rerun(project: Any) -> None:
    task = project()
    bomb = task.run_train(answering(10, before="x = bytearray(300 << 20)")).record
    assert bomb["verdict"] == "oom", bomb["reason"]
    before = task.history()
    for mode in ("--exact", "--statistical"):
        done = rerun(task, bomb["id"], mode)
        said = [line for line in done.err.splitlines() if line]
        assert done.code == 2 and len(said) == 1, done
        assert "no measured value to compare with (oom)" in said[0]
    assert task.history() == before


def test_what_hangs_on_more_than_the_seed_cannot_be_exact(project: Any) -> None:
    before = "import os; os.makedirs('out', exist_ok=True)\n"
    before += "open('out/id.txt', 'w').write(open('/proc/sys/kernel/random/uuid').read())"
    task = project({"train.py": answering(10, before=before)})
    recorded = task.run("--json").record
    assert set(recorded["artifacts"]) == {"out/answer.txt", "out/id.txt"}
    done = rerun(task, recorded["id"], "--exact")
    assert (done.code, done.record["verdict"]) == (1, "disagrees"), done
    assert "R1 cannot be promised" in done.record["reason"] and grades(done.record) == ["R0"]
    assert done.record["rerun"]["artifacts_equal"] is False
    done = rerun(task, recorded["id"], "--times", "3")
    assert (done.code, grades(done.record)) == (0, ["R0", "R2"]), done
    assert done.record["rerun"]["interval"] == [7.0, 7.0]
    assert "R1 cannot be promised" in done.record["reason"]


def test_a_seed_that_is_used_is_used_again(project: Any) -> None:
    before = "ANSWER = 10 + int(os.environ['ARSANDBOX_SEED']) / 2**32"
    task = project({"train.py": answering(10, before=before)})
    recorded = task.run("--json").record
    done = rerun(task, recorded["id"], "--exact")
    assert (done.code, grades(done.record)) == (0, ["R0", "R1"]), done
    assert done.record["rerun"]["values"] == [recorded["metric"]["value"]]
    done = rerun(task, recorded["id"], "--statistical", "--times", "3")
    values = done.record["rerun"]["values"]
    assert len(set(values)) == 3 and recorded["metric"]["value"] not in values


def test_the_recorded_options_are_used_again(project: Any) -> None:
    task = project({"other.py": answering(6)})
    done = task.run("--json", "--budget", "25s", "--memory", "90m", "--", "python", "other.py")
    recorded = done.record
    assert recorded["metric"]["value"] == 3.0
    task.commit({"other.py": answering(50), "arsandbox.toml": CONFIG.replace('"20s"', '"9s"')})
    done = rerun(task, recorded["id"], "--exact")
    assert (done.code, grades(done.record)) == (0, ["R0", "R1"]), done
    for name in ("command", "budget_s", "seed", "base_commit", "policy", "image", "setup_sha256"):
        assert done.record[name] == recorded[name], name
    assert done.record["rerun"]["differences"] == []


ELSEWHERE = """
from arsandbox.sandbox import host
real = host.environment
host.environment = lambda: {**real(), "cpu": "Quantum 9000"}
from arsandbox.cli.app import main
main()
"""


def test_on_another_processor_only_differences_are_compared(project: Any) -> None:
    task = project()
    winner = task.run_train(answering(5)).record
    loser = task.run_train(answering(20)).record
    baseline = task.history()[0]

    def elsewhere(*arguments: str) -> Any:
        return driven(ELSEWHERE, ["rerun", *arguments, "--json", "--repo", task.path], task.env)

    for recorded in (winner, loser):
        for mode in ("--statistical", None):
            done = elsewhere(recorded["id"], "--times", "3", *([mode] if mode else []))
            assert done.code == 0, done
            result = done.record["rerun"]
            assert result["reached"] == ["R3"] and result["quantity"] == "difference"
            assert result["interval"] == [result["recorded"]] * 2 and len(result["baseline_values"]) == 3
            facts = {d["fact"]: d for d in result["differences"]}
            assert facts["cpu"]["now"] == "Quantum 9000" and facts["cpu"]["then"] == winner["environment"]["cpu"]
    before = task.history()
    for arguments in ([baseline["id"]], [baseline["id"], "--statistical"], [winner["id"], "--exact"]):
        done = elsewhere(*arguments)
        assert done.code == 4 and "values cannot be compared here" in done.err, done
    assert task.history() == before
    task.verify()


def test_an_image_that_is_gone_is_said(project: Any, tmp_path: Path) -> None:
    """The recorded digest is what runs, whatever the name means by now."""
    client = docker_client()
    source = image_digest()
    container = client.containers.create(source, ["true"])
    try:
        other = container.commit(changes="LABEL arsandbox.test=other").id
    finally:
        container.remove()
    home = new_home()
    try:
        images = home / "images.json"
        images.write_text(images.read_text().replace(source, other))
        task = project(home=home)
        recorded = task.run("--json").record
        assert recorded["image"]["digest"] == other
        images.write_text(images.read_text().replace(other, source))
        assert rerun(task, recorded["id"], "--exact").code == 0  # by its digest, not by its name
        client.images.remove(other, force=True)
        done = rerun(task, recorded["id"], "--exact")
        assert done.code == 4 and "not in the engine" in done.err and other[:19] in done.err, done
        assert [r["verdict"] for r in task.history()] == ["baseline", "agrees"]
        assert leftovers(home) == []
    finally:
        if any(image.id == other for image in client.images.list()):
            client.images.remove(other, force=True)
        shutil.rmtree(home, ignore_errors=True)


def test_a_rerun_that_is_interrupted_leaves_a_record_and_nothing_else(project: Any) -> None:
    task = project({"train.py": answering(10, before="import time; time.sleep(4)")})
    recorded = task.run("--json").record
    running = start("rerun", recorded["id"], "--repo", task.path, env=task.env)
    task.wait_for_training()
    running.process.send_signal(signal.SIGINT)
    done = running.wait()
    assert done.code == 130 and "Traceback" not in done.err, done
    last = task.history()[-1]
    assert (last["verdict"], last["metric"]["value"], last["promotion"]) == ("interrupted", None, None)
    assert last["id"] != recorded["id"]
    assert leftovers() == []
    task.verify()


# --- disturbed measurements -------------------------------------------------------------------------------


@contextmanager
def busy_loop() -> Iterator[None]:
    with subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) as burner:
        try:
            yield
        finally:
            burner.kill()


QUIET = """
from arsandbox.sandbox import hygiene
hygiene.disturbances = lambda seen, bounds: []
from arsandbox.cli.app import main
main()
"""


def quietly(task: Any, arguments: Sequence[str | Path]) -> dict[str, Any]:
    """A run on a machine that is not disturbed."""
    done = driven(QUIET, arguments, task.env)
    assert done.code == 0, done
    return dict(done.record)


def disturbed(repeat: int) -> dict[str, str]:
    return {
        "arsandbox.toml": CONFIG + f"\n[measurement]\nforeign_cpu = 0.0\nrepeat = {repeat}\n",
        "train.py": answering(10, before="import time; time.sleep(0.5)"),
    }


@pytest.mark.parametrize("repeat", [0, 2])
def test_a_disturbed_measurement_is_repeated_and_never_decided_on(repeat: int, project: Callable[..., Any]) -> None:
    task = project(disturbed(repeat))
    with busy_loop():
        done = task.run("--json")
    assert done.code == 1 and done.record["verdict"] == "invalid", done
    history = task.history()
    assert [r["verdict"] for r in history] == ["invalid"] * (repeat + 1)
    assert done.err.count("measuring again") == repeat
    for record in history:
        assert record["conditions"]["foreign_cpu"] > 0
        assert "cores busy; at most 0 is allowed" in record["reason"]
        assert "disturbed" in [f["code"] for f in record["findings"]]
        assert record["promotion"] is None
    assert len({r["id"] for r in history}) == repeat + 1

    # A candidate needs a baseline, and an invalid one is none.
    with busy_loop():
        done = task.run_train(answering(4))
    assert done.code == 2 and "the baseline itself failed (invalid)" in done.err, done
    assert not any(r["verdict"] in ("keep", "baseline") for r in task.history())
    task.verify()


def test_a_disturbed_winner_is_not_promoted(project: Any) -> None:
    task = project(disturbed(1))
    baseline = quietly(task, ["run", "--repo", task.path, "--tag", "t", "--json"])
    assert baseline["verdict"] == "baseline"
    before = task.branches()
    with busy_loop():
        done = task.run_train(answering(4, before="import time; time.sleep(0.5)"))
    assert done.code == 1 and done.record["verdict"] == "invalid", done
    assert [r["verdict"] for r in task.history()] == ["baseline", "invalid", "invalid"]
    assert task.branches() == before
    # Nor is it compared with: a later run has the old baseline.
    arguments = ["run", "--repo", task.path, "--tag", "t", "--json", "--patch", task.patch(answering(5))]
    winner = quietly(task, arguments)
    assert winner["verdict"] == "keep" and winner["baseline"]["experiment"] == baseline["id"]
    task.verify()


def test_a_rerun_on_a_disturbed_machine_compares_nothing(project: Any) -> None:
    task = project(disturbed(1))
    recorded = quietly(task, ["run", "--repo", task.path, "--tag", "t", "--json"])
    with busy_loop():
        done = rerun(task, recorded["id"], "--exact")
    assert done.code == 4 and "too disturbed to compare" in done.err, done
    assert [r["verdict"] for r in task.history()] == ["baseline", "interrupted"]
    assert leftovers() == []


def test_without_bounds_conditions_are_recorded_and_bind_nothing(project: Any) -> None:
    task = project()
    with busy_loop():
        record = task.run("--json").record
    assert record["verdict"] == "baseline"
    seen = record["conditions"]
    assert seen["foreign_cpu"] >= 0 and seen["load_after"] >= 0
    assert re.fullmatch(r"(\d+(,\d+)*)?", seen["cores"])

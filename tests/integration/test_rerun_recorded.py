"""Reruns of a task that takes no time: what the record says of them, and what of the record is used again."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from arsandbox_fixtures.command_line import driven, start
from arsandbox_fixtures.docker_engine import docker_client
from arsandbox_fixtures.home import new_home
from arsandbox_fixtures.image import image_digest
from arsandbox_fixtures.leftovers import leftovers
from arsandbox_fixtures.reruns import grades, rerun
from arsandbox_fixtures.task import CONFIG, answering

pytestmark = [pytest.mark.engine, pytest.mark.group("long"), pytest.mark.timeout(300)]


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
    began = time.time()
    first = task.run_train(answering(5)).record
    changes_at = time.time() + 5 + 3 * (time.time() - began)  # the next run takes half as long: no baseline
    clocked = f"import time\nif time.time() > {changes_at}: ANSWER = 60.0"
    second = task.run_train(answering(4, before=clocked)).record
    assert second["verdict"] == "keep"
    time.sleep(max(0.0, changes_at - time.time() + 0.5))
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

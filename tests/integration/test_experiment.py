"""Whole experiments through the command line: promotion, failures, limits, records."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest

from arsandbox_fixtures.experiments import train_log
from arsandbox_fixtures.leftovers import leftovers
from arsandbox_fixtures.task import CONFIG, answering

pytestmark = [pytest.mark.engine, pytest.mark.timeout(180)]


def test_a_self_reported_winner_is_not_promoted_unless_asked(project: Any) -> None:
    config = CONFIG[: CONFIG.index("[evaluate]")].replace('source = "evaluate"', 'source = "stdout"')
    task = project({"arsandbox.toml": config})
    done = task.run_train(answering(5))
    assert (done.record["verdict"], done.record["trust"], done.code) == ("keep", "L0", 0), done
    assert done.record["promotion"] is None and "arsandbox/t" not in task.branches()
    done = task.run_train(answering(4), "--accept-self-reported")
    assert done.record["promotion"]["ref"] == "refs/heads/arsandbox/t"


@pytest.mark.parametrize(
    ("verdict", "train", "options"),
    [
        ("crash", answering(5, before="raise SystemExit(7)"), []),
        ("timeout", answering(5, before="import time; time.sleep(60)"), ["--budget", "1s", "--grace", "0s"]),
        ("oom", answering(5, before="x = b'x' * (200 << 20)"), []),
        ("output", answering(5, before="while True: print('x' * 10_000)"), []),
    ],
)
def test_a_failed_run_is_recorded_and_promotes_nothing(
    project: Any, verdict: str, train: str, options: list[str]
) -> None:
    task = project({"arsandbox.toml": CONFIG + 'output = "64k"\n'})
    assert task.run("--json", *options).code == 0
    done = task.run_train(train, *options)
    assert (done.record["verdict"], done.code) == (verdict, 1), done
    assert done.record["metric"]["value"] is None and done.record["promotion"] is None
    assert task.history()[-1] == done.record
    assert [s["stage"] for s in done.record["stages"]] == ["train"]
    task.verify()
    assert leftovers() == []


def test_a_small_disk_alone_is_enough(project: Any) -> None:
    """The default number of inodes must fit into whatever size is asked for."""
    task = project({"arsandbox.toml": CONFIG.replace("inodes = 15000\n", "")})
    done = task.run("--json")
    assert done.code == 0, done


def test_the_project_s_limits_hold(project: Any) -> None:
    task = project()
    limits = task.run("--json").record["policy"]["effective"]["limits"]
    assert (limits["memory_bytes"], limits["pids"], limits["disk_bytes"]) == (96 << 20, 64, 16 << 20)
    limits = task.run("--json", "--memory", "90m").record["policy"]["effective"]["limits"]
    assert (limits["memory_bytes"], limits["pids"]) == (90 << 20, 64)


def test_records_are_chained_and_a_change_is_found(project: Any) -> None:
    task = project()
    task.run_train(answering(5))
    first, second = task.history()
    assert first["previous_hash"] == "0" * 64 and second["previous_hash"] == first["ledger_hash"]
    task.verify()
    import sqlite3

    with sqlite3.connect(task.state() / "ledger.db") as database:
        database.execute("DROP TRIGGER records_stay")
        text = database.execute("SELECT document FROM records WHERE sequence = 1").fetchone()[0]
        forged = json.loads(text)
        forged["metric"]["value"] = 1.0
        database.execute("UPDATE records SET document = ? WHERE sequence = 1", (json.dumps(forged),))
    database.close()
    done = task.cli("verify", "--json")
    assert done.code == 3 and first["id"] in json.loads(done.out)["problems"][0]


def test_a_candidate_does_not_see_another_one(ready: Any) -> None:
    """Nothing that one run left is there for the next (containment, 31)."""
    task = ready
    leave = "import os\nfor d in ('/tmp', '/dev/shm', '.', 'out'):\n    os.makedirs(d, exist_ok=True)\n"
    leave += "    open(d + '/left-behind', 'w').write('x')"
    assert task.run_train(answering(20, before=leave)).code == 0
    look = (
        "import os\nprint('LEFT', [d for d in ('/tmp', '/dev/shm', '.', 'out') if os.path.lexists(d + '/left-behind')])"
    )
    record = task.run_train(answering(21, before=look)).record
    assert "LEFT []" in train_log(task, record)


def test_the_repository_is_untouched_by_a_loser(project: Any) -> None:
    task = project()
    before = {str(p): p.stat().st_mtime_ns for p in task.path.rglob("*")}
    task.run_train(answering(20))
    after = {str(p): p.stat().st_mtime_ns for p in task.path.rglob("*")}
    assert after == before
    shutil.rmtree(task.state() / "layers")  # a cache: the next run makes it anew
    assert task.run("--json").code == 0

"""Whole experiments through the command line: the baseline and the set-up that it holds for."""

from __future__ import annotations

from typing import Any

import pytest

from arsandbox_fixtures.experiments import train_log
from arsandbox_fixtures.leftovers import leftovers
from arsandbox_fixtures.places import EXAMPLES
from arsandbox_fixtures.task import CONFIG, EVALUATE, answering

pytestmark = [pytest.mark.engine, pytest.mark.timeout(180)]


# --- baseline and set-up ----------------------------------------------------------------------------------


def test_a_missing_baseline_is_measured_first_and_then_reused(project: Any) -> None:
    task = project()
    done = task.run_train(answering(5))
    assert done.code == 0, done
    assert "no baseline is recorded" in done.err
    first, second = task.history()
    assert (first["verdict"], first["metric"]["value"]) == ("baseline", 7.0)
    assert (second["verdict"], second["metric"]["value"]) == ("keep", 2.0)
    assert second["baseline"] == {"experiment": first["id"], "value": 7.0}
    assert second == done.record
    assert first["seed"] != second["seed"]
    assert first["setup_sha256"] == second["setup_sha256"] != ""

    again = task.run_train(answering(20))
    assert "no baseline" not in again.err
    assert [r["verdict"] for r in task.history()] == ["baseline", "keep", "discard"]
    # The champion is the promoted commit now.
    assert again.record["baseline"] == {"experiment": second["id"], "value": 2.0}
    task.verify()
    assert leftovers() == []


def test_another_set_up_needs_a_baseline_of_its_own(project: Any) -> None:
    task = project()
    edit = task.patch(answering(20))
    setups = []
    for options in ([], ["--budget", "21s"], ["--budget", "21s"]):
        before = len(task.history())
        done = task.run("--patch", edit, "--json", *options)
        assert done.code == 0, done
        setups.append((done.record["setup_sha256"], len(task.history()) - before))
    digests = [digest for digest, _ in setups]
    assert digests[0] != digests[1] == digests[2]
    assert [records for _, records in setups] == [2, 2, 1]


def test_new_held_out_data_or_another_evaluator_need_a_new_baseline(project: Any) -> None:
    task = project()
    assert task.run("--json").record["metric"]["value"] == 7.0
    task.commit({"heldout/truth.txt": "4.0\n"})
    done = task.run_train(answering(20))
    assert [r["metric"]["value"] for r in task.history()] == [7.0, 6.0, 16.0], done
    task.commit({"evaluate.py": EVALUATE.replace("abs(answer - truth)", "2 * abs(answer - truth)")})
    task.run_train(answering(20))
    assert [r["metric"]["value"] for r in task.history()][3:] == [12.0, 32.0]


def test_prepared_data_is_part_of_the_set_up(project: Any) -> None:
    config = CONFIG.replace('data = ["heldout/"]', 'data = ["secret/"]') + (
        '\n[prepare]\ncommand = ["python", "prepare.py"]\noutputs = ["data/", "secret/"]\n'
    )
    prepare = (
        "import os\nfor name, text in (('data/train.txt', 'seen'), ('secret/truth.txt', '3.0')):\n"
        "    os.makedirs(os.path.dirname(name), exist_ok=True)\n    open(name, 'w').write(text)\n"
    )
    evaluate = EVALUATE.replace("heldout/", "secret/")
    look = "print('saw', sorted(os.listdir('.')), open('data/train.txt').read(), os.path.lexists('secret'))"
    task = project({
        "arsandbox.toml": config.replace('"evaluate.py"]', '"evaluate.py", "prepare.py"]'),
        "prepare.py": prepare, "evaluate.py": evaluate, "train.py": answering(10, before=look),
    })  # fmt: skip
    first = task.run("--json").record
    assert first["verdict"] == "baseline" and first["data_sha256"]
    log = train_log(task, first)
    assert "seen False" in log and "'secret'" not in log, log
    assert [s["stage"] for s in first["stages"]] == ["train", "evaluate"]
    task.commit({"prepare.py": prepare.replace("3.0", "4.0")})
    second = task.run("--json").record
    assert second["data_sha256"] != first["data_sha256"]
    assert second["setup_sha256"] != first["setup_sha256"]
    assert (first["metric"]["value"], second["metric"]["value"]) == (7.0, 6.0)


def test_a_baseline_that_fails_stops_everything(project: Any) -> None:
    task = project({"train.py": answering(10, before="raise SystemExit('broken base')")})
    done = task.run_train(answering(5))
    assert done.code == 2, done
    assert "baseline itself failed" in done.err and "fix:" in done.err
    assert next(r["verdict"] for r in task.history()) == "crash"
    assert all(r["promotion"] is None for r in task.history())
    assert leftovers() == []


def test_the_real_example(project: Any) -> None:
    """tiny-lm with few steps: prepare, train, evaluate, a winner on its branch."""
    files = {
        str(p.relative_to(EXAMPLES / "tiny-lm")): p.read_text() for p in (EXAMPLES / "tiny-lm").iterdir() if p.is_file()
    }
    files["arsandbox.toml"] += '\n[environment]\nTINY_LM_STEPS = "60"\n'
    task = project(files)
    done = task.run("--json", "--patch", EXAMPLES / "tiny-lm-edits" / "winner.patch")
    assert done.code == 0, done
    baseline, record = task.history()
    assert baseline["verdict"] == "baseline" and record["verdict"] == "keep"
    assert 0.3 < record["metric"]["value"] < baseline["metric"]["value"] < 8
    assert record["trust"] == "L2" and record["data_sha256"]
    assert set(record["artifacts"]) == {"out/model.safetensors"}
    assert record["promotion"]["ref"] == "refs/heads/autoresearch/t"
    assert record["self_reported"]["num_steps"] == 60
    task.verify()

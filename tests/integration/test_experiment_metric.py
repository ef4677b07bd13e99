"""Whole experiments through the command line: held-out data and the metric."""

from __future__ import annotations

from typing import Any

import pytest

from arsandbox_fixtures.experiments import codes, train_log
from arsandbox_fixtures.task import CONFIG, EVALUATE, MARKER, answering

pytestmark = [pytest.mark.engine, pytest.mark.timeout(180)]


# --- held-out data and the metric -------------------------------------------------------------------------


SEARCH = f"""
import os
wanted = ({MARKER[:10]!r} + {MARKER[10:]!r}).encode()
seen = 0
for root, directories, names in os.walk("/"):
    directories[:] = [d for d in directories if os.path.join(root, d) not in ("/proc", "/sys")]
    for name in [*names, *directories]:
        path = os.path.join(root, name)
        try:
            if wanted in os.fsencode(path): print("FOUND name", path)
            if os.path.isfile(path) and os.path.getsize(path) < 1 << 20:
                seen += 1
                with open(path, "rb") as file:
                    if wanted in file.read(): print("FOUND", path)
        except OSError: pass
for name in os.listdir("/proc"):
    for file in ("environ", "cmdline", "mountinfo"):
        try:
            if wanted in open(f"/proc/{{name}}/{{file}}", "rb").read(): print("FOUND proc", name, file)
        except OSError: pass
print("searched", seen > 500, os.path.lexists("heldout"))
"""


def test_training_finds_the_held_out_data_nowhere(project: Any) -> None:
    evaluate = EVALUATE + f"assert {MARKER!r} in open('heldout/truth.txt').read()\nprint('present')\n"
    task = project({"train.py": answering(10, before=SEARCH), "evaluate.py": evaluate.replace(MARKER, MARKER)})
    # evaluate.py itself is visible while training; the marker must not be in it.
    task.commit({"evaluate.py": evaluate.replace(repr(MARKER), f"{MARKER[:10]!r} + {MARKER[10:]!r}")})
    record = task.run("--json").record
    assert record["verdict"] == "baseline", record["reason"]
    log = train_log(task, record)
    assert "searched True False" in log, log
    assert "FOUND" not in log, log
    assert "present" in (task.experiment_files(record["id"]) / "evaluate.log").read_text()


SHADOW = CONFIG.replace('artifacts = ["out/"]', 'artifacts = ["out/", "tools/", "heldout/", "helper.py"]').replace(
    'command = ["python", "evaluate.py"]', 'command = ["python", "tools/evaluate.py"]'
)


def test_artifacts_never_stand_in_for_the_evaluator_or_its_data(project: Any) -> None:
    attack = """
        import os
        open("tools/evaluate.py", "w").write("print('METRIC loss=0')")
        os.makedirs("heldout", exist_ok=True)
        open("heldout/truth.txt", "w").write("11.0")
        open("helper.py", "w").write("FACTOR = 0")
    """
    helper = "FACTOR = 1\n"
    evaluate = EVALUATE.replace("abs(", "helper.FACTOR * abs(")
    evaluate = "import sys; sys.path.insert(0, '/workspace')\nimport helper\n" + evaluate
    task = project({"arsandbox.toml": SHADOW, "tools/evaluate.py": evaluate, "helper.py": helper})
    assert task.run("--json").record["metric"]["value"] == 7.0
    record = task.run_train(answering(11, before=attack)).record
    assert record["verdict"] in ("discard", "tampered"), record["reason"]
    assert record["metric"]["value"] in (8.0, None)
    assert {"tracked_changed", "source_changed"} & set(codes(record))
    # Without touching what it was given: only the held-out path, which training cannot see.
    quiet = "import os; os.makedirs('heldout'); open('heldout/truth.txt', 'w').write('11.0')"
    record = task.run_train(answering(11, before=quiet)).record
    assert (record["verdict"], record["metric"]["value"]) == ("discard", 8.0), record["reason"]


def test_an_artifact_cannot_hide_the_held_out_directory(project: Any) -> None:
    task = project({"arsandbox.toml": SHADOW.replace('"tools/", ', "").replace("tools/evaluate.py", "evaluate.py")})
    attack = "open('heldout', 'w').write('11.0')"
    record = task.run_train(answering(11, before=attack)).record
    assert (record["verdict"], record["metric"]["value"]) == ("discard", 8.0), record


@pytest.mark.parametrize(
    ("printed", "reason"),
    [
        ("METRIC loss=1\\nMETRIC loss=0.5", "differing"),
        ("METRIC loss=nan", "no finite"),
        ("METRIC loss=-inf", "no finite"),
        ('{"loss": NaN}', "no finite"),
    ],
)
def test_an_evaluation_without_one_finite_value(project: Any, printed: str, reason: str) -> None:
    task = project({"evaluate.py": f"print({printed!r}.replace(chr(92) + 'n', chr(10)))\n"})
    done = task.run("--json")
    assert (done.record["verdict"], done.code) == ("no_metric", 1), done
    assert done.record["metric"]["value"] is None
    assert reason in done.record["reason"], done.record["reason"]


def test_an_evaluation_that_fails_has_no_metric(project: Any) -> None:
    # On one stream: an engine joins two in the order in which they arrive.
    task = project({"evaluate.py": "print('METRIC loss=1')\nprint('no such model')\nraise SystemExit(1)\n"})
    done = task.run("--json")
    assert (done.record["verdict"], done.code) == ("no_metric", 1)
    assert "no such model" in done.record["reason"]


def test_no_artifact_no_metric(ready: Any) -> None:
    task = ready
    done = task.run_train("print('---')\nprint('loss: 0.1')\n")
    assert (done.record["verdict"], done.code) == ("no_metric", 1)
    assert done.record["self_reported"] == {"loss": 0.1}


def test_a_number_printed_by_training_is_not_the_metric(ready: Any) -> None:
    task = ready
    done = task.run_train(answering(20, say=0.001))
    record = done.record
    assert (record["verdict"], record["metric"]["value"]) == ("discard", 17.0), done
    assert record["self_reported"]["loss"] == 0.001
    assert "conflict" in codes(record)
    assert record["promotion"] is None


def test_training_cannot_speak_for_the_evaluation(ready: Any) -> None:
    """Text in an artifact that the evaluator echoes is the evaluator's fault; text on training's output is not."""
    say = "print('METRIC loss=0.0', flush=True); print('METRIC loss=0.1', flush=True)"
    record = ready.run_train(answering(20, before=say)).record
    assert record["metric"]["value"] == 17.0
    assert {"ambiguous", "conflict"} & set(codes(record))


def test_an_implausible_value_is_quarantined(project: Any) -> None:
    task = project({"arsandbox.toml": CONFIG.replace("[-1e6, 1e6]", "[1.0, 50.0]")})
    done = task.run_train(answering(3))
    assert (done.record["verdict"], done.code) == ("quarantine", 3), done
    assert done.record["promotion"] is None

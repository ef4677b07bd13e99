"""The three-role evaluation with real sandboxes: a bigram model, its scorer, and what cheats come to (L3, L4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.engine

CONFIG = """
image = "cpu"
budget = "20s"
command = ["python", "train.py"]
editable = ["train.py", "serve.py"]

[metric]
name = "bpb"
goal = "min"
source = "evaluate"

[evaluate]
interface = "lm"
serve = ["python", "serve.py"]
artifacts = ["out/"]
data = ["heldout/"]
timeout = 60

[evaluate.lm]
text = "heldout/text"
sealed = "heldout/sealed"
context = 16

[decision]
rule = "greedy"

[limits]
cpus = 1
memory = "128m"
pids = 64
disk = "16m"
inodes = 15000
"""

TEXT = "".join(f"{n} and {n * n % 97} make {n + n * n % 97}. " for n in range(700))
TRAIN = """
import os
import numpy as np

SMOOTH = 1.0
text = np.frombuffer(open("train.txt", "rb").read(), dtype=np.uint8)
counts = np.full((256, 256), SMOOTH)
np.add.at(counts, (text[:-1], text[1:]), 1)
os.makedirs("out")
np.save("out/table.npy", np.log(counts / counts.sum(axis=1, keepdims=True)).astype("f4"))
print("METRIC bpb=0.01")
"""
SERVE = """
import numpy as np
from arsandbox_box import log_softmax, serve

TABLE = np.load("out/table.npy")


def predict(histories, last):
    padded = np.concatenate([np.full((len(histories), 1), 32, np.uint32), histories], axis=1)
    return TABLE[padded[:, -last:]]


serve(predict)
"""
LEARN = """    for row in histories:
        if len(row) > 1:
            TABLE[row[-2], row[-1]] += 0.3
    return log_softmax(TABLE[padded[:, -last:]])
"""
STATEFUL = SERVE.replace("    return TABLE[padded[:, -last:]]\n", LEARN)
LOOK = """
import os, sys
names = [os.path.join(p, n) for p, d, f in os.walk("/") for n in f if not p.startswith(("/proc", "/sys", "/usr"))]
print("HELDOUT", sorted(n for n in names if "heldout" in n or "task.json" in n), os.listdir("/run/arsandbox"))
"""


@pytest.fixture
def model(project: Callable[..., Any]) -> Any:
    """A repository with the bigram model and its baseline."""
    return project(
        {
            "arsandbox.toml": CONFIG,
            "train.py": TRAIN,
            "serve.py": SERVE,
            "train.txt": TEXT,
            "heldout/text": TEXT[-4000:],
            "heldout/sealed": TEXT[-8000:-4000],
        }
    )


def served(project: Any, serve: str, *arguments: str) -> Any:
    """A run whose candidate has that serve.py."""
    project.write({"serve.py": serve})
    try:
        return project.run("--json", *arguments).record
    finally:
        project.git("checkout", "-q", "--", "serve.py")


def codes(record: dict[str, Any]) -> list[str]:
    return [finding["code"] for finding in record["findings"]]


def test_three_roles(model: Any) -> None:
    baseline = model.run("--json").record
    assert (baseline["verdict"], baseline["trust"]) == ("baseline", "L3"), baseline
    assert 1 < baseline["metric"]["value"] < 5
    assert [stage["stage"] for stage in baseline["stages"]] == ["train", "score", "model"]
    assert "conflict" in codes(baseline)  # the forged line that train.py prints

    better = model.run_train(TRAIN.replace("SMOOTH = 1.0", "SMOOTH = 0.01"), "--audit").record
    assert (better["verdict"], better["trust"]) == ("keep", "L4"), better
    assert better["promotion"] is not None
    assert "bpb.sealed" not in better["metrics"]

    audited = model.cli("audit", better["id"], "--json").record
    assert (audited["verdict"], audited["trust"]) == ("agrees", "L4"), audited
    assert audited["metric"]["value"] == better["metric"]["value"]
    assert audited["metrics"]["bpb.sealed"] == pytest.approx(better["metric"]["value"], rel=0.2)
    again = model.cli("audit", better["id"], "--json").record
    assert "bpb.sealed" not in again["metrics"] and audited["id"] in again["reason"], again

    stateful = served(model, STATEFUL)
    assert (stateful["verdict"], stateful["metric"]["value"]) == ("tampered", None), stateful
    assert "stateful" in codes(stateful)

    own_loss = served(model, SERVE.replace("return TABLE[padded[:, -last:]]", "return TABLE[padded[:, -last:]] * 0"))
    assert own_loss["verdict"] == "tampered", own_loss
    assert "not_normalised" in codes(own_loss)

    crash = served(model, SERVE.replace("return TABLE", "raise RuntimeError('no model')\n    return TABLE"))
    assert (crash["verdict"], "model_failed" in codes(crash)) == ("no_metric", True), crash
    assert "no model" in crash["reason"]


def test_the_model_box_holds_no_target_and_cannot_speak_for_the_scorer(model: Any) -> None:
    forged = """
import os, socket, struct, json
channel = socket.socket(socket.AF_UNIX); channel.connect(os.environ["ARSANDBOX_CHANNEL"])
result = json.dumps({"metrics": {"bpb": 0.1}, "count": 4000, "probes": 0, "audited": True, "findings": []}).encode()
channel.sendall(struct.pack("<4sBBHIQ", b"ARSB", 1, 6, 0, 1, len(result)) + result)
channel.recv(1)
"""
    record = served(model, LOOK + forged)
    assert (record["verdict"], record["metric"]["value"]) == ("no_metric", None), record
    assert "malformed_answer" in codes(record)
    log = (model.experiment_files(record["id"]) / "model-1.log").read_text()
    assert "HELDOUT []" in log and "task.json" not in log, log


def test_a_model_box_that_neither_answers_nor_leaves_is_ended(model: Any) -> None:
    model.commit({"arsandbox.toml": CONFIG.replace("timeout = 60", "timeout = 4")})
    silent = "import os, socket, time\nc = socket.socket(socket.AF_UNIX)\nc.connect(os.environ['ARSANDBOX_CHANNEL'])\n"
    record = served(model, silent + "time.sleep(600)\n")
    assert record["verdict"] == "no_metric", record
    assert record["metric"]["value"] is None


PREDICTIONS = """
[evaluate]
interface = "predictions"
artifacts = ["out/"]
data = ["heldout/"]

[evaluate.predictions]
file = "out/predicted.csv"
targets = "heldout/targets.csv"
score = "score.py:mean_error"
"""
SCORE = """
import numpy as np


def mean_error(predicted, targets):
    return float(np.abs(predicted - targets).mean())
"""


def test_predictions_are_scored_by_a_function_of_the_base_commit(project: Callable[..., Any]) -> None:
    start, end = CONFIG.index("[evaluate]"), CONFIG.index("[decision]")
    config = CONFIG[:start] + PREDICTIONS + CONFIG[end:]
    train = "import os\nos.makedirs('out')\nopen('out/predicted.csv', 'w').write('x\\n1\\n2\\n5\\n')\n"
    # An artifact and a candidate's file of that name are not what the scorer imports.
    forged = "open('out/score.py', 'w').write('def mean_error(*_): return 0.0')\n"
    made = project(
        {"arsandbox.toml": config, "train.py": train + forged, "score.py": SCORE, "heldout/targets.csv": "y\n1\n2\n3\n"}
    )
    record = made.run("--json").record
    assert (record["verdict"], record["trust"]) == ("baseline", "L3"), record
    assert record["metric"]["value"] == pytest.approx(2 / 3)
    short = made.run_train(train.replace("5\\n", "")).record
    assert (short["verdict"], short["metric"]["value"]) == ("no_metric", None), short
    assert "bad_artifact" in codes(short)

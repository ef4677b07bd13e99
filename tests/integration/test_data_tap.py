"""The data tap: no data before READY, a bounded start-up, and a budget that counts from READY."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.engine

CONFIG = """
image = "cpu"
budget = "3s"
grace = "0s"
startup = "6s"
command = ["python", "train.py"]
editable = ["train.py"]

[metric]
name = "size"
goal = "max"
source = "stdout"

[prepare]
command = ["python", "prepare.py"]
outputs = ["data/"]

[decision]
rule = "greedy"

[limits]
cpus = 1
memory = "96m"
pids = 64
disk = "16m"
inodes = 15000
"""
PREPARE = "import os\nos.makedirs('data/deep')\nopen('data/deep/text', 'w').write('x' * 1234)\n"
TRAIN = """
import os, time
from arsandbox_box import ready
assert not os.path.exists("data") and not os.listdir(os.environ["ARSANDBOX_DATA"])
time.sleep(BEFORE)
data = ready()
text = (data / "data/deep/text").read_text()
try:
    (data / "data/deep/text").write_text("changed")
except OSError:
    print(f"METRIC size={len(text)}", flush=True)
time.sleep(AFTER)
"""


def train(before: float, after: float) -> str:
    return TRAIN.replace("BEFORE", str(before)).replace("AFTER", str(after))


def test_the_budget_counts_from_ready(project: Callable[..., Any]) -> None:
    made = project({"arsandbox.toml": CONFIG, "prepare.py": PREPARE, "train.py": train(1.0, 0)})
    good = made.run("--json").record
    assert (good["verdict"], good["metric"]["value"]) == ("baseline", 1234), good
    assert 1 <= good["timing"]["startup_s"] < 6

    long = made.run_train(train(0, 30)).record  # ended 3 s after READY, although start-up left 6 s unused
    assert long["verdict"] == "timeout", long
    assert "after READY" in long["reason"]
    assert long["usage"]["peak_memory_bytes"] > 0 and long["usage"]["output_bytes"] > 0, long["usage"]
    assert [(s["stage"], s["termination"]["reason"]) for s in long["stages"]] == [("train", "timeout")]
    assert long["self_reported"] == {"size": 1234}

    never = made.run_train("import time\ntime.sleep(60)\n").record
    assert never["verdict"] == "timeout" and "not ready within the 6 s" in never["reason"], never

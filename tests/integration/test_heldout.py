"""Held-out data stays where it is: nothing that training or the model box can read contains it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.engine

CONFIG = """
image = "cpu"
budget = "30s"
command = ["python", "train.py"]
editable = ["train.py", "serve.py"]

[metric]
name = "bpb"
source = "evaluate"
jump = 0.5

[prepare]
command = ["python", "prepare.py"]
outputs = ["data/", "heldout/"]

[evaluate]
interface = "lm"
serve = ["python", "serve.py"]
artifacts = ["out/"]
data = ["heldout/"]
timeout = 60

[evaluate.lm]
text = "heldout/text"

[decision]
rule = "greedy"

[limits]
cpus = 1
memory = "128m"
pids = 64
disk = "16m"
inodes = 15000
"""
# The prepare stage is as careless as it can be: it says the held-out text aloud and leaves copies where it may.
PREPARE = """
import os, random
text = "".join(random.Random(os.environ["ARSANDBOX_SEED"]).choices("abcd ", k=3000))
for place in ("heldout/text", "/tmp/text", "/dev/shm/text", "data/../spare"):
    os.makedirs(os.path.dirname(place), exist_ok=True)
    open(place, "w").write(text)
os.makedirs("data", exist_ok=True)
open("data/train", "w").write("abcd " * 500)
open("data/mark", "w").write(text[:12][::-1])  # how a search knows it, without holding it
print(text)
"""
SEARCH = """
import os, resource
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
mark = open("data/mark").read()[::-1].encode()
seen = 0
for place, folders, names in os.walk("/"):
    if place.startswith(("/proc", "/sys", "/usr/lib", "/usr/share")):
        folders.clear()
        continue
    for name in names:
        path = os.path.join(place, name)
        try:
            if os.path.isfile(path) and os.path.getsize(path) < 1 << 24:
                seen += 1
                if mark in open(path, "rb").read():
                    print("FOUND", path)
        except OSError:
            pass
environment = b"".join(open(f"/proc/{p}/environ", "rb").read() for p in ("self",))
print("SEARCHED", seen > 20, mark in environment, b"SEED=" in environment)
"""
TRAIN = (
    SEARCH
    + """
import numpy as np
BASE = np.full(256, -20.0)
BASE[list(b"abcd ")] = 0.0
os.makedirs("out")
np.save("out/table.npy", BASE)
"""
)
SERVE = (
    SEARCH
    + """
import numpy as np
from arsandbox_box import log_softmax, serve
TABLE = log_softmax(np.load("out/table.npy"))
serve(lambda histories, last: np.broadcast_to(TABLE, (len(histories), last, 256)))
"""
)


def test_neither_training_nor_the_model_box_can_read_the_heldout_text(project: Callable[..., Any]) -> None:
    made = project({"arsandbox.toml": CONFIG, "prepare.py": PREPARE, "train.py": TRAIN, "serve.py": SERVE})
    record = made.run("--json").record
    assert (record["verdict"], record["trust"]) == ("baseline", "L3"), record
    assert record["metric"]["value"] == pytest.approx(2.32, abs=0.05)
    for log in ("train.log", "model-1.log"):
        text = (made.experiment_files(record["id"]) / log).read_text()
        assert "SEARCHED True False" in text, text
        assert "FOUND" not in text, text


def test_too_large_a_gain_is_quarantined(project: Callable[..., Any]) -> None:
    quick = TRAIN.replace(SEARCH, "import os\n").replace('BASE[list(b"abcd ")] = 0.0', "BASE[:] = 0.0")
    serve = SERVE.replace(SEARCH, "import os\n")
    made = project({"arsandbox.toml": CONFIG, "prepare.py": PREPARE, "train.py": quick, "serve.py": serve})
    record = made.run_train(TRAIN.replace(SEARCH, "import os\n")).record
    assert (record["verdict"], record["promotion"]) == ("quarantine", None), record
    assert "implausible" in [finding["code"] for finding in record["findings"]]

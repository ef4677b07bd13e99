"""Three roles where things are otherwise: tokens for bytes, the embedded engine, a controller that dies meanwhile."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arsandbox_fixtures.docker_engine import containers, volumes
from arsandbox_fixtures.home import new_home, remove_home
from arsandbox_fixtures.leftovers import leftovers
from arsandbox_fixtures.waiting import wait_for

pytestmark = [pytest.mark.engine, pytest.mark.timeout(180)]

CONFIG = """
image = "cpu"
budget = "20s"
command = ["python", "train.py"]
editable = ["train.py", "serve.py"]

[metric]
name = "bpb"
goal = "min"
source = "evaluate"

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
text = "heldout/tokens.bin"
encoding = "uint16"
vocabulary = 600
token_bytes = "data/token_bytes.npy"
context = 8
streams = 1
probes = 50

[decision]
rule = "greedy"

[limits]
cpus = 1
memory = "160m"
pids = 64
disk = "16m"
inodes = 15000
"""
# Token 0 is a marker that stands for no byte; the others stand for one to seven.
DATA = """
import numpy as np

VOCABULARY = 600
token_bytes = np.arange(VOCABULARY) % 7 + 1
token_bytes[0] = 0


def tokens(seed, count):
    random = np.random.default_rng(seed)
    found = [0]
    while len(found) < count:
        found.append(int(found[-1] * 7 + random.integers(1, 9)) % VOCABULARY if random.random() < 0.95 else 0)
    return np.array(found, dtype="<u2")


def log_probabilities(smoothing):
    counts = np.full((VOCABULARY, VOCABULARY), smoothing)
    text = tokens(1, 20_000)
    np.add.at(counts, (text[:-1], text[1:]), 1)
    return np.log(counts / counts.sum(axis=1, keepdims=True)).astype("f4")
"""
PREPARE = """
import os
import numpy as np
from data_of import token_bytes, tokens

for folder in ("data", "heldout"):
    os.makedirs(folder, exist_ok=True)
np.save("data/token_bytes.npy", token_bytes)
tokens(2, 400).tofile("heldout/tokens.bin")
"""
TRAIN = """
import os
import numpy as np
from data_of import log_probabilities

SMOOTHING = 0.1
os.makedirs("out")
np.save("out/table.npy", log_probabilities(SMOOTHING))
"""
SERVE = """
import numpy as np
from arsandbox_box import serve

TABLE = np.load("out/table.npy")


def predict(histories, last):
    padded = np.concatenate([np.zeros((len(histories), 1), np.uint32), histories], axis=1)
    return TABLE[padded[:, -last:]]


serve(predict)
"""
FILES = {"arsandbox.toml": CONFIG, "data_of.py": DATA, "prepare.py": PREPARE, "train.py": TRAIN, "serve.py": SERVE}


def expected_bits_per_byte(smoothing: float) -> float:
    """As the definition has it, apart from the scorer: bits of all tokens with bytes, over those bytes."""
    made: dict[str, Any] = {}
    exec(DATA, made)
    text, sizes = made["tokens"](2, 400), made["token_bytes"]
    logs = made["log_probabilities"](smoothing)[np.concatenate([[0], text[:-1]]), text]
    return float(-logs[sizes[text] > 0].sum() / np.log(2) / sizes[text].sum())


@pytest.mark.parametrize("engine", [pytest.param("docker", marks=pytest.mark.group("engines")), "embedded"])
def test_a_token_model_is_scored_in_bits_per_byte(project: Callable[..., Any], engine: str) -> None:
    made = project(FILES)
    baseline = made.run("--engine", engine, "--json").record
    assert (baseline["verdict"], baseline["trust"], baseline["engine"]["name"]) == ("baseline", "L3", engine), baseline
    assert baseline["metric"]["value"] == pytest.approx(expected_bits_per_byte(0.1), rel=1e-5)
    better = made.run_train(TRAIN.replace("0.1", "0.001"), "--engine", engine, "--audit").record
    assert (better["verdict"], better["trust"]) == ("keep", "L4"), better
    assert better["metric"]["value"] == pytest.approx(expected_bits_per_byte(0.001), rel=1e-5)
    assert better["promotion"] is not None
    assert sorted(stage["stage"] for stage in better["stages"]) == ["model", "model", "score", "train"]
    made.verify()


@pytest.fixture
def own_home(home: Path) -> Iterator[Path]:
    """A state directory of this test alone."""
    path = new_home()
    yield path
    for one in containers(path):
        one.remove(force=True, v=True)
    for one in volumes(path):
        one.remove(force=True)
    remove_home(path)


def evaluating(project: Callable[..., Any], home: Path) -> tuple[Any, Any]:
    """(a project, the CLI while its candidate's model box and scorer run)."""
    made = project(FILES, home=home)
    assert made.run("--json").code == 0
    made.write({"serve.py": SERVE.replace("def predict(histories, last):", "def predict(histories, last):\n    WAIT")})
    made.write({"serve.py": (made.path / "serve.py").read_text().replace("WAIT", "__import__('time').sleep(60)")})
    running = made.start("--json")

    def both() -> bool:
        names = [one.name for one in containers(home) if one.status == "running"]
        return all(any(f"-{stage}-" in name for name in names) for stage in ("model", "score"))

    wait_for(both, seconds=60, what="the evaluation")
    return made, running


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.group("faults")), signal.SIGKILL])
def test_an_evaluation_whose_controller_ends_leaves_nothing(
    project: Callable[..., Any], own_home: Path, number: signal.Signals
) -> None:
    made, running = evaluating(project, own_home)
    running.process.send_signal(number)
    done = running.wait(30)
    if number == signal.SIGINT:
        assert (done.code, json.loads(done.out)["error"]["exit_code"]) == (130, 130), done
        assert leftovers(own_home) == []
    else:
        assert len(containers(own_home)) == 2, "the kill came too late to test anything"
    made.git("checkout", "-q", "--", "serve.py")
    again = made.run_train(TRAIN.replace("0.1", "0.001"))  # the next start repairs what is left
    assert again.record["verdict"] == "keep", again
    assert ("cleaned up after a dead controller" in again.err) == (number == signal.SIGKILL), again.err
    assert [record["verdict"] for record in made.history()] == ["baseline", "interrupted", "keep"]
    assert leftovers(own_home) == []
    made.verify()

"""The tiny-lm example: its scripts run as they would in a container, each as a process of its own."""

from __future__ import annotations

import itertools
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from arsandbox_fixtures.places import EXAMPLES
from arsandbox_fixtures.programs import load

SCRIPTS = ("prepare.py", "train.py", "evaluate.py")
PATCHES = ("winner", "loser", "cheat", "memory-bomb")
STEPS = 60

Tensors = dict[str, np.ndarray[Any, Any]]


def environment(**variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ARSANDBOX_", "TINY_LM_"))}
    return kept | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"} | variables


def run(folder: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=120,
    )


def copy_scripts(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in SCRIPTS:
        shutil.copy(EXAMPLES / "tiny-lm" / name, folder)
    return folder


def prepare(folder: Path, seed: str) -> tuple[str, str]:
    result = run(folder, "prepare.py", ARSANDBOX_SEED=seed)
    assert result.returncode == 0, result.stderr
    return (folder / "data/train.txt").read_text(), (folder / "heldout/text.txt").read_text()


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True)


def apply_patch(folder: Path, name: str) -> None:
    git(folder, "init", "--quiet")
    git(folder, "apply", str(EXAMPLES / "tiny-lm-edits" / f"{name}.patch"))


def train(folder: Path, seed: str = "1", steps: int = STEPS) -> str:
    result = run(folder, "train.py", ARSANDBOX_SEED=seed, TINY_LM_STEPS=str(steps))
    assert result.returncode == 0, result.stderr
    return result.stdout


def summary(output: str) -> dict[str, float]:
    lines = output.split("---\n", 1)[1].splitlines()
    return {name: float(value) for name, value in (line.split(": ") for line in lines)}


def evaluate(folder: Path) -> float:
    result = run(folder, "evaluate.py", "out/")
    assert result.returncode == 0, result.stderr
    metrics = [line for line in result.stdout.splitlines() if line.startswith("METRIC ")]
    assert len(metrics) == 1
    return float(metrics[0].removeprefix("METRIC val_bpb="))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts and their text, cut short to be quick; tests copy it and leave it as it is."""
    folder = copy_scripts(tmp_path_factory.mktemp("prepared"))
    train_text, heldout = prepare(folder, "7")
    (folder / "data/train.txt").write_text(train_text[:400_000])
    (folder / "heldout/text.txt").write_text(heldout[:30_000])
    return folder


@pytest.fixture
def workspace(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "workspace"))


# ---- prepare.py


def test_seeds_give_disjoint_and_different_text(tmp_path: Path) -> None:
    folder = copy_scripts(tmp_path)
    train_text, heldout = prepare(folder, "1")
    assert 1_500_000 <= len(train_text) < 1_502_000
    assert 200_000 <= len(heldout) < 202_000
    paragraphs = heldout.splitlines()
    assert all(paragraph.count(". ") >= 3 for paragraph in paragraphs)
    assert not any(paragraph in train_text for paragraph in paragraphs)
    assert prepare(folder, "1") == (train_text, heldout)
    other_train, other_heldout = prepare(folder, "2")
    assert other_train != train_text
    assert not set(other_heldout.splitlines()) & set(paragraphs)


def test_absent_seed_means_fresh_entropy(tmp_path: Path) -> None:
    folder = copy_scripts(tmp_path)
    texts = set()
    for _ in range(2):
        assert run(folder, "prepare.py").returncode == 0
        texts.add((folder / "heldout/text.txt").read_text())
    assert len(texts) == 2


@pytest.mark.parametrize("seed", ["", "seven", "1.5"])
def test_prepare_wants_an_integer_seed(tmp_path: Path, seed: str) -> None:
    result = run(copy_scripts(tmp_path), "prepare.py", ARSANDBOX_SEED=seed)
    assert result.returncode == 1
    assert result.stderr == f"prepare: ARSANDBOX_SEED must be an integer, not {seed!r}\n"
    assert not (tmp_path / "data").exists()


# ---- train.py and the edits


def test_same_seed_and_steps_give_the_same_bytes(workspace: Path) -> None:
    model = workspace / "out/model.safetensors"
    artifacts = []
    for seed in ("3", "3", "4"):
        train(workspace, seed, steps=5)
        artifacts.append(model.read_bytes())
    assert artifacts[0] == artifacts[1] != artifacts[2]
    assert [path.name for path in model.parent.iterdir()] == [model.name]


def test_winner_beats_baseline_beats_loser(prepared: Path, tmp_path: Path) -> None:
    scores = {}
    for edit in ("winner", "baseline", "loser"):
        folder = Path(shutil.copytree(prepared, tmp_path / edit))
        if edit != "baseline":
            apply_patch(folder, edit)
        reported = summary(train(folder))
        scores[edit] = evaluate(folder)
        assert reported["num_steps"] == STEPS
        assert reported["val_bpb"] == pytest.approx(scores[edit], abs=0.1)
    assert scores["winner"] + 0.1 < scores["baseline"] < scores["loser"] - 0.1


def test_cheat_reports_better_than_it_is(workspace: Path) -> None:
    apply_patch(workspace, "cheat")
    assert 0.9 <= summary(train(workspace, steps=20))["val_bpb"] < 1
    assert evaluate(workspace) > 3


def test_memory_bomb_does_not_survive_a_limit(workspace: Path) -> None:
    apply_patch(workspace, "memory-bomb")
    result = subprocess.run(
        [sys.executable, "train.py"],
        cwd=workspace,
        env=environment(TINY_LM_STEPS="1"),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30)),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode != 0
    assert "MemoryError" in result.stderr
    assert not (workspace / "out").exists()


def test_training_stops_within_the_budget(workspace: Path) -> None:
    result = run(workspace, "train.py", ARSANDBOX_BUDGET_SECONDS="2")
    assert result.returncode == 0, result.stderr
    reported = summary(result.stdout)
    assert reported["training_seconds"] <= 1.2
    assert set(reported) == {
        "val_bpb",
        "training_seconds",
        "total_seconds",
        "num_steps",
        "num_params_M",
        "peak_memory_mb",
    }


@pytest.mark.parametrize("name", [*PATCHES, "torch"])
def test_patch_applies(tmp_path: Path, name: str) -> None:
    copy_scripts(tmp_path)
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "apply", "--check", str(EXAMPLES / "tiny-lm-edits" / f"{name}.patch"))


# ---- evaluate.py

TEXT = b"\nAnna will see Betty.\n" * 9
METADATA = {"format": "tiny-lm-1", "activation": "tanh"}


def model_tensors(context: int = 2, embedding: int = 3, hidden: int = 4) -> Tensors:
    """An acceptable model that gives every byte the same probability."""
    shapes = {
        "embedding": (256, embedding),
        "layer.0.weight": (context * embedding, hidden),
        "layer.0.bias": (hidden,),
        "output.weight": (hidden, 256),
        "output.bias": (256,),
    }
    return {name: np.zeros(shape, dtype=np.float32) for name, shape in shapes.items()}


def serialised(tensors: Tensors, metadata: dict[str, str] = METADATA) -> bytes:
    return bytes(safetensors.numpy.save(tensors, metadata=metadata))


def with_header(data: bytes, edit: Callable[[str], str]) -> bytes:
    """The file with its JSON header edited as text."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = edit(json.dumps(json.loads(data[8:end]))).encode()
    return len(header).to_bytes(8, "little") + header + data[end:]


@dataclass
class Result:
    """What an evaluation returned and printed."""

    returncode: int
    stdout: str
    stderr: str


Judge = Callable[..., Result]


@pytest.fixture
def judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Judge:
    """Evaluates the given bytes as a model file, or what a test put there itself, on a short text."""
    module = load(EXAMPLES / "tiny-lm" / "evaluate.py", "tiny_lm_evaluate")
    (tmp_path / "heldout").mkdir()
    (tmp_path / "heldout/text.txt").write_bytes(TEXT)
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)

    def judge_bytes(data: bytes | None = None) -> Result:
        if data is not None:
            (tmp_path / "out/model.safetensors").write_bytes(data)
        capsys.readouterr()
        code = module.main(["out/"])
        return Result(code, *capsys.readouterr())

    return judge_bytes


def assert_refused(result: Result, reason: str) -> None:
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith("evaluate: refused: ")
    assert result.stderr.count("\n") == 1
    assert reason in result.stderr


def test_uniform_model_needs_eight_bits(judge: Judge) -> None:
    result = judge(serialised(model_tensors()))
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"heldout/text.txt: {len(TEXT)} bytes, context 2\nMETRIC val_bpb=8.000000\n"


def test_every_byte_is_counted_with_padding_before_the_first(judge: Judge) -> None:
    # this model expects every byte to be the one before it again, and the first to be a newline
    tensors = model_tensors(context=1, embedding=256, hidden=256)
    tensors["embedding"] = 10 * np.eye(256, dtype=np.float32)
    tensors["layer.0.weight"] = np.eye(256, dtype=np.float32)
    tensors["output.weight"] = np.eye(256, dtype=np.float32)
    repeats = sum(a == b for a, b in itertools.pairwise(b"\n" + TEXT))
    peak = np.tanh(10.0)
    expected = (np.log(255 + np.exp(peak)) - peak * repeats / len(TEXT)) / np.log(2)
    result = judge(serialised(tensors))
    assert f"METRIC val_bpb={expected:.6f}" in result.stdout


def refusals() -> dict[str, tuple[bytes, str]]:
    good = serialised(model_tensors())
    nan, infinite = model_tensors(), model_tensors()
    nan["output.bias"][7] = np.nan
    infinite["embedding"][0, 0] = -np.inf
    double = model_tensors() | {"output.bias": np.zeros(256, dtype=np.float64)}
    misfit = model_tensors() | {"output.bias": np.zeros(255, dtype=np.float32)}
    missing = {name: value for name, value in model_tensors().items() if name != "layer.0.bias"}
    extra = model_tensors() | {"pickle": np.zeros(1, dtype=np.float32)}
    layer_name = model_tensors() | {"layer.x.weight": np.zeros((4, 4), dtype=np.float32)}
    deep = model_tensors() | {
        f"layer.{i}.{kind}": np.zeros((4, 4)[: 1 + (kind == "weight")], dtype=np.float32)
        for i in range(1, 5)
        for kind in ("weight", "bias")
    }
    overflow = model_tensors()
    overflow["output.bias"][0] = np.float32(3e38)
    overflow["output.weight"][:, 0] = np.float32(3e38)
    overflow["layer.0.bias"][:] = 9
    huge = (2**63).to_bytes(8, "little") + good[8:]
    return {
        "empty": (b"", "no header length"),
        "truncated header": (good[:100], "ends inside the header"),
        "truncated tensors": (good[:-1], "not a valid safetensors file"),
        "trailing bytes": (good + b"\0", "not a valid safetensors file"),
        "huge header length": (huge, "header is larger"),
        "too large": (good + bytes(16 * 2**20), "larger than"),
        "not JSON": (with_header(good, lambda header: header[:-1]), "not JSON"),
        "nested JSON": (with_header(good, lambda _: "[" * 15_000), "not JSON"),
        "not an object": (with_header(good, lambda _: "[]"), "not a JSON object"),
        "duplicate tensor": (
            with_header(good, lambda header: header[:-1] + ', "embedding": {}}'),
            "repeats a key",
        ),
        "duplicate inner key": (
            with_header(good, lambda header: header.replace('"dtype"', '"dtype": "F32", "dtype"', 1)),
            "repeats a key",
        ),
        "overlapping offsets": (
            with_header(good, lambda header: header.replace('"data_offsets": [0,', '"data_offsets": [4,', 1)),
            "not a valid safetensors file",
        ),
        "extra tensor": (serialised(extra), "unknown: 'pickle'"),
        "strange layer": (serialised(layer_name), "layer.x.weight"),
        "missing tensor": (serialised(missing), "layer.0.bias"),
        "NaN": (serialised(nan), "not finite"),
        "infinity": (serialised(infinite), "not finite"),
        "overflowing logits": (serialised(overflow), "logits are not finite"),
        "wrong dtype": (serialised(double), "output.bias is not F32"),
        "wrong shape": (serialised(misfit), "output.bias has shape"),
        "oversize context": (serialised(model_tensors(context=65)), "context of 65"),
        "oversize embedding": (serialised(model_tensors(embedding=257)), "embedding of 257"),
        "oversize hidden": (serialised(model_tensors(hidden=2049)), "2049 wide"),
        "too deep": (serialised(deep), "5 hidden layers"),
        "wrong format": (serialised(model_tensors(), METADATA | {"format": "other"}), "format"),
        "wrong activation": (serialised(model_tensors(), METADATA | {"activation": "exec"}), "activation"),
        "no metadata": (bytes(safetensors.numpy.save(model_tensors())), "no metadata"),
    }


@pytest.mark.parametrize(("data", "reason"), refusals().values(), ids=refusals().keys())
def test_refuses(judge: Judge, data: bytes, reason: str) -> None:
    assert_refused(judge(data), reason)


def test_refuses_what_is_not_a_regular_file(judge: Judge, tmp_path: Path) -> None:
    model = tmp_path / "out/model.safetensors"
    assert_refused(judge(), "No such file")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/model.safetensors").write_bytes(serialised(model_tensors()))
    model.symlink_to(tmp_path / "elsewhere/model.safetensors")
    assert_refused(judge(), "cannot open")
    model.unlink()
    os.mkfifo(model)
    assert_refused(judge(), "not a regular file")
    model.unlink()
    model.mkdir()
    assert_refused(judge(), "not a regular file")
    model.rmdir()
    (tmp_path / "out").rmdir()
    (tmp_path / "out").symlink_to("elsewhere")
    assert_refused(judge(), "cannot open")

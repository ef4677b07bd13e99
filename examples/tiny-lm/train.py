"""Train a small byte-level language model: the one file of tiny-lm that is meant to be edited.

The model reads the last CONTEXT bytes: their embeddings, side by side, go through LAYERS hidden layers to a
softmax over the next byte.  It trains on `data/train.txt` until ARSANDBOX_BUDGET_SECONDS are nearly used, or
for exactly TINY_LM_STEPS steps where that is set, and writes `out/model.safetensors`.
"""

from __future__ import annotations

import time

START = time.monotonic()  # the budget also pays for the imports below

import json  # noqa: E402
import os  # noqa: E402
import resource  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import numpy.typing as npt  # noqa: E402
import safetensors.numpy  # noqa: E402

# Model
CONTEXT = 8  # bytes the model sees (the evaluator allows 64)
EMBEDDING = 16
HIDDEN = 128
LAYERS = 1
ACTIVATION = "tanh"  # or "relu"

# Optimisation
BATCH = 512
LEARNING_RATE = 1e-3
FINAL_LEARNING_RATE = 0.1  # as a fraction of LEARNING_RATE, reached linearly
BETA1, BETA2, EPSILON = 0.9, 0.99, 1e-8

TRAIN_PATH = Path("data/train.txt")
MODEL_PATH = Path("out/model.safetensors")
SELF_CHECK = 0.05  # the end of the training text, kept apart for the self-reported val_bpb
DEFAULT_BUDGET = 15.0
REPORT_SECONDS = 0.5

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Parameters = dict[str, Floats]


def initial_parameters(rng: np.random.Generator) -> Parameters:
    """Random weights scaled by fan-in, and zero biases."""
    widths = [CONTEXT * EMBEDDING] + [HIDDEN] * LAYERS
    params = {"embedding": rng.standard_normal((256, EMBEDDING), dtype=np.float32)}
    shapes = {f"layer.{i}": (widths[i], widths[i + 1]) for i in range(LAYERS)} | {"output": (HIDDEN, 256)}
    for name, (fan_in, fan_out) in shapes.items():
        weight = rng.standard_normal((fan_in, fan_out), dtype=np.float32)
        params[f"{name}.weight"] = weight * np.float32(fan_in**-0.5)
        params[f"{name}.bias"] = np.zeros(fan_out, dtype=np.float32)
    return params


def forward(params: Parameters, contexts: Bytes) -> tuple[list[Floats], Floats]:
    """The input of every layer, and the logits of the next byte."""
    inputs = [params["embedding"][contexts].reshape(len(contexts), -1)]
    for i in range(LAYERS):
        hidden = inputs[-1] @ params[f"layer.{i}.weight"] + params[f"layer.{i}.bias"]
        inputs.append(np.tanh(hidden) if ACTIVATION == "tanh" else np.maximum(hidden, 0))
    return inputs, inputs[-1] @ params["output.weight"] + params["output.bias"]


def log_softmax(logits: Floats) -> Floats:
    """Natural log-probabilities of the 256 bytes."""
    shifted: Floats = logits - logits.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


def loss_and_gradients(params: Parameters, contexts: Bytes, targets: Bytes) -> tuple[float, Parameters]:
    """Mean loss of a batch, in nats per byte, and its gradient."""
    rows = np.arange(len(targets))
    inputs, logits = forward(params, contexts)
    log_probabilities = log_softmax(logits)
    loss = -float(log_probabilities[rows, targets].mean())
    grads: Parameters = {}
    delta = np.exp(log_probabilities)
    delta[rows, targets] -= 1
    delta /= np.float32(len(targets))
    for i, name in reversed(list(enumerate([f"layer.{i}" for i in range(LAYERS)] + ["output"]))):
        grads[f"{name}.weight"] = inputs[i].T @ delta
        grads[f"{name}.bias"] = delta.sum(axis=0)
        delta = delta @ params[f"{name}.weight"].T
        if i > 0:
            delta = delta * (1 - inputs[i] ** 2 if ACTIVATION == "tanh" else inputs[i] > 0)
    grads["embedding"] = np.zeros_like(params["embedding"])
    np.add.at(grads["embedding"], contexts.reshape(-1), delta.reshape(-1, EMBEDDING))
    return loss, grads


class Adam:
    """Adam with bias correction."""

    def __init__(self, params: Parameters) -> None:
        self.params = params
        self.mean = {name: np.zeros_like(value) for name, value in params.items()}
        self.square = {name: np.zeros_like(value) for name, value in params.items()}
        self.steps = 0

    def step(self, grads: Parameters, rate: float) -> None:
        """Update the parameters in place."""
        self.steps += 1
        scale = np.float32(rate / (1 - BETA1**self.steps))
        correction = np.float32((1 - BETA2**self.steps) ** -0.5)
        for name, grad in grads.items():
            mean, square = self.mean[name], self.square[name]
            mean += np.float32(1 - BETA1) * (grad - mean)
            square += np.float32(1 - BETA2) * (grad * grad - square)
            self.params[name] -= scale * mean / (np.sqrt(square) * correction + np.float32(EPSILON))


def windows(text: Bytes) -> Bytes:
    """Every run of CONTEXT bytes together with the byte that follows it (a view)."""
    return np.lib.stride_tricks.sliding_window_view(text, CONTEXT + 1)


def train(params: Parameters, text: Bytes, rng: np.random.Generator) -> int:
    """Train until the steps or the budget are used; returns the number of steps."""
    fixed_steps = int(os.environ.get("TINY_LM_STEPS") or 0)
    budget = float(os.environ.get("ARSANDBOX_BUDGET_SECONDS") or DEFAULT_BUDGET)
    begin = time.monotonic()
    seconds = max(START + budget - max(1.0, 0.05 * budget) - begin, 1e-3)  # the rest is for saving
    samples, optimiser = windows(text), Adam(params)
    reported, losses, step = begin, [], 0
    while True:
        now = time.monotonic()
        progress = step / fixed_steps if fixed_steps else (now - begin) / seconds
        if progress >= 1:
            return step
        batch = samples[rng.integers(len(samples), size=BATCH)]
        loss, grads = loss_and_gradients(params, batch[:, :-1], batch[:, -1])
        optimiser.step(grads, LEARNING_RATE * (1 - (1 - FINAL_LEARNING_RATE) * progress))
        losses.append(loss)
        step += 1
        if now - reported >= REPORT_SECONDS:
            print(f"step {step}  train_bpb {np.mean(losses) / np.log(2):.3f}", flush=True)
            reported, losses = now, []


def self_check(params: Parameters, text: Bytes) -> float:
    """Bits per byte on text that the training did not see."""
    samples, total = windows(text), 0.0
    for begin in range(0, len(samples), 2048):
        batch = samples[begin : begin + 2048]
        log_probabilities = log_softmax(forward(params, batch[:, :-1])[1])
        total -= float(log_probabilities[np.arange(len(batch)), batch[:, -1]].sum(dtype=np.float64))
    return total / len(samples) / float(np.log(2))


def save(params: Parameters, path: Path) -> None:
    """Write the model atomically, with a sorted header: safetensors writes metadata in random order."""
    data = safetensors.numpy.save(params, metadata={"format": "tiny-lm-1", "activation": ACTIVATION})
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".tmp")
    partial.write_bytes(len(header).to_bytes(8, "little") + header + data[end:])
    partial.replace(path)


def main() -> None:
    """Train, save and print the summary."""
    rng = np.random.default_rng(abs(int(os.environ.get("ARSANDBOX_SEED") or 0)))
    text = np.frombuffer(TRAIN_PATH.read_bytes(), dtype=np.uint8)
    kept_apart = int(len(text) * SELF_CHECK)
    params = initial_parameters(rng)
    train_begin = time.monotonic()
    steps = train(params, text[:-kept_apart], rng)
    training_seconds = time.monotonic() - train_begin
    save(params, MODEL_PATH)
    val_bpb = self_check(params, text[-kept_apart:])
    print("---")
    print(f"val_bpb: {val_bpb:.6f}")
    print(f"training_seconds: {training_seconds:.1f}")
    print(f"total_seconds: {time.monotonic() - START:.1f}")
    print(f"num_steps: {steps}")
    print(f"num_params_M: {sum(value.size for value in params.values()) / 1e6:.2f}")
    print(f"peak_memory_mb: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.1f}")


if __name__ == "__main__":
    main()

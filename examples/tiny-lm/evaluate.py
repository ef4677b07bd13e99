"""Judge a tiny-lm model: bits per byte of `out/model.safetensors` over all of `heldout/text.txt`.

Usage: python evaluate.py out/

The model file comes from untrusted code.  It is read once, as data, checked in full before a number of it is
used, and only tensors are taken from it: the forward pass and the softmax are computed here.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

HELDOUT_PATH = Path("heldout/text.txt")
MODEL_NAME = "model.safetensors"
FORMAT = "tiny-lm-1"
ACTIVATIONS = ("tanh", "relu")
MAX_FILE_BYTES = 16 * 2**20  # also bounds the time an evaluation takes
MAX_HEADER_BYTES = 16 * 2**10
MAX_CONTEXT, MAX_EMBEDDING, MAX_HIDDEN, MAX_LAYERS = 64, 256, 2048, 4
PADDING = ord("\n")  # what the model sees before the first byte
ROWS = 2048  # bytes predicted at a time

Floats = npt.NDArray[np.float32]
Shape = tuple[int, ...]


class RefusedError(Exception):
    """The model file is not one that this evaluator accepts."""


def check(accepted: bool, message: str) -> None:
    """Refuse the file, with a message, unless `accepted`."""
    if not accepted:
        raise RefusedError(message)


def read_regular_file(folder: Path, name: str) -> bytes:
    """The bytes of a regular file of acceptable size; follows no symbolic link, neither folder nor file."""
    nofollow = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    folder_fd = file_fd = -1
    try:
        # without a trailing slash, which would make O_NOFOLLOW follow the link
        folder_fd = os.open(str(folder), nofollow | os.O_DIRECTORY)
        file_fd = os.open(name, nofollow | os.O_NONBLOCK, dir_fd=folder_fd)
        check(stat.S_ISREG(os.fstat(file_fd).st_mode), f"{name} is not a regular file")
        with open(file_fd, "rb", closefd=False) as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise RefusedError(f"cannot open {folder / name} as a regular file: {error.strerror}") from error
    finally:
        for fd in (folder_fd, file_fd):
            if fd >= 0:
                os.close(fd)
    check(len(data) <= MAX_FILE_BYTES, f"{name} is larger than {MAX_FILE_BYTES} bytes")
    return data


def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object as a dict; refuses a repeated key, which readers could resolve differently."""
    check(len({key for key, _ in pairs}) == len(pairs), "the header repeats a key")
    return dict(pairs)


def read_header(data: bytes) -> dict[str, Any]:
    """The JSON header of a safetensors file."""
    check(len(data) >= 8, "the file is truncated: no header length")
    length = int.from_bytes(data[:8], "little")
    check(length <= MAX_HEADER_BYTES, f"the header is larger than {MAX_HEADER_BYTES} bytes")
    check(8 + length <= len(data), "the file is truncated: it ends inside the header")
    try:
        header = json.loads(data[8 : 8 + length].decode("utf-8"), object_pairs_hook=without_duplicates)
    except (ValueError, RecursionError) as error:
        raise RefusedError("the header is not JSON") from error
    check(isinstance(header, dict), "the header is not a JSON object")
    return dict(header)


def check_tensors(header: dict[str, Any]) -> int:
    """Check metadata, names, dtypes and shapes; returns the number of hidden layers."""
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    layers = sum(name.startswith("layer.") and name.endswith(".weight") for name in tensors)
    check(1 <= layers <= MAX_LAYERS, f"{layers} hidden layers, not 1 to {MAX_LAYERS}")
    stages = [f"layer.{i}" for i in range(layers)] + ["output"]
    expected = {"embedding"} | {f"{stage}.{kind}" for stage in stages for kind in ("weight", "bias")}
    wrong = sorted(expected ^ set(tensors))
    check(not wrong, f"tensors missing or unknown: {', '.join(ascii(name) for name in wrong[:5])}")

    shapes: dict[str, Shape] = {}
    for name, entry in tensors.items():
        check(isinstance(entry, dict), f"{name} is not described by an object")
        check(entry.get("dtype") == "F32", f"{name} is not F32")
        shape = entry.get("shape")
        check(
            isinstance(shape, list) and all(type(size) is int and size > 0 for size in shape),
            f"the shape of {name} is not a list of positive integers",
        )
        shapes[name] = tuple(shape)

    ranks = {name: 1 if name.endswith(".bias") else 2 for name in expected}
    check(all(len(shapes[name]) == rank for name, rank in ranks.items()), "a tensor has the wrong rank")
    embedding, width = shapes["embedding"][1], shapes["layer.0.weight"][0]
    check(embedding <= MAX_EMBEDDING, f"embedding of {embedding}, more than {MAX_EMBEDDING}")
    check(width % embedding == 0, "the first layer does not take a whole number of embeddings")
    check(width // embedding <= MAX_CONTEXT, f"context of {width // embedding}, more than {MAX_CONTEXT}")
    wanted: dict[str, Shape] = {"embedding": (256, embedding)}
    for stage in stages:
        out = 256 if stage == "output" else shapes[f"{stage}.weight"][1]
        check(out <= MAX_HIDDEN, f"{stage} is {out} wide, more than {MAX_HIDDEN}")
        wanted |= {f"{stage}.weight": (width, out), f"{stage}.bias": (out,)}
        width = out
    for name, shape in wanted.items():
        check(shapes[name] == shape, f"{name} has shape {shapes[name]}, not {shape}")
    return layers


class Model:
    """A checked model, ready to predict."""

    def __init__(self, data: bytes) -> None:
        header = read_header(data)
        metadata: Any = header.get("__metadata__")
        check(isinstance(metadata, dict), "the header has no metadata")
        check(metadata.get("format") == FORMAT, f"the format is not {FORMAT}")
        check(metadata.get("activation") in ACTIVATIONS, f"the activation is not one of {ACTIVATIONS}")
        self.activation: str = metadata["activation"]
        self.layers = check_tensors(header)
        try:
            self.tensors: dict[str, Floats] = safetensors.numpy.load(data)
        except safetensors.SafetensorError as error:
            raise RefusedError(f"not a valid safetensors file: {error}") from error
        for name, tensor in self.tensors.items():
            check(tensor.dtype == np.float32, f"{name} is not F32")
            check(bool(np.isfinite(tensor).all()), f"{name} has values that are not finite")
        self.context = self.tensors["layer.0.weight"].shape[0] // self.tensors["embedding"].shape[1]

    def log2_probabilities(self, contexts: npt.NDArray[np.uint8], targets: npt.NDArray[np.uint8]) -> float:
        """The sum of the log2-probabilities of the targets, after a softmax in float64."""
        hidden = self.tensors["embedding"][contexts].reshape(len(contexts), -1)
        for i in range(self.layers):
            hidden = hidden @ self.tensors[f"layer.{i}.weight"] + self.tensors[f"layer.{i}.bias"]
            hidden = np.tanh(hidden) if self.activation == "tanh" else np.maximum(hidden, 0)
        logits = (hidden @ self.tensors["output.weight"] + self.tensors["output.bias"]).astype(np.float64)
        check(bool(np.isfinite(logits).all()), "the logits are not finite")
        logits -= logits.max(axis=1, keepdims=True)
        chosen = logits[np.arange(len(targets)), targets]
        return float((chosen - np.log(np.exp(logits).sum(axis=1))).sum() / np.log(2))


def bits_per_byte(model: Model, text: bytes) -> float:
    """Bits the model needs per byte of the text, every byte counted."""
    padded = np.frombuffer(bytes([PADDING]) * model.context + text, dtype=np.uint8)
    samples = np.lib.stride_tricks.sliding_window_view(padded, model.context + 1)
    total = 0.0
    with np.errstate(over="ignore", invalid="ignore"):  # logits that are not finite are refused
        for begin in range(0, len(samples), ROWS):
            batch = samples[begin : begin + ROWS]
            total -= model.log2_probabilities(batch[:, :-1], batch[:, -1])
    return total / len(text)


def main(arguments: list[str]) -> int:
    """Print the metric, or one line that says why the model is refused."""
    if len(arguments) != 1:
        print("usage: python evaluate.py out/", file=sys.stderr)
        return 2
    text = HELDOUT_PATH.read_bytes()
    try:
        model = Model(read_regular_file(Path(arguments[0]), MODEL_NAME))
        value = bits_per_byte(model, text)
        check(bool(np.isfinite(value)), "the result is not finite")
    except RefusedError as error:
        print(f"evaluate: refused: {error}", file=sys.stderr)
        return 1
    print(f"{HELDOUT_PATH}: {len(text)} bytes, context {model.context}")
    print(f"METRIC val_bpb={value:.6f}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

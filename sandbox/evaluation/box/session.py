"""The scorer's end of the channel: ask a model box, check every answer before a number of it is used."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from . import wire

# How far the log of the summed probabilities may be from 0: rounding of float32 over large vocabularies.
NORMALISATION = 1e-2


class RefusedError(Exception):
    """The model box's answers cannot be scored; `code` is the finding's stable name."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code, self.detail = code, detail


@dataclass
class Result:
    """What the scorer found: metrics by name, how many tokens or rows were scored, and findings."""

    metrics: dict[str, float] = field(default_factory=dict)
    count: int = 0
    probes: int = 0
    audited: bool = False
    findings: list[dict[str, str]] = field(default_factory=list)

    def remark(self, code: str, detail: str) -> None:
        """Add a finding."""
        self.findings.append({"code": code, "detail": detail})

    def encode(self) -> bytes:
        """The payload of a RESULT frame."""
        return json.dumps(self.__dict__, allow_nan=False).encode()


@dataclass(frozen=True)
class Answer:
    """Checked log-probabilities (rows x answers x vocabulary) with the logarithm of their sums."""

    logs: npt.NDArray[np.float32]
    normaliser: npt.NDArray[np.float64]

    def of(self, targets: npt.NDArray[np.uint32]) -> npt.NDArray[np.float64]:
        """The targets' log-probabilities, normalised here: nothing is gained within the tolerance."""
        chosen = np.take_along_axis(self.logs, targets[..., None].astype(np.int64), axis=-1)[..., 0]
        return np.asarray(chosen.astype(np.float64) - self.normaliser, dtype=np.float64)


class Session:
    """Requests and answers in strict turns."""

    def __init__(self, channel: socket.socket, vocabulary: int) -> None:
        self._channel, self._vocabulary, self._sequence = channel, vocabulary, 0

    def predict(self, rows: npt.NDArray[np.uint32], last: int) -> Answer:
        """The distributions after the last `last` prefixes of each row. Raises RefusedError."""
        self._sequence += 1
        count, length = rows.shape
        wire.send(
            self._channel, wire.PREDICT, self._sequence, wire.pack_shape(count, length, last),
            np.ascontiguousarray(rows, dtype="<u4").tobytes(),
        )  # fmt: skip
        try:
            header, payload = wire.receive(self._channel)
        except wire.WireError as error:
            raise RefusedError("malformed_answer", str(error)) from error
        if header.kind == wire.FAILED:
            words = payload[: wire.MOST_WORDS].decode("utf-8", "replace")
            raise RefusedError("model_failed", f"serve.py failed: {words}")
        if header.kind != wire.ANSWER or header.sequence != self._sequence:
            raise RefusedError("malformed_answer", "the model box answered out of turn")
        return self._checked(payload, (count, last, self._vocabulary))

    def fresh(self) -> None:
        """Have the controller replace the model box by a fresh one."""
        self._sequence += 1
        wire.send(self._channel, wire.FRESH, self._sequence)
        header, _ = wire.receive(self._channel)
        if header.kind != wire.READY:
            raise wire.WireError("the controller did not say that a fresh model box is ready")

    def finish(self, result: Result) -> None:
        """Hand the result to the controller."""
        wire.send(self._channel, wire.RESULT, self._sequence + 1, result.encode())

    def _checked(self, payload: bytearray, expected: tuple[int, int, int]) -> Answer:
        try:
            shape = wire.unpack_shape(payload)
        except wire.WireError as error:
            raise RefusedError("malformed_answer", str(error)) from error
        if shape != expected:
            raise RefusedError("malformed_answer", f"an answer of the shape {shape} instead of {expected}")
        if len(payload) != wire.SHAPE_BYTES + 4 * expected[0] * expected[1] * expected[2]:
            raise RefusedError("malformed_answer", "an answer that is shorter or longer than its shape")
        logs = np.frombuffer(payload, dtype="<f4", offset=wire.SHAPE_BYTES).reshape(expected)
        if not bool(np.isfinite(logs).all()):
            raise RefusedError("not_finite", "the model answered log-probabilities that are not finite")
        top = logs.max(axis=-1, keepdims=True)
        with np.errstate(over="ignore", under="ignore"):
            sums = np.exp(logs - top).sum(axis=-1, dtype=np.float64)
        normaliser = np.log(sums) + top[..., 0].astype(np.float64)
        worst = float(np.abs(normaliser).max())
        if worst > NORMALISATION:
            raise RefusedError(
                "not_normalised", f"the probabilities of one answer sum to exp({worst:.3g}) or its inverse, not to 1"
            )
        return Answer(logs, normaliser)


def connect() -> socket.socket:
    """The channel that the controller made for this sandbox."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(os.environ["ARSANDBOX_CHANNEL"])
    return connection


def read_task() -> dict[str, Any]:
    """What the controller wants scored."""
    with open(os.environ["ARSANDBOX_TASK"], "rb") as file:
        task: dict[str, Any] = json.load(file)
        return task

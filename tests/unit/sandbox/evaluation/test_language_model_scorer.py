"""The scorer against models in this process: the value of honest ones, and what cheats come to."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from arsandbox.sandbox.evaluation.box import answering, language_model, wire
from arsandbox.sandbox.evaluation.box.session import RefusedError, Result, Session

VOCABULARY = 8
RANDOM = np.random.default_rng(7)
TABLE = answering.log_softmax(RANDOM.normal(size=(VOCABULARY, VOCABULARY)) * 2)
TEXT = RANDOM.integers(0, VOCABULARY, 5000).astype(np.uint8)
Model = Callable[[npt.NDArray[np.uint32], int], Any]


def bigram(histories: npt.NDArray[np.uint32], last: int) -> npt.NDArray[np.float32]:
    """An honest model: the distribution after a token; after nothing, the one after token 0."""
    padded = np.concatenate([np.zeros((len(histories), 1), np.uint32), histories], axis=1)
    return TABLE[padded[:, -last:]]


@contextmanager
def served(model: Model) -> Iterator[Session]:
    """A session with `model`, answered by serve.py's own code; a fresh box is the same model again."""
    ours, theirs = socket.socketpair()

    def answer() -> None:
        with theirs:
            while True:
                try:
                    header, payload = wire.receive(theirs)
                except (wire.WireError, OSError):
                    return
                if header.kind == wire.FRESH:
                    wire.send(theirs, wire.READY, header.sequence)
                    continue
                logs = answering._answer(model, bytes(payload))
                shape = wire.pack_shape(*logs.shape)
                wire.send(theirs, wire.ANSWER, header.sequence, shape, np.ascontiguousarray(logs).tobytes())

    thread = threading.Thread(target=answer)
    thread.start()
    with ours:
        yield Session(ours, VOCABULARY)
    thread.join()


def scored(model: Model, tmp_path: Path, **fields: Any) -> Result:
    TEXT.tofile(tmp_path / "text")
    task = {
        "metric": "bpb", "text": str(tmp_path / "text"), "encoding": "bytes", "vocabulary": VOCABULARY, "context": 16,
        "mode": "step", "streams": 64, "probes": 500, "tolerance": 0.02, "seed": 1, **fields,
    }  # fmt: skip
    with served(model) as session:
        return language_model.score(session, task)


def findings(result: Result) -> list[str]:
    return [finding["code"] for finding in result.findings]


@pytest.mark.parametrize("mode", ["step", "window"])
def test_an_honest_model_gets_its_bits_per_byte_and_no_finding(mode: str, tmp_path: Path) -> None:
    result = scored(bigram, tmp_path, mode=mode, audit=True)
    # The same by hand; streams and windows begin with nothing before them.
    starts = np.linspace(0, len(TEXT), 65).astype(int)[:-1] if mode == "step" else np.arange(0, len(TEXT), 16)
    before = np.concatenate([[0], TEXT[:-1]])
    before[starts] = 0
    expected = -TABLE[before, TEXT].astype(float).mean() / np.log(2)
    assert result.metrics["bpb"] == pytest.approx(expected, rel=1e-6)
    assert (result.count, result.probes, result.audited, result.findings) == (5000, 1000, True, [])


def test_tokens_count_by_the_bytes_they_stand_for(tmp_path: Path) -> None:
    sizes = np.array([0, 1, 2, 3, 4, 5, 6, 7])
    np.save(tmp_path / "sizes.npy", sizes)
    result = scored(bigram, tmp_path, token_bytes=str(tmp_path / "sizes.npy"))
    starts = np.linspace(0, len(TEXT), 65).astype(int)[:-1]
    before = np.concatenate([[0], TEXT[:-1]])
    before[starts] = 0
    nats = -TABLE[before, TEXT].astype(float)[TEXT > 0].sum()  # a token of no bytes is not scored
    assert result.metrics["bpb"] == pytest.approx(nats / np.log(2) / sizes[TEXT].sum(), rel=1e-6)


def test_a_model_that_looks_at_what_follows_has_nothing_to_see_step_by_step(tmp_path: Path) -> None:
    """The strongest peek there is: look for the history anywhere in the request, and answer what follows it."""

    def peek(histories: npt.NDArray[np.uint32], last: int) -> npt.NDArray[np.float32]:
        answer = bigram(histories, last)
        flat = histories.astype(np.uint8).tobytes()
        for row, history in enumerate(histories.astype(np.uint8)):
            own = history[-4:].tobytes()
            place = flat.find(own) if len(own) == 4 else -1
            if 0 <= place < len(flat) - 4:
                boosted = np.full(VOCABULARY, np.log(0.1 / 7), np.float32)
                boosted[flat[place + 4] % VOCABULARY] = np.log(0.9)
                answer[row, -1] = boosted
        return answer

    honest = scored(bigram, tmp_path).metrics["bpb"]
    assert scored(peek, tmp_path).metrics["bpb"] >= honest


@pytest.mark.parametrize("share", [1.0, 0.02])
def test_in_windows_a_peek_is_found(share: float, tmp_path: Path) -> None:
    def peek(histories: npt.NDArray[np.uint32], last: int) -> npt.NDArray[np.float32]:
        answer = bigram(histories, last)
        for row, column in zip(*np.nonzero(RANDOM.random((len(histories), last - 1)) < share), strict=True):
            answer[row, column] = np.log(0.05 / 7)
            answer[row, column, histories[row, histories.shape[1] - last + 1 + column]] = np.log(0.95)
        return answer

    result = scored(peek, tmp_path, mode="window", probes=1000)
    assert findings(result) == ["not_causal"]


def test_a_model_that_learns_from_the_requests_is_found(tmp_path: Path) -> None:
    counts = np.ones((VOCABULARY, VOCABULARY))

    def adapting(histories: npt.NDArray[np.uint32], last: int) -> npt.NDArray[np.float32]:
        for row in histories:
            if len(row) > 1:
                counts[row[-2], row[-1]] += 0.05
        logs = np.log(counts / counts.sum(axis=1, keepdims=True)).astype(np.float32)
        padded = np.concatenate([np.zeros((len(histories), 1), np.uint32), histories], axis=1)
        return answering.log_softmax(logs[padded[:, -last:]])

    assert findings(scored(adapting, tmp_path)) == ["stateful"]


def test_small_gains_that_count_only_once_are_found_by_their_mean() -> None:
    scored_first = language_model.Kept(np.arange(4), np.full(4, -1.0))
    task = language_model.Task("bpb", "", "bytes", 8, 8, "step", 8, 4, 0.02, 1)
    for gain, found in ((0.01, ["stateful"]), (0.001, []), (-0.01, [])):
        result = Result()
        language_model._compare(task, scored_first, np.full(4, -1.0 - gain), result, "again")
        assert findings(result) == found


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (lambda logs: logs + 0.5, "not_normalised"),
        (lambda logs: np.full_like(logs, np.nan), "not_finite"),
        (lambda logs: np.where(logs < -1, -np.inf, logs), "not_finite"),
        (lambda logs: np.full_like(logs, 3e38), "not_normalised"),
        (lambda logs: logs[..., :-1], "malformed_answer"),
        (lambda logs: np.concatenate([logs, logs], axis=-1), "malformed_answer"),
    ],
)
def test_what_is_no_distribution_is_refused(answer: Callable[[Any], Any], code: str, tmp_path: Path) -> None:
    with pytest.raises(RefusedError) as raised:
        scored(lambda histories, last: answer(bigram(histories, last)), tmp_path)
    assert raised.value.code == code


def test_within_the_tolerance_of_the_sum_nothing_is_gained(tmp_path: Path) -> None:
    honest = scored(bigram, tmp_path).metrics["bpb"]
    more = scored(lambda histories, last: bigram(histories, last) + 0.009, tmp_path).metrics["bpb"]
    assert more == pytest.approx(honest, abs=1e-6)


def test_the_sealed_text_is_scored_by_the_audit_alone(tmp_path: Path) -> None:
    TEXT[:1000].tofile(tmp_path / "sealed")
    sealed = {"sealed": str(tmp_path / "sealed")}
    assert "bpb.sealed" not in scored(bigram, tmp_path, **sealed).metrics
    assert "bpb.sealed" in scored(bigram, tmp_path, audit=True, **sealed).metrics

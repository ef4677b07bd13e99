"""Score a language model by what it answers: bits per byte over every token of the held-out text.

Two ways. `step`: many streams of the text at once, one token each at a time; no request ever holds a token
whose distribution was not yet answered, so peeking has nothing to see. `window`: whole windows at once,
faster for models with long contexts, but each request shows the tokens that it asks for; probes look for
answers that depend on them. Where the same history gets another answer, the model keeps state or peeks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import log, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .session import RefusedError, Result, Session

MOST_ANSWER_BYTES = 16 * 1024**2
Tokens = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class Task:
    """What is scored and how; mirrors the config's `[evaluate]` section."""

    metric: str
    text: str
    encoding: str
    vocabulary: int
    context: int
    mode: str
    streams: int
    probes: int
    tolerance: float
    seed: int
    token_bytes: str | None = None
    sealed: str | None = None
    audit: bool = False


@dataclass
class Kept:
    """The positions chosen as probes, and the log-probability that each had when it was scored."""

    positions: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]

    def note(self, positions: npt.NDArray[np.int64], values: npt.NDArray[np.float64]) -> None:
        """Remember the values of those `positions` that are probes."""
        places = np.searchsorted(self.positions, positions)
        places[places == len(self.positions)] = 0
        chosen = self.positions[places] == positions
        self.values[places[chosen]] = values[chosen]


def score(session: Session, fields: dict[str, Any]) -> Result:
    """The whole evaluation that `fields` describe. Raises RefusedError when there is no value to be had."""
    task, result = Task(**fields), Result()
    tokens = read_tokens(task.text, task)
    sizes = token_sizes(task)
    random = np.random.default_rng(task.seed)
    kept = _choose(task, len(tokens), random)
    result.metrics[task.metric] = _bits_per_byte(session, task, tokens, sizes, kept)
    result.count = len(tokens)
    _probe(session, task, tokens, kept, random, result, where="in the same model box")
    if task.audit:
        session.fresh()
        _probe(session, task, tokens, kept, random, result, where="in a fresh model box")
        if task.sealed is not None:
            sealed = read_tokens(task.sealed, task)
            nothing = Kept(np.zeros(1, np.int64) - 1, np.zeros(1))
            result.metrics[f"{task.metric}.sealed"] = _bits_per_byte(session, task, sealed, sizes, nothing)
        result.audited = True
    return result


def read_tokens(path: str, task: Task) -> Tokens:
    """The held-out tokens of `path`: bytes, or whole little-endian numbers."""
    dtype = {"bytes": "u1", "uint16": "<u2", "uint32": "<u4"}[task.encoding]
    tokens = np.fromfile(Path(path), dtype=dtype).astype(np.uint32)
    if not len(tokens):
        raise SystemExit(f"score: {path} is empty")
    if int(tokens.max()) >= task.vocabulary:
        raise SystemExit(f"score: {path} holds the token {int(tokens.max())}, outside the vocabulary")
    return tokens


def token_sizes(task: Task) -> npt.NDArray[np.int64]:
    """How many bytes each token stands for; a token of 0 bytes (a marker) is not scored."""
    if task.token_bytes is None:
        return np.ones(task.vocabulary, dtype=np.int64)
    sizes = np.load(task.token_bytes, allow_pickle=False)
    if sizes.shape != (task.vocabulary,) or sizes.dtype.kind not in "iu" or int(sizes.min()) < 0:
        raise SystemExit(f"score: {task.token_bytes} is not one whole number of bytes for each token")
    return np.asarray(sizes, dtype=np.int64)


def _bits_per_byte(session: Session, task: Task, tokens: Tokens, sizes: npt.NDArray[np.int64], kept: Kept) -> float:
    nats, scored = 0.0, 0
    for rows, last, positions in _requests(task, len(tokens)):
        histories = tokens[rows] if rows.size else rows.astype(np.uint32)
        targets = tokens[positions]
        values = session.predict(histories, last).of(targets)
        nats -= float(values[sizes[targets] > 0].sum())
        scored += positions.size
        kept.note(positions.ravel(), values.ravel())
    if scored != len(tokens):
        raise SystemExit(f"score: {scored} of {len(tokens)} tokens were scored")
    return nats / log(2) / float(sizes[tokens].sum())


def _requests(task: Task, count: int) -> Iterator[tuple[npt.NDArray[np.int64], int, npt.NDArray[np.int64]]]:
    """(indices of the rows' tokens, answers a row, indices of the predicted tokens): each token once."""
    if task.mode == "window":
        size = task.context
        whole = count // size
        at_once = max(1, MOST_ANSWER_BYTES // (4 * task.vocabulary * size))
        for first in range(0, whole, at_once):
            starts = np.arange(first, min(first + at_once, whole))[:, None] * size
            yield starts + np.arange(size - 1), size, starts + np.arange(size)
        if count % size:
            start = np.array([[whole * size]])
            yield start + np.arange(count % size - 1), count % size, start + np.arange(count % size)
        return
    streams = max(1, min(task.streams, count // 32, MOST_ANSWER_BYTES // (4 * task.vocabulary)))
    edges = np.linspace(0, count, streams + 1).astype(np.int64)
    starts, lengths = edges[:-1], np.diff(edges)
    for step in range(int(lengths.max())):
        positions = (starts[lengths > step] + step)[:, None]
        history = min(step, task.context)
        yield positions + np.arange(-history, 0), 1, positions


def _history(task: Task, count: int, position: int) -> int:
    """How many tokens before `position` its request showed."""
    if task.mode == "window":
        return position % task.context
    streams = max(1, min(task.streams, count // 32, MOST_ANSWER_BYTES // (4 * task.vocabulary)))
    edges = np.linspace(0, count, streams + 1).astype(np.int64)
    start = int(edges[np.searchsorted(edges, position, side="right") - 1])
    return min(position - start, task.context)


def _choose(task: Task, count: int, random: np.random.Generator) -> Kept:
    positions = np.sort(random.choice(count, size=min(task.probes, count), replace=False))
    return Kept(positions.astype(np.int64), np.full(len(positions), np.nan))


def _probe(
    session: Session, task: Task, tokens: Tokens, kept: Kept, random: np.random.Generator, result: Result, *, where: str
) -> None:
    """Ask each probe's history again, in another order and company; in windows with other tokens after it."""
    again = np.full(len(kept.positions), np.nan)
    groups: dict[int, list[int]] = {}
    for index, position in enumerate(kept.positions.tolist()):
        groups.setdefault(_history(task, len(tokens), position), []).append(index)
    for history in random.permutation(sorted(groups)).tolist():
        members = random.permutation(np.array(groups[history]))
        width = task.context - 1 if task.mode == "window" else history
        last = task.context if task.mode == "window" else 1
        at_once = max(1, min(64, MOST_ANSWER_BYTES // (4 * task.vocabulary * last)))
        for first in range(0, len(members), at_once):
            batch = members[first : first + at_once]
            places = kept.positions[batch][:, None]
            rows = np.empty((len(batch), width), dtype=np.uint32)
            rows[:, :history] = tokens[places + np.arange(-history, 0)] if history else 0
            if width > history:  # what follows comes from elsewhere in the text
                elsewhere = random.integers(0, max(1, len(tokens) - width), size=(len(batch), 1))
                follows = tokens[(elsewhere + np.arange(width - history)) % len(tokens)]
                same = follows[:, 0] == tokens[places[:, 0]]
                follows[same, 0] = (follows[same, 0] + 1) % task.vocabulary
                rows[:, history:] = follows
            answer = session.predict(rows, last)
            targets = np.zeros((len(batch), last), dtype=np.uint32)
            column = history if task.mode == "window" else 0
            targets[:, column] = tokens[places[:, 0]]
            again[batch] = answer.of(targets)[:, column]
    _compare(task, kept, again, result, where)


def _compare(task: Task, kept: Kept, again: npt.NDArray[np.float64], result: Result, where: str) -> None:
    difference = kept.values - again
    if np.isnan(difference).any():
        raise RefusedError("malformed_answer", "a probe was not scored")
    count, result.probes = len(difference), result.probes + len(difference)
    changed = np.abs(difference) > task.tolerance
    drift = float(difference.mean())
    noise = float(difference.std()) / sqrt(count)
    if changed.any():
        worst = int(np.abs(difference).argmax())
        words = (
            f"{int(changed.sum())} of {count} answers changed when the same history was asked again {where}"
            f" (token {int(kept.positions[worst])}: log-probability {kept.values[worst]:.4g}, then {again[worst]:.4g})"
        )
    elif drift > max(task.tolerance / 10, 4 * noise):
        words = f"answers were better by {drift:.2g} nats on average when they counted than when asked again {where}"
    else:
        return
    words = f"{words}: the model keeps state across requests or sees what it has to predict"
    if task.mode == "window":
        result.remark("not_causal", words)
    else:
        result.remark("stateful", words)

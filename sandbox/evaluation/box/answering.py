"""For a project's serve.py: answer the scorer's requests with a model of the project's own.

    from arsandbox_box import log_softmax, serve

    def predict(histories, last):
        ...  # histories: uint32, rows x length; returns log-probabilities, rows x last x vocabulary

    serve(predict)

`histories[i]` are tokens that came before, oldest first; the answer for (i, j) is the distribution of the
token after its first `length - last + 1 + j` tokens. With `last` 1 that is the token after the whole row;
a row may be empty.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from . import wire

Predict = Callable[[npt.NDArray[np.uint32], int], npt.ArrayLike]


def log_softmax(logits: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Natural log-probabilities along the last axis."""
    shifted = np.asarray(logits, dtype=np.float32)
    shifted = shifted - shifted.max(axis=-1, keepdims=True)
    normaliser = np.log(np.exp(shifted).sum(axis=-1, keepdims=True, dtype=np.float64))
    return np.asarray(shifted - normaliser, dtype=np.float32)


def connect() -> socket.socket:
    """The channel that the controller made for this sandbox."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(os.environ["ARSANDBOX_CHANNEL"])
    return connection


def serve(predict: Predict) -> None:
    """Answer requests until the controller closes the channel. An exception of `predict` ends it with its words."""
    with connect() as channel:
        while True:
            try:
                header, payload = wire.receive(channel)
            except (wire.WireError, ConnectionError):
                return  # all is said
            try:
                answer = _answer(predict, bytes(payload))
            except Exception as error:  # whatever the project's code raises: said to the scorer, then it goes on
                words = f"{type(error).__name__}: {error}".encode()[: wire.MOST_WORDS]
                wire.send(channel, wire.FAILED, header.sequence, words)
                raise
            rows, last, vocabulary = answer.shape
            wire.send(
                channel, wire.ANSWER, header.sequence, wire.pack_shape(rows, last, vocabulary),
                np.ascontiguousarray(answer).data.cast("B"),
            )  # fmt: skip


def _answer(predict: Predict, payload: bytes) -> npt.NDArray[np.float32]:
    rows, length, last = wire.unpack_shape(payload)
    tokens = np.frombuffer(payload, dtype="<u4", offset=wire.SHAPE_BYTES).reshape(rows, length)
    answer = np.asarray(predict(tokens, last), dtype="<f4")
    if answer.ndim == 2 and last == 1:
        answer = answer[:, None, :]
    if answer.shape[:2] != (rows, last):
        raise ValueError(f"predict returned the shape {answer.shape} for {rows} rows with {last} answers each")
    return answer

"""The controller's side of the channel, and the scorer's, against anything that may come from a model box."""

from __future__ import annotations

import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arsandbox.sandbox.evaluation.box import wire
from arsandbox.sandbox.evaluation.box.session import RefusedError, Session
from arsandbox.sandbox.evaluation.channel import SOCKET_NAME, ChannelError, Endpoint, exchange

REQUEST = wire.Header(wire.PREDICT, 1, 12).pack() + wire.pack_shape(1, 0, 1)
RESULT = b'{"metrics": {}}'


def frame(kind: int, sequence: int, payload: bytes = b"") -> bytes:
    return wire.Header(kind, sequence, len(payload)).pack() + payload


def connected(place: Path, end: str) -> tuple[Endpoint, socket.socket]:
    """An endpoint with a peer connected to it."""
    endpoint = Endpoint(place / end, end)
    peer = socket.socket(socket.AF_UNIX)
    peer.connect(str(place / end / SOCKET_NAME))
    endpoint.accept(time.monotonic() + 10, lambda: True)
    return endpoint, peer


@contextmanager
def pair(place: Path) -> Iterator[tuple[Endpoint, socket.socket, Endpoint, socket.socket]]:
    scorer, scoring = connected(place, "scorer")
    model, answering = connected(place, "model")
    try:
        yield scorer, scoring, model, answering
    finally:
        for one in (scoring, answering, scorer, model):
            one.close()


def no_fresh() -> Endpoint:
    raise AssertionError("nobody asked for a fresh box")


def exchanged(
    place: Path, said_by_model: bytes, *, seconds: float = 5.0, then: bytes = b"", asked: bytes = REQUEST
) -> bytes:
    """One request, those bytes from the model box, and what the scorer says then."""
    with pair(place) as (scorer, scoring, model, answering):
        scoring.sendall(asked + then)
        answering.sendall(said_by_model)
        answering.shutdown(socket.SHUT_WR)
        until = time.monotonic() + seconds
        return exchange(scorer, model, until=until, answer_s=seconds, fresh=no_fresh)


def test_a_request_an_answer_and_the_result(tmp_path: Path) -> None:
    answer = frame(wire.ANSWER, 1, b"anything at all")
    assert exchanged(tmp_path, answer, then=frame(wire.RESULT, 2, RESULT)) == RESULT


@pytest.mark.parametrize(
    ("said", "end"),
    [
        (b"", "model"), (b"short", "model"), (b"x" * 20, "model"), (frame(wire.RESULT, 1, RESULT), "model"),
        (frame(wire.ANSWER, 2), "model"), (frame(wire.PREDICT, 1), "model"), (frame(wire.FRESH, 1), "model"),
        (wire.Header(wire.ANSWER, 1, wire.MOST_BYTES + 1).pack(), "model"),
        (wire.Header(wire.ANSWER, 1, 100).pack() + b"less", "model"),
        (frame(wire.ANSWER, 1)[:4] + b"\x02" + frame(wire.ANSWER, 1)[5:], "model"),
    ],
)  # fmt: skip
def test_what_a_model_box_may_not_say(said: bytes, end: str, tmp_path: Path) -> None:
    with pytest.raises(ChannelError) as raised:
        exchanged(tmp_path, said, then=frame(wire.RESULT, 2, RESULT))
    assert raised.value.end == end


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(said=st.one_of(st.binary(max_size=200), st.binary(max_size=40).map(lambda b: frame(wire.ANSWER, 1, b))))
def test_whatever_a_model_box_says_the_exchange_goes_on_or_ends(
    said: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    try:
        assert exchanged(tmp_path_factory.mktemp("c"), said, then=frame(wire.RESULT, 2, RESULT)) == RESULT
    except ChannelError as error:
        assert error.end == "model"


def test_a_model_box_that_says_nothing_runs_out_of_time(tmp_path: Path) -> None:
    with pair(tmp_path) as (scorer, scoring, model, _), pytest.raises(ChannelError) as raised:
        scoring.sendall(REQUEST)
        exchange(scorer, model, until=time.monotonic() + 0.2, answer_s=0.2, fresh=no_fresh)
    assert raised.value.end == "time"


def test_a_model_box_that_reads_nothing_runs_out_of_time(tmp_path: Path) -> None:
    with pair(tmp_path) as (scorer, scoring, model, _), pytest.raises(ChannelError) as raised:
        big = frame(wire.PREDICT, 1, b"\0" * 5_000_000)
        writer = threading.Thread(target=_send_quietly, args=(scoring, big))
        writer.start()
        try:
            exchange(scorer, model, until=time.monotonic() + 0.5, answer_s=0.5, fresh=no_fresh)
        finally:
            scorer.hang_up()
            writer.join()
    assert raised.value.end == "time"


def _send_quietly(peer: socket.socket, data: bytes) -> None:
    try:
        peer.sendall(data)
    except OSError:
        return  # hung up, as the test wants


def test_the_controller_keeps_only_a_piece_of_a_frame(tmp_path: Path) -> None:
    with pair(tmp_path) as (scorer, scoring, model, answering):
        size = 30_000_000

        def answer() -> None:
            wire.receive(answering)
            answering.sendall(wire.Header(wire.ANSWER, 1, size).pack())
            for _ in range(size // 1_000_000):
                answering.sendall(b"\0" * 1_000_000)

        received = []

        def read() -> None:
            scoring.sendall(REQUEST)
            header = wire.unpack_header(bytes(wire.receive_exactly(scoring, wire.HEADER_BYTES)))
            for _ in range(header.length // 1_000_000):
                received.append(len(wire.receive_exactly(scoring, 1_000_000)))
            scoring.sendall(frame(wire.RESULT, 2, RESULT))

        threads = [threading.Thread(target=answer), threading.Thread(target=read)]
        tracemalloc.start()
        try:
            for thread in threads:
                thread.start()
            assert exchange(scorer, model, until=time.monotonic() + 60, answer_s=60, fresh=no_fresh) == RESULT
            for thread in threads:
                thread.join()
            assert sum(received) == size
            assert tracemalloc.get_traced_memory()[1] < 8_000_000
        finally:
            tracemalloc.stop()


def test_a_second_connection_is_not_taken(tmp_path: Path) -> None:
    endpoint, peer = connected(tmp_path, "model")
    with peer, pytest.raises(OSError, match="refused"), socket.socket(socket.AF_UNIX) as second:
        second.connect(str(tmp_path / "model" / SOCKET_NAME))
    endpoint.close()


def test_a_box_that_ended_is_not_waited_for(tmp_path: Path) -> None:
    endpoint = Endpoint(tmp_path / "model", "model")
    with pytest.raises(ChannelError) as raised:
        endpoint.accept(time.monotonic() + 60, lambda: False)
    assert raised.value.end == "model"
    endpoint.close()


def asked(reply: Callable[[socket.socket], None]) -> None:
    """Ask for two distributions over four tokens; `reply` answers."""
    ours, theirs = socket.socketpair()

    def answer() -> None:
        with theirs:
            wire.receive(theirs)
            reply(theirs)

    thread = threading.Thread(target=answer)
    thread.start()
    with ours:
        try:
            Session(ours, 4).predict(np.zeros((2, 3), dtype=np.uint32), 1)
        finally:
            thread.join()


LOGS = np.log(np.full((2, 1, 4), 0.25, dtype="<f4")).tobytes()


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_whatever_is_answered_the_scorer_takes_it_or_refuses_it(data: st.DataObject) -> None:
    payload = bytearray(wire.pack_shape(2, 1, 4) + LOGS)
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(payload)))
        payload[at : at + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    try:
        asked(lambda peer: wire.send(peer, wire.ANSWER, 1, bytes(payload)))
    except RefusedError as error:
        assert error.code in ("malformed_answer", "not_finite", "not_normalised")


@pytest.mark.parametrize(("kind", "code"), [(wire.FAILED, "model_failed"), (wire.RESULT, "malformed_answer")])
def test_words_and_wrong_kinds(kind: int, code: str) -> None:
    with pytest.raises(RefusedError) as raised:
        asked(lambda peer: wire.send(peer, kind, 1, b"\xff\xfewords"))
    assert raised.value.code == code

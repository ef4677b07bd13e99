"""The controller's side of the evaluation's channel: one Unix socket a sandbox, frames handed on in strict turns.

Nothing that a model box sends is looked into: its frames are bounded by their header, passed on in small
pieces, and answer one request each. Only the scorer may say what the result is.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable
from pathlib import Path

from arsandbox.sandbox.evaluation.box import wire
from arsandbox.sandbox.evaluation.box.wire import Header, WireError

SOCKET_NAME = "channel.sock"
_PIECE = 256 * 1024
_LOOK_S = 0.1


class ChannelError(Exception):
    """The exchange cannot go on; `end` is whose fault that is: `model`, `scorer` or `time`."""

    def __init__(self, end: str, detail: str) -> None:
        super().__init__(detail)
        self.end, self.detail = end, detail


class Endpoint:
    """A socket in `directory` for one connection of one sandbox; the directory is mounted there read-only."""

    def __init__(self, directory: Path, end: str) -> None:
        self.directory, self._end = directory, end
        self._connection: socket.socket | None = None
        directory.mkdir()
        directory.chmod(0o755)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # By a descriptor: a socket's path may have 107 bytes, a state directory's more.
        place = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._listener.bind(f"/proc/self/fd/{place}/{SOCKET_NAME}")
        finally:
            os.close(place)
        (directory / SOCKET_NAME).chmod(0o666)
        self._listener.listen(1)

    def accept(self, until: float, alive: Callable[[], bool]) -> None:
        """Wait for the sandbox's connection; no second one is taken. Raises ChannelError."""
        while not select.select([self._listener], [], [], _LOOK_S)[0]:
            if not alive():
                raise ChannelError(self._end, "it ended before it was asked anything")
            if time.monotonic() >= until:
                raise ChannelError("time", "it did not connect in time")
        self._connection, _ = self._listener.accept()
        self._connection.setblocking(False)
        self._listener.close()

    def header(self, until: float) -> Header:
        """The next frame's header. Raises ChannelError."""
        try:
            return wire.unpack_header(self._exactly(wire.HEADER_BYTES, until))
        except WireError as error:
            raise ChannelError(self._end, str(error)) from error

    def payload(self, header: Header, most: int, until: float) -> bytes:
        """The payload of a frame that is meant for the controller. Raises ChannelError."""
        if header.length > most:
            raise ChannelError(self._end, f"a frame of {header.length} bytes, more than {most}")
        return self._exactly(header.length, until)

    def pass_on(self, header: Header, to: Endpoint, until: float) -> None:
        """Hand the frame that `header` begins to the other end, a piece at a time. Raises ChannelError."""
        to.send(header.pack(), until)
        left = header.length
        while left:
            piece = self._some(min(left, _PIECE), until)
            to.send(piece, until)
            left -= len(piece)

    def send(self, data: bytes, until: float) -> None:
        """Send `data`. Raises ChannelError when the other end is gone or does not read."""
        view = memoryview(data)
        while view:
            self._wait(until, writing=True)
            try:
                view = view[self._open.send(view) :]
            except BlockingIOError:
                continue
            except OSError as error:
                raise ChannelError(self._end, f"the connection broke: {error.strerror}") from error

    def hang_up(self) -> None:
        """End the conversation; the sandbox, and whoever waits for it here, sees the end of the stream."""
        if self._connection is not None:
            try:
                self._connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                return  # the other end is gone already

    def close(self) -> None:
        """Close everything, once nobody waits here any more."""
        self._listener.close()
        if self._connection is not None:
            self._connection.close()

    @property
    def _open(self) -> socket.socket:
        if self._connection is None:
            raise ChannelError(self._end, "it is not connected")
        return self._connection

    def _exactly(self, count: int, until: float) -> bytes:
        data = bytearray()
        while len(data) < count:
            data += self._some(count - len(data), until)
        return bytes(data)

    def _some(self, most: int, until: float) -> bytes:
        while True:
            self._wait(until, writing=False)
            try:
                data = self._open.recv(min(most, _PIECE))
            except BlockingIOError:
                continue
            except OSError as error:
                raise ChannelError(self._end, f"the connection broke: {error.strerror}") from error
            if not data:
                raise ChannelError(self._end, "it closed the connection")
            return data

    def _wait(self, until: float, *, writing: bool) -> None:
        left = until - time.monotonic()
        waiting = [self._open]
        ready = left > 0 and any(select.select([] if writing else waiting, waiting if writing else [], [], left))
        if not ready:
            raise ChannelError("time", f"the {self._end} {'took' if writing else 'gave'} nothing in time")


def exchange(
    scorer: Endpoint, model: Endpoint | None, *, until: float, answer_s: float, fresh: Callable[[], Endpoint]
) -> bytes:
    """Hand requests and answers on until the scorer says its result; returns that, as bytes.

    `until` is the monotonic time when all must be over, `answer_s` the seconds for one answer; `fresh`
    replaces the model box. Raises ChannelError.
    """
    while True:
        asked = scorer.header(until)
        if asked.kind == wire.RESULT:
            return scorer.payload(asked, 1024**2, until)
        if asked.kind == wire.FRESH and asked.length == 0:
            model = fresh()
            scorer.send(Header(wire.READY, asked.sequence, 0).pack(), until)
            continue
        if asked.kind != wire.PREDICT or model is None:
            raise ChannelError("scorer", f"it sent a frame of kind {asked.kind}")
        soon = min(until, time.monotonic() + answer_s)
        scorer.pass_on(asked, model, soon)
        answered = model.header(soon)
        if answered.kind not in (wire.ANSWER, wire.FAILED) or answered.sequence != asked.sequence:
            raise ChannelError("model", "it answered out of turn")
        model.pass_on(answered, scorer, soon)

"""A container's output, read in a thread with a cap.

The reader never stops reading: a reader that does stalls the engine's kill, wait and remove calls
for that container. Over the cap it counts and drops.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

from docker.utils.socket import frames_iter

from arsandbox.sandbox.engines.lines import WholeLines
from arsandbox.sandbox.engines.port import Watcher


class OutputReader(threading.Thread):
    """Passes up to `cap` bytes from an attached connection to the watcher, then only counts."""

    def __init__(self, connection: Any, watcher: Watcher, cap: int) -> None:
        super().__init__(name="sandbox-output", daemon=True)
        self._connection, self._lines, self._cap = connection, WholeLines(watcher), cap
        self.total = 0
        self.error: Exception | None = None
        self._shut = False

    @property
    def over(self) -> bool:
        """Whether more than the cap has been written."""
        return self.total > self._cap

    def run(self) -> None:
        """Read until the engine closes the stream."""
        try:
            frames: Iterator[tuple[int, bytes]] = frames_iter(self._connection, tty=False)  # type: ignore[no-untyped-call]
            for stream, chunk in frames:
                room = self._cap - self.total
                self.total += len(chunk)
                if room > 0:
                    self._lines.pass_on(stream, chunk[:room])
        except Exception as error:  # noqa: BLE001 - kept, and raised in the waiting thread
            if not self._shut:
                self.error = error
        self._lines.end()

    def shut(self) -> None:
        """Hang up: for a sandbox that is being ended while whoever takes its output does not. Safe to repeat.

        An attached reader that stalls would hold up the engine's own kill, wait and remove.
        """
        self._shut = True
        try:
            getattr(self._connection, "_sock", self._connection).shutdown(socket.SHUT_RDWR)
        except (OSError, ValueError):
            return  # closed already

    def close(self) -> None:
        """Wait for the end of the stream, then close the connection."""
        self.join(timeout=10)
        response = getattr(self._connection, "_response", None)  # docker-py ties the socket's life to it
        if response is not None:
            response.close()
        self._connection.close()

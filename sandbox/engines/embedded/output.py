"""A sandbox's output, read from its pipes in a thread with a cap; over the cap it counts and drops."""

from __future__ import annotations

import os
import selectors
import threading
from collections.abc import Sequence

from arsandbox.sandbox.engines.lines import WholeLines
from arsandbox.sandbox.engines.port import Watcher

_BLOCK = 1 << 16


class PipeReader(threading.Thread):
    """Passes up to `cap` bytes from `descriptors`, a pipe each, to the watcher, then only counts; closes them."""

    def __init__(self, descriptors: Sequence[int], watcher: Watcher, cap: int) -> None:
        super().__init__(name="sandbox-output", daemon=True)
        self._descriptors, self._lines, self._cap = descriptors, WholeLines(watcher), cap
        self.total = 0
        self.error: Exception | None = None
        self.last = b""  # for a setup that failed: what it said

    @property
    def over(self) -> bool:
        """Whether more than the cap has been written."""
        return self.total > self._cap

    def run(self) -> None:
        """Read until no process holds the other ends."""
        try:
            self._read()
        except Exception as error:  # noqa: BLE001 - kept, and raised in the waiting thread
            self.error = error

    def _read(self) -> None:
        left = set(self._descriptors)
        try:
            with selectors.DefaultSelector() as selector:
                for descriptor in self._descriptors:
                    selector.register(descriptor, selectors.EVENT_READ)
                while left:
                    for key, _ in selector.select():
                        block = os.read(key.fd, _BLOCK)
                        if not block:
                            selector.unregister(key.fd)
                            left.remove(key.fd)
                            os.close(key.fd)
                            continue
                        room = self._cap - self.total
                        self.total += len(block)
                        self.last = (self.last + block)[-2000:]
                        if room > 0:
                            self._lines.pass_on(key.fd, block[:room])
            self._lines.end()
        finally:
            for descriptor in left:  # whoever writes there is told, and does not wait for ever
                os.close(descriptor)

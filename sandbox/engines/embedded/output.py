"""A sandbox's output, read from its pipe in a thread with a cap; over the cap it counts and drops."""

from __future__ import annotations

import os
import threading

from arsandbox.sandbox.engines.port import Watcher

_BLOCK = 1 << 16


class PipeReader(threading.Thread):
    """Passes up to `cap` bytes from the pipe `descriptor` to the watcher, then only counts; closes it at its end."""

    def __init__(self, descriptor: int, watcher: Watcher, cap: int) -> None:
        super().__init__(name="sandbox-output", daemon=True)
        self._descriptor, self._watcher, self._cap = descriptor, watcher, cap
        self.total = 0
        self.last = b""  # for a setup that failed: what it said

    @property
    def over(self) -> bool:
        """Whether more than the cap has been written."""
        return self.total > self._cap

    def run(self) -> None:
        """Read until no process holds the other end."""
        while block := os.read(self._descriptor, _BLOCK):
            room = self._cap - self.total
            self.total += len(block)
            self.last = (self.last + block)[-2000:]
            if room > 0:
                self._watcher.output(block[:room])
        os.close(self._descriptor)

"""Standard output and error come by two pipes and become one text: neither may split the other's line."""

from __future__ import annotations

from arsandbox.sandbox.engines.port import Watcher

_LONGEST_LINE = 64 * 1024


class WholeLines:
    """Hands whole lines of several streams to a watcher; a carriage return ends one, too."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        self._begun: dict[int, bytes] = {}  # by stream, the line that has not ended yet

    def pass_on(self, stream: int, chunk: bytes) -> None:
        """Take what `stream` wrote; more than 64 KiB of one line are handed on unfinished."""
        text = self._begun.pop(stream, b"") + chunk
        end = max(text.rfind(b"\n"), text.rfind(b"\r")) + 1
        if len(text) - end > _LONGEST_LINE:
            end = len(text)
        if end:
            self._watcher.output(text[:end])
        if end < len(text):
            self._begun[stream] = text[end:]

    def end(self) -> None:
        """Hand on the lines that nobody ended."""
        for rest in self._begun.values():
            self._watcher.output(rest)
        self._begun.clear()

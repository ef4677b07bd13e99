"""Bytes in both directions between a client and a server: bounded in number and in idle time."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass

PIECE = 64 * 1024


@dataclass(frozen=True)
class Bounds:
    """What a stage's proxy may be used for: connections at once, bytes in all, seconds of silence and for each step."""

    connections: int = 64
    total_bytes: int = 64 * 1024**3
    idle_s: float = 120.0
    step_s: float = 20.0


class ExhaustedError(Exception):
    """The stage's bytes are used up."""


@dataclass
class Meter:
    """Bytes that a stage may still send and receive."""

    left: int

    def take(self, count: int) -> None:
        """Account for `count` bytes. Raises ExhaustedError."""
        self.left -= count
        if self.left < 0:
            raise ExhaustedError


@dataclass
class Link:
    """A client's connection joined to a server's; `sent` and `received` count bytes as the client sees them."""

    client: tuple[asyncio.StreamReader, asyncio.StreamWriter]
    server: tuple[asyncio.StreamReader, asyncio.StreamWriter]
    meter: Meter
    idle_s: float
    sent: int = 0
    received: int = 0
    _moved: bool = False

    async def send(self, data: bytes) -> None:
        """Pass `data` to the server. Raises ExhaustedError, OSError."""
        self.meter.take(len(data))
        self.sent += len(data)
        self.server[1].write(data)
        await self.server[1].drain()
        self._moved = True

    async def both_ways(self) -> None:
        """Until both ends have closed, either breaks, or nothing moves for `idle_s`. Raises ExhaustedError, OSError."""
        await self._until_silent({asyncio.ensure_future(self._up()), asyncio.ensure_future(self._down())})

    async def answered(self, request: Coroutine[None, None, None]) -> None:
        """Send `request` and pass on what answers it, until the server closes. Raises as `both_ways`."""
        answer = asyncio.ensure_future(self._down())
        await self._until_silent({asyncio.ensure_future(request), answer}, last=answer)

    async def _up(self) -> None:
        while data := await self.client[0].read(PIECE):
            await self.send(data)
        _end(self.server[1])

    async def _down(self) -> None:
        while data := await self.server[0].read(PIECE):
            self.meter.take(len(data))
            self.received += len(data)
            self.client[1].write(data)
            await self.client[1].drain()
            self._moved = True
        _end(self.client[1])

    async def _until_silent(self, tasks: set[asyncio.Task[None]], *, last: asyncio.Task[None] | None = None) -> None:
        try:
            pending = tasks
            while pending and not (last and last.done()):
                self._moved = False
                done, pending = await asyncio.wait(pending, timeout=self.idle_s, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
                if not done and not self._moved:
                    return
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _end(writer: asyncio.StreamWriter) -> None:
    """Say that no more will come. Raises OSError where the other end is gone."""
    if writer.can_write_eof() and not writer.is_closing():
        writer.write_eof()

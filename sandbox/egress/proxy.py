"""The proxy of one stage: outside the sandbox, reached through one Unix socket, in a thread of its own.

It resolves names itself and connects to the very addresses that it has checked, so that no second answer of a
name server counts. Nothing of a tunnel reaches the server before its TLS greeting has named the same host.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from arsandbox.sandbox.egress.destinations import Allowlist, DeniedError, Destination
from arsandbox.sandbox.egress.hello import HelloReader
from arsandbox.sandbox.egress.journal import Journal
from arsandbox.sandbox.egress.relay import PIECE, Bounds, ExhaustedError, Link, Meter
from arsandbox.sandbox.egress.request import Asked, Onward, OnwardRequest, RequestReader
from arsandbox.sandbox.errors import MachineError
from arsandbox.sandbox.models import EgressDecision, EgressReport

SOCKET_NAME = "egress.sock"
Resolver = Callable[[str], list[str]]
_RESOLVERS = 4
_MOST_ADDRESSES = 8
_STATUS = {
    EgressDecision.MALFORMED: "400 Bad Request",
    EgressDecision.UNRESOLVABLE: "502 Bad Gateway",
    EgressDecision.UNREACHABLE: "502 Bad Gateway",
    EgressDecision.LIMIT: "503 Service Unavailable",
}
_Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def lookup(host: str) -> list[str]:
    """The addresses of `host` by the system's resolver, IPv4 first. Raises OSError."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    found.sort(key=lambda one: one[0] is not socket.AF_INET)
    return list(dict.fromkeys(str(one[4][0]) for one in found))


class Proxy:
    """Context manager: from entering to leaving, `directory` holds a socket where `allowlist` may be reached."""

    def __init__(
        self, directory: Path, allowlist: Allowlist, *, resolve: Resolver = lookup, bounds: Bounds | None = None
    ) -> None:
        self.directory, self._allowlist, self._resolve = directory, allowlist, resolve
        self._bounds = bounds or Bounds()
        self._meter = Meter(self._bounds.total_bytes)
        self._journal = Journal()
        self._open = 0
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._ready = threading.Event()
        self._resolvers = ThreadPoolExecutor(_RESOLVERS, "egress-resolver")
        self._thread = threading.Thread(target=self._run, name="egress-proxy", daemon=True)
        self._listener = self._listen()

    def __enter__(self) -> Proxy:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Break every connection off and take no more; safe to repeat."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()
        # A name server that does not answer holds its own thread, never us.
        self._resolvers.shutdown(wait=False, cancel_futures=True)

    def report(self) -> EgressReport:
        """Every request; complete once stopped."""
        return self._journal.report()

    def _listen(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.directory.mkdir()
            self.directory.chmod(0o755)
            # By a descriptor: a socket's path may have 107 bytes, a state directory's more.
            place = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                listener.bind(f"/proc/self/fd/{place}/{SOCKET_NAME}")
            finally:
                os.close(place)
            (self.directory / SOCKET_NAME).chmod(0o666)
            listener.listen(128)
        except OSError as error:
            listener.close()
            raise MachineError(f"cannot open the proxy's socket in {self.directory}: {error.strerror}") from error
        return listener

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._ready.set()
            self._loop.close()

    async def _serve(self) -> None:
        clients: set[asyncio.Task[None]] = set()

        def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.ensure_future(self._client((reader, writer)))
            clients.add(task)
            task.add_done_callback(clients.discard)

        server = await asyncio.start_unix_server(accepted, sock=self._listener, limit=PIECE)
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in clients:
            task.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
        await asyncio.sleep(0)  # the aborted connections are closed by the loop's next round

    async def _client(self, client: _Streams) -> None:
        """One connection from the sandbox, from its request to its end; every one leaves a row in the journal."""
        where: Destination | None = None
        link: Link | None = None
        decision = EgressDecision.ALLOWED
        self._open += 1
        try:
            if self._open > self._bounds.connections:
                raise DeniedError(EgressDecision.LIMIT, f"more than {self._bounds.connections} connections at once")
            request = RequestReader()
            asked = await self._asked(client[0], request)
            where = asked.destination
            self._allowlist.require(where)
            link = Link(client, await self._connect(where), self._meter, self._bounds.idle_s)
            if asked.onward is None:
                await self._tunnel(link, where, request)
            else:
                await self._plain(link, asked.onward, request)
        except DeniedError as refused:
            decision = refused.decision
            await _refuse(client[1], refused)
        except ExhaustedError:
            decision = EgressDecision.LIMIT
        except (OSError, TimeoutError):
            pass  # an end that broke off: what it moved is counted
        except asyncio.CancelledError:
            for _, writer in (client, *([link.server] if link else [])):
                writer.transport.abort()
            raise
        finally:
            self._open -= 1
            sent, received = (link.sent, link.received) if link else (0, 0)
            self._journal.add(where, decision, sent=sent, received=received)
            if link is not None:
                link.server[1].close()
            client[1].close()

    async def _asked(self, reader: asyncio.StreamReader, request: RequestReader) -> Asked:
        try:
            async with asyncio.timeout(self._bounds.step_s):
                while True:
                    asked = request.feed(await reader.read(PIECE))
                    if asked is not None:
                        return asked
        except TimeoutError as error:
            raise DeniedError(EgressDecision.MALFORMED, "no request came in time") from error

    async def _connect(self, where: Destination) -> _Streams:
        """A connection to an address of `where` that was checked. Raises DeniedError."""
        addresses = [where.bare_host] if where.is_address else await self._addresses(where)
        self._allowlist.require_addresses(where, addresses)
        try:
            async with asyncio.timeout(self._bounds.step_s):
                for address in addresses[:_MOST_ADDRESSES]:
                    try:
                        return await asyncio.open_connection(address, where.port, limit=PIECE)
                    except OSError:
                        continue
        except TimeoutError:
            pass
        raise DeniedError(EgressDecision.UNREACHABLE, f"{where} does not answer")

    async def _addresses(self, where: Destination) -> list[str]:
        try:
            async with asyncio.timeout(self._bounds.step_s):
                found = await self._loop.run_in_executor(self._resolvers, self._resolve, where.bare_host)
        except (OSError, UnicodeError, TimeoutError) as error:
            raise DeniedError(EgressDecision.UNRESOLVABLE, f"the name {where.host} cannot be resolved") from error
        if not found:
            raise DeniedError(EgressDecision.UNRESOLVABLE, f"the name {where.host} has no address")
        return found

    async def _tunnel(self, link: Link, where: Destination, request: RequestReader) -> None:
        """Answer a CONNECT, check the TLS greeting, then pass on both ways. Raises DeniedError."""
        link.client[1].write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        greeting, data, hello = bytearray(), request.early(), HelloReader()
        try:
            async with asyncio.timeout(self._bounds.step_s):
                await link.client[1].drain()
                while True:
                    greeting += data
                    if data and hello.feed(data):
                        break
                    data = await link.client[0].read(PIECE)
                    if not data:
                        raise DeniedError(EgressDecision.NOT_TLS, "the tunnel was closed before a TLS greeting")
        except TimeoutError as error:
            raise DeniedError(EgressDecision.NOT_TLS, "no TLS greeting came in time") from error
        # An address cannot stand in a greeting (RFC 6066 3): there it must name nobody.
        if (hello.name or "").lower() != ("" if where.is_address else where.host):
            raise DeniedError(EgressDecision.OTHER_NAME, f"the TLS greeting does not name {where.host}")
        await link.send(bytes(greeting))
        await link.both_ways()

    async def _plain(self, link: Link, wanted: OnwardRequest, request: RequestReader) -> None:
        """Pass one plain HTTP request on, and then whatever answers it. Raises DeniedError."""
        onward = Onward()

        async def send() -> None:
            await link.send(onward.encode(wanted))
            parts, complete = request.body(None)
            while True:
                for part in parts:
                    await link.send(onward.encode(part))
                if complete:
                    return
                parts, complete = request.body(await link.client[0].read(PIECE))

        await link.answered(send())


async def _refuse(writer: asyncio.StreamWriter, refused: DeniedError) -> None:
    """Say why, in HTTP; in a tunnel that was already open this ends the TLS greeting, which is as good."""
    body = f"arsandbox: {refused.detail} ({refused.decision.value})\n".encode("utf-8", "replace")
    status = _STATUS.get(refused.decision, "403 Forbidden")
    head = f"HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    try:
        async with asyncio.timeout(5):
            writer.write(head.encode("ascii") + body)
            await writer.drain()
    except (OSError, TimeoutError):
        return  # whoever asked is gone

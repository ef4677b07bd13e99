"""What a client asks of the proxy, parsed by h11: CONNECT for tunnels, an absolute http:// target for plain HTTP."""

from __future__ import annotations

import re
from dataclasses import dataclass

import h11

from arsandbox.sandbox.egress.destinations import DeniedError, Destination
from arsandbox.sandbox.models import EgressDecision

OnwardRequest = h11.Request
MOST_HEAD_BYTES = 32 * 1024
_TARGET = re.compile(r"(?i:http)://(?P<authority>[^/?#@\s]+)(?P<path>[/?]\S*)?", re.ASCII)
# Hop-by-hop (RFC 9110 7.6.1), or ours to say.
_DROPPED = {b"connection", b"keep-alive", b"te", b"trailer", b"upgrade", b"host"}


@dataclass(frozen=True)
class Asked:
    """A request for `destination`. `onward` is the request to send there; None for a tunnel."""

    destination: Destination
    onward: h11.Request | None


class RequestReader:
    """One client's one request: any bytes after its end are never passed on as another."""

    def __init__(self) -> None:
        self._client = h11.Connection(h11.SERVER, max_incomplete_event_size=MOST_HEAD_BYTES)

    def feed(self, data: bytes) -> Asked | None:
        """Take more bytes; the request once its head is complete. Raises DeniedError for anything else than one."""
        try:
            self._client.receive_data(data)
            event = self._client.next_event()
        except h11.RemoteProtocolError as error:
            raise DeniedError(EgressDecision.MALFORMED, "not an HTTP/1.1 request") from error
        if event is h11.NEED_DATA:
            return None
        if not isinstance(event, h11.Request):
            raise DeniedError(EgressDecision.MALFORMED, "the connection ended before a request")
        return _asked(event)

    def early(self) -> bytes:
        """What came after a CONNECT, before it was answered."""
        return self._client.trailing_data[0]

    def body(self, data: bytes | None) -> tuple[list[h11.Data | h11.EndOfMessage], bool]:
        """Parts of the body in `data` (None: look at what is here), and whether it is complete. Raises DeniedError."""
        parts: list[h11.Data | h11.EndOfMessage] = []
        try:
            if data is not None:
                self._client.receive_data(data)
            while True:
                event = self._client.next_event()
                if isinstance(event, h11.Data):
                    parts.append(h11.Data(data=bytes(event.data)))
                elif isinstance(event, h11.EndOfMessage):
                    parts.append(h11.EndOfMessage())
                    return parts, True
                elif event is h11.NEED_DATA:
                    return parts, False
                else:
                    raise DeniedError(EgressDecision.MALFORMED, "the request ended before its body")
        except h11.RemoteProtocolError as error:
            raise DeniedError(EgressDecision.MALFORMED, "not the body that the request announced") from error


class Onward:
    """The server's side of a plain request: its parts as bytes."""

    def __init__(self) -> None:
        self._server = h11.Connection(h11.CLIENT)

    def encode(self, part: h11.Request | h11.Data | h11.EndOfMessage) -> bytes:
        """`part` as it goes to the server. Raises DeniedError where the parts do not fit together."""
        try:
            return self._server.send(part) or b""
        except h11.LocalProtocolError as error:
            raise DeniedError(EgressDecision.MALFORMED, "not a request that can be passed on") from error


def _asked(request: h11.Request) -> Asked:
    target = request.target.decode("latin-1")
    if request.method == b"CONNECT":
        return Asked(Destination.parse(target), None)
    found = _TARGET.fullmatch(target)
    if found is None:
        raise DeniedError(EgressDecision.MALFORMED, "the target is neither CONNECT's host:port nor an http:// address")
    where = Destination.parse(found["authority"], default_port=80)
    path = found["path"] or "/"
    headers = [(b"Host", found["authority"].encode("ascii"))]
    headers += [(n, v) for n, v in request.headers if n not in _DROPPED and not n.startswith(b"proxy-")]
    headers.append((b"Connection", b"close"))
    onward = h11.Request(
        method=request.method, target=path if path.startswith("/") else f"/{path}", headers=headers, http_version=b"1.1"
    )
    return Asked(where, onward)

"""The server's name in the first bytes of a TLS connection, read by OpenSSL itself, as servers read it.

A server-side handshake is begun in memory and given up as soon as OpenSSL has parsed the ClientHello; no key,
no certificate and no answer is ever made of it.
"""

from __future__ import annotations

import ssl
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from arsandbox.sandbox.egress.destinations import DeniedError
from arsandbox.sandbox.models import EgressDecision

# OpenSSL takes no larger ClientHello either (SSL3_RT_MAX_PLAIN_LENGTH times its record count is far above).
MOST_BYTES = 64 * 1024


@contextmanager
def _quiet() -> Iterator[None]:
    """A name that is no text ends the handshake in OpenSSL; Python would print that error too, each time."""
    before = sys.unraisablehook

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        if not isinstance(unraisable.exc_value, UnicodeError):
            before(unraisable)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


class HelloReader:
    """Takes the bytes of a connection until its ClientHello is complete."""

    def __init__(self) -> None:
        self._seen: list[str | None] = []
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.sni_callback = _noting(self._seen)
        self._input = ssl.MemoryBIO()
        self._session = context.wrap_bio(self._input, ssl.MemoryBIO(), server_side=True)
        self._length = 0

    @property
    def name(self) -> str | None:
        """The name that the client asked for, once its greeting is complete; None where it named nobody."""
        return self._seen[0] if self._seen else None

    def feed(self, data: bytes) -> bool:
        """Take more bytes; True once `name` holds what the client asked for (None: it named nobody).

        Raises DeniedError when this is no ClientHello, or one larger than MOST_BYTES.
        """
        self._length += len(data)
        if self._length > MOST_BYTES:
            raise DeniedError(EgressDecision.NOT_TLS, f"the TLS greeting is larger than {MOST_BYTES} bytes")
        self._input.write(data)
        try:
            with _quiet():
                self._session.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError as error:
            if not self._seen:
                raise DeniedError(
                    EgressDecision.NOT_TLS, "the tunnel does not begin with a TLS greeting of version 1.2 or later"
                ) from error
        return bool(self._seen)


def _noting(seen: list[str | None]) -> Callable[[ssl.SSLObject, str | None, ssl.SSLContext], int]:
    """A callback that knows no reader: in a cycle with it a context would outlive its connection, 50 kB each."""

    def note(_session: ssl.SSLObject, name: str | None, _context: ssl.SSLContext) -> int:
        seen.append(name)
        return int(ssl.AlertDescription.ALERT_DESCRIPTION_CLOSE_NOTIFY)

    return note

"""Egress proxies, and real servers on loopback behind them. Only names are fake."""

from __future__ import annotations

import datetime
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from arsandbox.policies.model import Policy
from arsandbox.sandbox.egress.destinations import Allowlist
from arsandbox.sandbox.egress.proxy import SOCKET_NAME, Proxy
from arsandbox.sandbox.egress.relay import Bounds
from arsandbox.sandbox.models import EgressRequest

NAME = "model.example"


class Server:
    """A server on loopback that answers each connection with `answer(connection)`, in threads."""

    def __init__(self, answer: Callable[[socket.socket], None]) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.seen: list[bytes] = []
        self.connections = 0
        self._answer = answer
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._one, args=(connection,), daemon=True).start()

    def _one(self, connection: socket.socket) -> None:
        with connection:
            try:
                self._answer(connection)
            except OSError:
                return

    def close(self) -> None:
        """Accept no more."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a self-signed certificate for NAME, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("identity") / "identity.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.fixture
def tls(identity: Path) -> Iterator[Server]:
    """Sends back, over TLS, what it gets."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(identity)

    def answer(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as session:
            while data := session.recv(65536):
                session.sendall(data)

    server = Server(answer)
    yield server
    server.close()


@pytest.fixture
def plain() -> Iterator[Server]:
    """Answers each HTTP request with its own bytes, and closes."""

    def answer(connection: socket.socket) -> None:
        data = b""
        while b"\r\n\r\n" not in data or (b"chunked" in data and not data.endswith(b"0\r\n\r\n")):
            piece = connection.recv(65536)
            if not piece:  # the proxy refused the rest; asked again, an ended connection says so without end
                return
            data += piece
        server.seen.append(data)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(data) + data)

    server = Server(answer)
    yield server
    server.close()


Start = Callable[..., Proxy]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a proxy for `hosts`; those in `private` may be on loopback. Names stand for `addresses`."""
    started: list[Proxy] = []

    def make(
        *hosts: str, private: tuple[str, ...] = (), addresses: tuple[str, ...] = ("127.0.0.1",),
        bounds: Bounds | None = None,
    ) -> Proxy:  # fmt: skip
        policy = Policy(network="allowlist", hosts=hosts, private_hosts=private)
        allowlist = Allowlist.of(policy)
        assert allowlist is not None
        place = tmp_path / f"proxy{len(started)}"
        proxy = Proxy(place, allowlist, resolve=lambda host: list(addresses), bounds=bounds)
        started.append(proxy.__enter__())
        return proxy

    yield make
    for proxy in started:
        proxy.stop()


def connect(proxy: Proxy) -> socket.socket:
    """A connection to the proxy's socket."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(20)
    try:
        connection.connect(str(proxy.directory / SOCKET_NAME))
    except OSError:
        connection.close()
        raise
    return connection


def ask(proxy: Proxy, data: bytes) -> bytes:
    """All that comes back for `data`."""
    with connect(proxy) as connection:
        try:
            connection.sendall(data)
        except BrokenPipeError:
            pass  # refused before it was read; the answer is there
        return everything(connection)


def everything(connection: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    found = b""
    try:
        while data := connection.recv(65536):
            found += data
    except ConnectionResetError:
        pass
    return found


def open_tunnel(proxy: Proxy, target: str) -> tuple[socket.socket, bytes]:
    """A connection after its CONNECT, and what answered it."""
    connection = connect(proxy)
    connection.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
    return connection, connection.recv(65536)


def greet(connection: socket.socket, name: str | None, identity: Path) -> ssl.SSLSocket:
    """The TLS session after a greeting for `name`."""
    context = ssl.create_default_context(cafile=str(identity))
    context.check_hostname = name == NAME
    return context.wrap_socket(connection, server_hostname=name)


def rows(proxy: Proxy) -> list[EgressRequest]:
    """The journal's rows, once the proxy has stopped."""
    proxy.stop()
    return list(proxy.report().requests)


def decisions(proxy: Proxy) -> list[str]:
    """The journal's decisions, once the proxy has stopped."""
    return [row.decision.value for row in rows(proxy)]

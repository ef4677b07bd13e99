"""The egress proxy, asked through its Unix socket, against real servers on loopback. Only names are fake."""

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
from arsandbox.sandbox.egress.destinations import Allowlist, DeniedError, Destination, is_public
from arsandbox.sandbox.egress.hello import HelloReader
from arsandbox.sandbox.egress.proxy import SOCKET_NAME, Proxy
from arsandbox.sandbox.egress.relay import Bounds
from arsandbox.sandbox.models import EgressDecision, EgressRequest

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
            data += connection.recv(65536)
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
    context = ssl.create_default_context(cafile=str(identity))
    context.check_hostname = name == NAME
    return context.wrap_socket(connection, server_hostname=name)


def rows(proxy: Proxy) -> list[EgressRequest]:
    proxy.stop()
    return list(proxy.report().requests)


def decisions(proxy: Proxy) -> list[str]:
    return [row.decision.value for row in rows(proxy)]


def test_a_tunnel_to_a_named_host_carries_tls_and_is_counted(start: Start, tls: Server, identity: Path) -> None:
    target = f"{NAME}:{tls.port}"
    proxy = start(target, private=(target,))
    connection, answer = open_tunnel(proxy, target)
    assert answer.startswith(b"HTTP/1.1 200 ")
    sent = b"x" * 3_000_000
    with greet(connection, NAME, identity) as session:
        threading.Thread(target=session.sendall, args=(sent,), daemon=True).start()
        received = 0
        while received < len(sent):
            received += len(session.recv(65536))
    (row,) = rows(proxy)
    assert (row.host, row.port, row.decision, row.count) == (NAME, tls.port, EgressDecision.ALLOWED, 1)
    assert row.sent_bytes > len(sent) and row.received_bytes > len(sent)


def test_a_plain_request_goes_to_the_host_of_its_target_alone(start: Start, plain: Server) -> None:
    target = f"{NAME}:{plain.port}"
    proxy = start(target, private=(target,))
    answer = ask(
        proxy,
        f"POST http://{target}/v1?q=1 HTTP/1.1\r\nHost: other.example\r\nProxy-Authorization: secret\r\n"
        f"Connection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
        f"GET http://{target}/smuggled HTTP/1.1\r\nHost: {target}\r\n\r\n".encode(),
    )
    assert answer.startswith(b"HTTP/1.1 200 OK")
    (seen,) = plain.seen
    head, _, body = seen.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1?q=1 HTTP/1.1\r\n") and b"hello" in body
    assert f"Host: {target}".encode() in head and b"other.example" not in head
    assert b"secret" not in head and b"keep-alive" not in head and b"smuggled" not in seen
    assert decisions(proxy) == ["allowed"]


@pytest.mark.parametrize(
    ("target", "decision"),
    [
        ("other.example:443", "not_named"),
        (f"{NAME}:444", "other_port"),
        (f"sub.{NAME}:443", "not_named"),
        (f"{NAME}.:443", "not_named"),
        ("93.184.216.34:443", "direct_address"),
        ("[2606:2800:220:1::1]:443", "direct_address"),
        ("169.254.169.254:80", "direct_address"),
        ("2130706433:443", "direct_address"),
        ("0x7f.1:443", "direct_address"),
        ("127.1:443", "direct_address"),
        (f"user@{NAME}:443", "malformed"),
        (NAME, "malformed"),
        (f"{NAME}:0", "malformed"),
        (f"{NAME}:99999", "malformed"),
        (f"{NAME}:443/x", "malformed"),
    ],
)
def test_any_other_destination_is_refused_with_its_reason(start: Start, target: str, decision: str) -> None:
    proxy = start(f"{NAME}:443", addresses=("93.184.216.34",))
    answer = ask(proxy, f"CONNECT {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 40") and decision.encode() in answer
    assert decisions(proxy) == [decision]


@pytest.mark.parametrize(
    "request_line",
    ["GET / HTTP/1.1", "GET https://model.example/ HTTP/1.1", "GET ftp://model.example/ HTTP/1.1",
     "GET http://user:pass@model.example/ HTTP/1.1", "GET http:///x HTTP/1.1", "CONNECT http://model.example HTTP/1.1",
     "\x16\x03\x01", "GET"],
)  # fmt: skip
def test_what_is_no_request_for_a_destination_is_refused(start: Start, request_line: str) -> None:
    proxy = start(f"{NAME}:80", addresses=("93.184.216.34",))
    answer = ask(proxy, f"{request_line}\r\nHost: model.example\r\n\r\n".encode("latin-1"))
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert decisions(proxy) == ["malformed"]


def test_a_head_that_never_ends_is_cut_off(start: Start) -> None:
    proxy = start(f"{NAME}:80")
    with connect(proxy) as connection, pytest.raises(OSError):
        for _ in range(100_000):
            connection.sendall(b"X-Filler: " + b"x" * 1000)
    assert decisions(proxy) == ["malformed"]


@pytest.mark.parametrize(
    "addresses",
    [("127.0.0.1",), ("10.1.2.3",), ("169.254.169.254",), ("100.64.0.1",), ("0.0.0.0",), ("::1",), ("fe80::1%eth0",),
     ("fd00:ec2::254",), ("::ffff:10.0.0.1",), ("64:ff9b::a00:1",), ("2002:a00:1::",), ("93.184.216.34", "127.0.0.1")],
)  # fmt: skip
def test_a_name_that_stands_for_a_private_address_is_refused(start: Start, addresses: tuple[str, ...]) -> None:
    proxy = start(f"{NAME}:443", addresses=addresses)
    answer = ask(proxy, f"CONNECT {NAME}:443 HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert decisions(proxy) == ["private_address"]


def test_a_private_address_that_the_owner_named_is_reached_and_no_other(start: Start, plain: Server) -> None:
    address = f"127.0.0.1:{plain.port}"
    proxy = start(address, "127.0.0.2:80", private=(address,))
    assert ask(proxy, f"GET http://{address}/ HTTP/1.1\r\nHost: x\r\n\r\n".encode()).startswith(b"HTTP/1.1 200 OK")
    assert b"direct_address" in ask(proxy, b"GET http://127.0.0.2/ HTTP/1.1\r\nHost: x\r\n\r\n")
    assert decisions(proxy) == ["allowed", "direct_address"]


def test_rebinding_is_of_no_use_for_a_name_is_resolved_once(tmp_path: Path) -> None:
    """The second answer of the name server is never asked for: the checked address is the one connected to."""
    answers = iter([["203.0.113.0"], ["127.0.0.1"]])  # TEST-NET-3: not public either, so it is checked and refused
    asked: list[str] = []

    def resolve(host: str) -> list[str]:
        asked.append(host)
        return next(answers)

    allowlist = Allowlist.of(Policy(network="allowlist", hosts=(f"{NAME}:443",)))
    assert allowlist is not None
    with Proxy(tmp_path / "proxy", allowlist, resolve=resolve) as proxy:
        ask(proxy, f"CONNECT {NAME}:443 HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert asked == [NAME] and decisions(proxy) == ["private_address"]


@pytest.mark.parametrize(("name", "decision"), [("other.example", "other_name"), (None, "other_name")])
def test_a_greeting_for_another_name_never_reaches_the_server(
    start: Start, tls: Server, identity: Path, name: str | None, decision: str
) -> None:
    target = f"{NAME}:{tls.port}"
    proxy = start(target, private=(target,))
    connection, answer = open_tunnel(proxy, target)
    assert answer.startswith(b"HTTP/1.1 200 ")
    with connection, pytest.raises(OSError):
        greet(connection, name, identity)
    (row,) = rows(proxy)
    assert row.decision.value == decision and row.sent_bytes == 0


def test_a_tunnel_without_tls_never_reaches_the_server(start: Start, plain: Server) -> None:
    target = f"{NAME}:{plain.port}"
    proxy = start(target, private=(target,))
    connection, _ = open_tunnel(proxy, target)
    with connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: other.example\r\n\r\n")
        everything(connection)
    (row,) = rows(proxy)
    assert row.decision is EgressDecision.NOT_TLS and row.sent_bytes == 0 and plain.seen == []


def test_unresolvable_and_unreachable_are_told_apart(tmp_path: Path) -> None:
    def resolve(host: str) -> list[str]:
        raise socket.gaierror("no such name")

    allowlist = Allowlist.of(Policy(network="allowlist", hosts=(f"{NAME}:443",)))
    assert allowlist is not None
    with Proxy(tmp_path / "one", allowlist, resolve=resolve) as proxy:
        assert b"502 " in ask(proxy, f"CONNECT {NAME}:443 HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert decisions(proxy) == ["unresolvable"]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    closed = f"127.0.0.1:{port}"
    allowlist = Allowlist.of(Policy(network="allowlist", hosts=(closed,), private_hosts=(closed,)))
    assert allowlist is not None
    with Proxy(tmp_path / "two", allowlist) as proxy:
        assert b"502 " in ask(proxy, f"CONNECT {closed} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert decisions(proxy) == ["unreachable"]


def test_connections_bytes_and_silence_are_bounded(start: Start, tls: Server, identity: Path) -> None:
    target = f"{NAME}:{tls.port}"
    proxy = start(target, private=(target,), bounds=Bounds(connections=2, total_bytes=100_000, idle_s=0.3, step_s=0.5))
    held = [connect(proxy) for _ in range(2)]
    assert b"limit" in ask(proxy, b"")
    for connection in held:
        assert b"malformed" in everything(connection)  # no request came in time
        connection.close()
    connection, _ = open_tunnel(proxy, target)
    with greet(connection, NAME, identity) as session, pytest.raises(OSError):
        for _ in range(1000):
            session.sendall(b"x" * 10_000)
            session.recv(65536)
            if not session.pending() and session.fileno() < 0:
                break
    quiet = start(target, private=(target,), bounds=Bounds(idle_s=0.3))
    connection, _ = open_tunnel(quiet, target)
    with greet(connection, NAME, identity) as session:
        assert session.recv(1) == b""  # silence ends it
    assert "limit" in decisions(proxy)
    assert decisions(quiet) == ["allowed"]


def test_the_journal_is_bounded_and_complete_in_its_sum(start: Start) -> None:
    proxy = start(f"{NAME}:443")
    for port in range(1, 251):
        ask(proxy, f"CONNECT other.example:{port} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    for _ in range(3):
        ask(proxy, b"CONNECT other.example:1 HTTP/1.1\r\nHost: x\r\n\r\n")
    proxy.stop()
    report = proxy.report()
    assert len(report.requests) == 200 and report.omitted == 50
    assert report.requests[0].count == 4


def test_stopping_ends_open_tunnels(start: Start, tls: Server, identity: Path) -> None:
    target = f"{NAME}:{tls.port}"
    proxy = start(target, private=(target,))
    connection, _ = open_tunnel(proxy, target)
    with greet(connection, NAME, identity) as session:
        proxy.stop()
        assert session.recv(1) == b""
    with pytest.raises(OSError):
        connect(proxy)


def test_no_network_without_named_hosts() -> None:
    assert Allowlist.of(Policy()) is None
    assert Allowlist.of(Policy(network="none", hosts=("index.example:443",))) is None


@pytest.mark.parametrize("address", ["8.8.8.8", "93.184.216.34", "2606:4700::1111"])
def test_public_addresses_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    ["224.0.0.1", "255.255.255.255", "240.0.0.1", "192.168.0.1", "172.16.0.1", "198.18.0.1", "192.0.2.1", "fec0::1",
     "ff02::1", "::", "::7f00:1", "2001:db8::1", "2001:0:1::1", "fc00::1", "nonsense", ""],
)  # fmt: skip
def test_special_addresses_are_not_public(address: str) -> None:
    assert not is_public(address)


def test_destinations_are_compared_in_lower_case() -> None:
    assert Destination.parse("Index.Example:443") == Destination("index.example", 443)


def test_a_greetings_memory_goes_with_its_reader() -> None:
    """Found by fuzzing: a cycle through OpenSSL's callback kept 50 kB of each until a full garbage collection."""
    import gc
    import weakref

    gc.collect()
    gc.disable()
    try:
        reader = HelloReader()
        with pytest.raises(DeniedError):
            reader.feed(b"GET / HTTP/1.1\r\n\r\n")
        context = weakref.ref(reader._session.context)
        del reader
        assert context() is None
    finally:
        gc.enable()

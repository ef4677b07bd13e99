"""Plain requests through the proxy's Unix socket, against real servers on loopback. Only names are fake."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from arsandbox.policies.model import Policy
from arsandbox.sandbox.egress.destinations import Allowlist
from arsandbox.sandbox.egress.proxy import Proxy
from arsandbox_fixtures.egress import NAME, Server, Start, ask, connect, decisions


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

"""Connections, bytes, silence and the journal are bounded."""

from __future__ import annotations

from pathlib import Path

import pytest

from arsandbox.sandbox.egress.relay import Bounds
from arsandbox_fixtures.egress import NAME, Server, Start, ask, connect, decisions, everything, greet, open_tunnel


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

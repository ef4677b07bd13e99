"""Tunnels through the proxy's Unix socket, against real servers on loopback. Only names are fake."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from arsandbox.sandbox.egress.destinations import DeniedError
from arsandbox.sandbox.egress.hello import HelloReader
from arsandbox.sandbox.models import EgressDecision
from arsandbox_fixtures.egress import NAME, Server, Start, everything, greet, open_tunnel, rows


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

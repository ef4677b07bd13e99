"""Names, addresses and what they stand for. Only names are fake."""

from __future__ import annotations

from pathlib import Path

import pytest

from arsandbox.policies.model import Policy
from arsandbox.sandbox.egress.destinations import Allowlist, Destination, is_public
from arsandbox.sandbox.egress.proxy import Proxy
from arsandbox_fixtures.egress import NAME, Server, Start, ask, decisions


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

"""Which destinations a stage may reach, and which addresses a name may stand for."""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass

from arsandbox.policies.model import Policy
from arsandbox.sandbox.models import EgressDecision

# A name as in DNS (with the underscore that some have), or an address in brackets.
_AUTHORITY = re.compile(r"(?P<host>[a-z0-9_.-]{1,253}|\[[0-9a-f:.]{2,45}\])(?::(?P<port>[0-9]{1,5}))?", re.ASCII)
# Ranges that carry an IPv4 address inside: what they reach is decided by somebody else's translator.
_TRANSLATED = [ipaddress.IPv6Network(n) for n in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32", "::/96")]


class DeniedError(Exception):
    """A request that is not passed on; `decision` is why, for the record."""

    def __init__(self, decision: EgressDecision, detail: str) -> None:
        super().__init__(detail)
        self.decision, self.detail = decision, detail


@dataclass(frozen=True, order=True)
class Destination:
    """One host:port; `host` is lower-case, an IPv6 address stands in brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str, *, default_port: int | None = None) -> Destination:
        """`host:port`, or `host` where there is a default port. Raises DeniedError as malformed."""
        found = _AUTHORITY.fullmatch(text.lower())
        port = int(found["port"]) if found and found["port"] else default_port
        if found is None or port is None or not 0 < port < 65536:
            raise DeniedError(EgressDecision.MALFORMED, "the target is no host:port")
        return cls(found["host"], port)

    @property
    def bare_host(self) -> str:
        """The host as resolvers take it: without brackets."""
        return self.host.strip("[]")

    @property
    def is_address(self) -> bool:
        """Whether the host is an address in any spelling that a resolver would take for one (127.1, 0x7f000001)."""
        try:
            ipaddress.ip_address(self.bare_host)
        except ValueError:
            return _inet_aton(self.bare_host)
        return True


@dataclass(frozen=True)
class Allowlist:
    """The destinations that a stage may reach; `private` are those that may be on a private network, or addresses."""

    allowed: frozenset[Destination]
    private: frozenset[Destination]

    @classmethod
    def of(cls, policy: Policy) -> Allowlist | None:
        """What `policy` lets a stage reach; None for no network."""
        if policy.network == "none" or not policy.hosts:
            return None
        return cls(
            frozenset(map(Destination.parse, policy.hosts)), frozenset(map(Destination.parse, policy.private_hosts))
        )

    def require(self, wanted: Destination) -> None:
        """Raises DeniedError unless `wanted` is exactly one of the named destinations."""
        if wanted.is_address and wanted not in self.private:
            raise DeniedError(EgressDecision.DIRECT_ADDRESS, f"{wanted} is an address, not a name")
        if wanted in self.allowed:
            return
        if any(wanted.host == known.host for known in self.allowed):
            raise DeniedError(EgressDecision.OTHER_PORT, f"{wanted.host} may be reached, but not at port {wanted.port}")
        raise DeniedError(EgressDecision.NOT_NAMED, f"{wanted} is not among the policy's hosts")

    def require_addresses(self, wanted: Destination, addresses: list[str]) -> None:
        """Raises DeniedError when the name stands for any address that is not the public internet's."""
        if wanted in self.private:
            return
        for address in addresses:
            if not is_public(address):
                raise DeniedError(
                    EgressDecision.PRIVATE_ADDRESS, f"{wanted.host} stands for {address}, which is not public"
                )


def is_public(address: str) -> bool:
    """Whether `address` is a unicast address of the public internet (IANA's special-purpose registries)."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None or parsed.is_site_local:
            return False
        if any(parsed in network for network in _TRANSLATED):
            return False
    return parsed.is_global and not (parsed.is_multicast or parsed.is_reserved or parsed.is_unspecified)


def _inet_aton(host: str) -> bool:
    try:
        socket.inet_aton(host)
    except (OSError, UnicodeError):
        return False
    return True

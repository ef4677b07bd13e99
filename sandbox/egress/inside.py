"""What a stage's sandbox is given so that it can use the proxy: one read-only mount, a command before its own."""

from __future__ import annotations

import inspect
import ssl
from collections.abc import Sequence
from pathlib import Path

from arsandbox.sandbox.egress import forwarder
from arsandbox.sandbox.egress.destinations import Allowlist
from arsandbox.sandbox.egress.proxy import SOCKET_NAME

DIRECTORY = "/run/arsandbox/egress"
PORT = 3128
CERTIFICATES = "certificates.pem"
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


def certificates(directory: Path) -> None:
    """Put the certificates that this machine trusts beside the socket: images bring none. Raises OSError."""
    trusted = ssl.get_default_verify_paths().cafile
    target = directory / CERTIFICATES
    target.write_bytes(Path(trusted).read_bytes() if trusted else b"")
    target.chmod(0o644)


def command(wanted: Sequence[str]) -> tuple[str, ...]:
    """`wanted` with the forwarder started before it."""
    source = inspect.getsource(forwarder)
    return ("python3", "-I", "-S", "-c", source, f"{DIRECTORY}/{SOCKET_NAME}", str(PORT), *wanted)


def environment(allowlist: Allowlist) -> dict[str, str]:
    """Where HTTP clients find their proxy and whom they trust; loopback is the sandbox's own, unless it is named."""
    proxy = f"http://127.0.0.1:{PORT}"
    named = {destination.host for destination in allowlist.allowed}
    direct = ",".join(host.strip("[]") for host in _LOOPBACK if host not in named)
    names = {"HTTP_PROXY": proxy, "HTTPS_PROXY": proxy, "NO_PROXY": direct}
    trusted = dict.fromkeys(("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"), f"{DIRECTORY}/{CERTIFICATES}")
    return {**names, **{name.lower(): value for name, value in names.items()}, **trusted}

"""Which Debian mirror a build uses: the one this machine is already set up with."""

from __future__ import annotations

import re
from pathlib import Path

from arsandbox.images.programs import run_program

APT = Path("/etc/apt")
OS_RELEASE = Path("/etc/os-release")

# Proxies and how strictly old mirrors are taken: part of reaching the mirror at all. Nothing else of the
# machine's apt set-up may shape an image.
_FORWARDED = re.compile(r"^Acquire::(https?(::.*)?::Proxy|Check-Valid-Until|Check-Date|Retries|ForceIPv[46]) ")


def suites(suite: str) -> tuple[str, str, str]:
    """The suite and its two companions, as Debian names them."""
    return suite, f"{suite}-updates", f"{suite}-security"


def host_sources(suite: str, *, apt: Path = APT, os_release: Path = OS_RELEASE) -> str:
    """One-line apt sources for `suite`, its updates and its security suite, from this machine's own.

    Empty if the machine is not Debian or has no source for `suite`: mmdebstrap then uses its default,
    which has all three. Only the component `main` of Debian's own suite names is taken.
    """
    try:
        if not re.search(r'^ID="?debian"?$', os_release.read_text(encoding="utf-8"), re.MULTILINE):
            return ""
    except OSError:
        return ""
    found: dict[str, None] = {}
    files = [apt / "sources.list", *sorted((apt / "sources.list.d").glob("*"))]
    for path in files:
        if path.suffix not in {".list", ".sources"}:
            continue
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        entries = _one_line(text) if path.suffix == ".list" else _stanzas(text)
        for uri, name, components, key in entries:
            if name in suites(suite) and "main" in components and not uri.startswith("cdrom:"):
                signed = f"[signed-by={key}] " if key else ""
                found[f"deb {signed}{uri} {name} main"] = None
    return "".join(f"{line}\n" for line in found) if any(f" {suite} main" in line for line in found) else ""


def transport_options() -> str:
    """This machine's apt options about proxies and dates, as apt.conf text (empty where apt is absent)."""
    dump = run_program(
        ["apt-config", "dump", "--no-empty", "--format", '%f "%v";%n'],
        missing_hint="install apt: image building needs Debian's own tools",
    ).decode(errors="replace")
    return "".join(f"{line}\n" for line in dump.splitlines() if _FORWARDED.match(line))


def _one_line(text: str) -> list[tuple[str, str, list[str], str]]:
    entries = []
    for line in text.splitlines():
        match = re.match(r"^\s*deb\s+(?:\[([^]]*)\]\s+)?(\S+)\s+(\S+)\s+([^#]+)", line)
        if match:
            options, uri, suite, components = match.groups()
            key = re.search(r"signed-by=(\S+)", options or "")
            entries.append((uri, suite, components.split(), key.group(1) if key else ""))
    return entries


def _stanzas(text: str) -> list[tuple[str, str, list[str], str]]:
    entries = []
    for block in re.split(r"\n\s*\n", text):
        lines = [line for line in block.splitlines() if not line.startswith("#")]
        fields = {
            key.lower(): value.strip()
            for key, separator, value in (line.partition(":") for line in lines if not line.startswith(" "))
            if separator
        }
        if fields.get("enabled", "yes").lower() in {"no", "false", "0"} or "deb" not in fields.get("types", "").split():
            continue
        # A key written into the stanza itself has no file to point to: such a source is left out.
        key = fields.get("signed-by", "")
        if "signed-by" in fields and not key.startswith("/"):
            continue
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                entries.append((uri, suite, fields.get("components", "").split(), key))
    return entries

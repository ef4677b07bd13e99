"""The bottom layer: Debian packages unpacked by mmdebstrap, with nothing of the host in it."""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO
from urllib.parse import unquote

from arsandbox.images.aptsources import host_sources, suites, transport_options
from arsandbox.images.programs import run_program
from arsandbox.images.recipe import Recipe
from arsandbox.images.tarlayer import EPOCH, Member, file_member, link_member, with_parents, write_layer
from arsandbox.sandbox.errors import MachineError

HOOKS = Path("/usr/share/mmdebstrap/hooks/merged-usr")
INSTALL_HINT = "sudo apt-get install -y --no-install-recommends mmdebstrap debian-archive-keyring"
PACKAGE_LIST = "usr/share/arsandbox/packages"
_ARCHIVES = "arsandbox-archives"

# Left out of the image: package databases and mirrors, what mmdebstrap copied from the host (hostname,
# resolv.conf), device nodes (the engine brings its own), and what no program reads. Licence texts stay.
_DROPPED = re.compile(
    rf"^({_ARCHIVES}$|dev/|proc/|sys/|run/|boot|tmp/|etc/(apt|dpkg|cron[^/]*|logrotate\.d|update-motd\.d)(/|$)"
    r"|etc/(hostname|resolv\.conf|machine-id)$"
    r"|var/(lib/(apt|dpkg)|cache|log)/|usr/share/(man|info|locale|lintian|bug|pixmaps|applications|polkit-1)(/|$)"
    r"|usr/share/doc/(?![^/]+/?$)(?![^/]+/copyright$)|usr/lib/systemd(/|$))"
)


def build_rootfs(
    recipe: Recipe, target: IO[bytes], scratch: Path, progress: Callable[[str], None]
) -> tuple[tuple[str, str], ...]:
    """Write the layer to `target` and return its Debian packages as (name, version), sorted.

    Works as root and as an ordinary user. Raises MachineError if mmdebstrap is missing or fails, or if
    the mirror gave no Python.
    """
    sources = host_sources(recipe.suite)
    if sources and suites(recipe.suite)[2] not in sources:
        progress(f"this machine has no source for {suites(recipe.suite)[2]}: the image lacks security updates")
    raw = scratch / "rootfs.tar"
    work = scratch / "unpacked"
    work.mkdir()
    work.chmod(0o1777)  # for the uids under which an ordinary user's mmdebstrap works
    options = scratch / "apt.conf"
    options.write_text(transport_options(), encoding="utf-8")
    argv = [
        "mmdebstrap",
        "--mode=auto",
        "--variant=extract",
        "--format=tar",
        f"--include={','.join(recipe.packages)}",
        f"--hook-dir={HOOKS}",
        # This variant keeps no package database: the names of the archives say what went in.
        f'--extract-hook=cd "$1" && ls var/cache/apt/archives > {_ARCHIVES}',
        # The packages' own scripts, which would do this, never run. The program is static.
        *(['--extract-hook="$1/usr/sbin/ldconfig" -X -r "$1"'] if recipe.linker_cache else []),
        *([f"--aptopt={options}"] if options.stat().st_size else []),
        recipe.suite,
        "-",
        *(["-"] if sources else []),
    ]
    env = {**os.environ, "SOURCE_DATE_EPOCH": str(EPOCH), "TMPDIR": str(work), "LC_ALL": "C.UTF-8"}
    with raw.open("wb") as output:
        run_program(
            argv,
            missing_hint=INSTALL_HINT,
            failed_hint=f"is the Debian mirror reachable, and everything installed? {INSTALL_HINT}",
            env=env,
            stdin=sources.encode(),
            stdout=output,
        )
    with tarfile.open(raw) as archive:
        entries = {entry.name.removeprefix("./"): entry for entry in archive}
        packages = _packages(archive, entries)
        members = {member.name: member for member in _unpacked(archive, entries)}
        if f"usr/bin/python{recipe.python}" not in members:
            raise MachineError(f"the packages of recipe {recipe.name!r} bring no python{recipe.python}")
        for added in _additions(recipe, packages, set(members)):
            members[added.name] = added
        write_layer(target, with_parents(members.values()))
    raw.unlink()
    return packages


def _packages(archive: tarfile.TarFile, entries: dict[str, tarfile.TarInfo]) -> tuple[tuple[str, str], ...]:
    listing = archive.extractfile(entries[_ARCHIVES]) if _ARCHIVES in entries else None
    if listing is None:
        raise MachineError("mmdebstrap left no list of packages", hint="mmdebstrap 1.0 or newer is needed")
    names = [line for line in listing.read().decode().split() if line.endswith(".deb")]
    parts = [unquote(name).removesuffix(".deb").rsplit("_", 2) for name in names]
    return tuple(sorted((part[0], part[1]) for part in parts))


def _unpacked(archive: tarfile.TarFile, entries: dict[str, tarfile.TarInfo]) -> Iterator[Member]:
    for name, entry in entries.items():
        if name in {"", "."} or _DROPPED.match(name + "/" if entry.isdir() else name):
            continue
        # Owners are all root: Debian's few other groups would depend on the host's name tables.
        if entry.isdir():
            yield Member(name, entry.mode)
        elif entry.issym():
            yield link_member(name, entry.linkname)
        elif entry.isreg() or entry.islnk():
            # A hard link becomes a copy: sorted by name, its target might come later.
            source = entries[entry.linkname.removeprefix("./")] if entry.islnk() else entry
            yield Member(name, entry.mode, content=_opener(archive, source), size=source.size)


def _opener(archive: tarfile.TarFile, entry: tarfile.TarInfo) -> Callable[[], IO[bytes]]:
    def opened() -> IO[bytes]:
        stream = archive.extractfile(entry)
        if stream is None:
            raise MachineError(f"mmdebstrap's archive has no content for {entry.name}")
        return stream

    return opened


def _additions(recipe: Recipe, packages: tuple[tuple[str, str], ...], present: set[str]) -> Iterator[Member]:
    uid, gid, python = recipe.uid, recipe.gid, f"python{recipe.python}"
    for folder in ("dev", "proc", "sys", "run", "var/cache", "var/log"):
        yield Member(folder)
    for folder in ("tmp", "var/tmp"):
        yield Member(folder, 0o1777)
    yield Member("workspace", 0o755, uid, gid)
    for name in ("python", "python3"):
        yield link_member(f"usr/bin/{name}", python)
    for name, target in sorted(recipe.links.items()):
        yield link_member(f"usr/bin/{name}", target)
    for applet in recipe.applets:
        if not {f"usr/bin/{applet}", f"usr/sbin/{applet}"} & present:
            yield link_member(f"usr/bin/{applet}", "busybox")
    texts = {
        # For engines that leave it alone; Docker hides it behind an empty file where there is no network.
        "etc/hosts": "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n",
        "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files myhostname dns\nservices: files\n",
        "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n"
        "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
        f"sandbox:x:{uid}:{gid}:sandbox:/tmp:/bin/sh\n",
        "etc/group": f"root:x:0:\nnogroup:x:65534:\nsandbox:x:{gid}:\n",
        PACKAGE_LIST: "".join(f"{name} {version}\n" for name, version in packages),
    }
    for name, text in texts.items():
        yield file_member(name, text.encode())

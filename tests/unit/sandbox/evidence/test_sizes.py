"""What a bundle claims of sizes costs the checker nothing."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from arsandbox.sandbox.evidence.bundle import RECORDS
from arsandbox_fixtures.evidence import (
    WINNER,
    World,
    members,
    pack,
)

LIMITED = """
import resource, sys
from pathlib import Path
from arsandbox.sandbox.errors import ArsandboxError
from arsandbox.sandbox.evidence.check import check_bundle
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (400 << 20),) * 2)
try:
    print(check_bundle(Path(sys.argv[1])).problems)
except ArsandboxError as error:
    print(error.exit_code, error.message)
"""


def check_within_400_mib(bundle: Path, seconds: float = 60) -> str:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(bundle)], capture_output=True, text=True, check=False, timeout=seconds
    )
    assert done.returncode == 0, done.stderr[-1500:]
    return done.stdout


@pytest.mark.parametrize("kind", ["REGTYPE", "XHDTYPE", "XGLTYPE", "GNUTYPE_LONGNAME", "GNUTYPE_LONGLINK"])
@pytest.mark.parametrize("name", [RECORDS, "experiments/x/train.log"])
def test_a_header_that_claims_2_gib_allocates_nothing(kind: str, name: str, world: World) -> None:
    whole = world.export(experiment=WINNER).read_bytes()
    header = tarfile.TarInfo(name)
    header.size, header.type = 2 << 30, getattr(tarfile, kind)
    bundle = world.place / "b.tar"
    head, body = header.tobuf(tarfile.GNU_FORMAT), whole.rstrip(b"\0")
    body += bytes(-len(body) % 512)
    for content in (head + whole, body + head + b"x" * 512):
        bundle.write_bytes(content)
        assert check_within_400_mib(bundle).strip() not in ("", "[]")


def sparse_member(name: str, size: int) -> bytes:
    """A GNU sparse file: one header of 512 bytes that stands for `size` zeros."""
    header = tarfile.TarInfo(name)
    header.type = tarfile.GNUTYPE_SPARSE
    buffer = bytearray(header.tobuf(tarfile.GNU_FORMAT))
    field = b"\x80" + size.to_bytes(11, "big")
    buffer[386:398], buffer[398:410] = field, b"\x80" + bytes(11)
    buffer[483:495] = field
    buffer[148:156] = b" " * 8
    buffer[148:156] = b"%06o\0 " % sum(buffer)
    return bytes(buffer)


@pytest.mark.parametrize("name", ["a", "experiments/x/train.log"])
def test_a_sparse_file_does_not_grow_out_of_nothing(name: str, world: World) -> None:
    """A few kilobytes must not cost hours or gigabytes: sparse members have no place in a bundle."""
    whole = world.export(experiment=WINNER).read_bytes().rstrip(b"\0")
    whole += bytes(-len(whole) % 512)
    size = 500 << 20 if name == "a" else 1 << 44
    bombs = b"".join(sparse_member(f"{name}{number}", size) for number in range(4))
    bundle = world.place / "b.tar"
    bundle.write_bytes(bombs + whole + bytes(1024))
    assert bundle.stat().st_size < 200_000
    try:
        said = check_within_400_mib(bundle, seconds=20)
    except subprocess.TimeoutExpired:
        pytest.fail("it reads terabytes of zeros that are not there")
    assert said.startswith("3 "), said


def test_checking_a_large_artifact_keeps_it_out_of_memory(world: World) -> None:
    content = members(world.export(experiment=WINNER))
    content[f"experiments/{WINNER}/artifacts/out/model.bin"] = bytes(300 << 20)
    bundle = pack(world.place / "b.tar", content)
    del content
    # VmHWM, not ru_maxrss: the latter begins with what this process had when it forked.
    program = (
        "import re, sys; from pathlib import Path\n"
        "from arsandbox.sandbox.evidence.check import check_bundle\n"
        "problems = check_bundle(Path(sys.argv[1])).problems\n"
        "print(len(problems), re.search(r'VmHWM:\\s+(\\d+) kB', Path('/proc/self/status').read_text())[1])\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(bundle)], capture_output=True, text=True, check=True)
    found, peak = map(int, done.stdout.split())
    bundle.unlink()
    assert found
    assert peak < 200 * 1024, f"{peak} KiB for a file of 300 MiB"

"""The command line from the fork server is the process that a fresh start would be."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from arsandbox_fixtures import forked
from arsandbox_fixtures.command_line import arsandbox, start
from arsandbox_fixtures.image import image_digest
from arsandbox_fixtures.waiting import wait_for

pytestmark = pytest.mark.engine


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["run", "--nonsense"], ["image", "list", "--json"]])
def test_what_it_says_is_what_the_script_says(arguments: list[str], home: Path) -> None:
    image_digest()
    ours, theirs = (arsandbox(*arguments, fresh=fresh) for fresh in (False, True))
    assert (ours.code, ours.out, ours.err) == (theirs.code, theirs.out, theirs.err)


def facts(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What others see of a process: its signals, files, folder, mask and variables."""
    place = Path("/proc") / str(process.pid)
    rows = dict(line.split(":\t", 1) for line in (place / "status").read_text().splitlines() if ":\t" in line)
    return {
        **{name: rows[name].strip() for name in ("SigBlk", "SigIgn", "SigCgt", "Umask", "Uid", "CapEff")},
        "session": os.getsid(process.pid), "group": os.getpgid(process.pid), "folder": os.readlink(place / "cwd"),
        "streams": [os.readlink(place / "fd" / str(n)).partition(":")[0] for n in range(3)],
        "limits": (place / "limits").read_text(),
    }  # fmt: skip


def files(pid: int) -> set[str]:
    """What a process has open, /dev/null aside."""
    return {os.readlink(one) for one in (Path("/proc") / str(pid) / "fd").iterdir()} - {os.devnull}


def test_its_process_is_as_a_fresh_one_and_ends_as_it(project: Any, tmp_path: Path) -> None:
    task = project()
    edit = task.patch("import time; time.sleep(600)\n")
    seen, ends = [], []
    before = os.umask(0o027)
    try:
        for fresh in (False, True):
            running = task.start("--patch", edit, fresh=fresh, cwd=tmp_path)
            task.wait_for_training()
            seen.append(facts(running.process))
            parent = int((Path("/proc") / str(running.process.pid) / "stat").read_text().rpartition(")")[2].split()[1])
            assert (parent == os.getpid()) is fresh
            if not fresh:
                assert files(running.process.pid) & files(parent) <= {os.readlink(f"/proc/{parent}/fd/2")}
            assert running.process.poll() is None
            running.process.kill()
            ends.append(running.wait().code)
            assert not Path(f"/proc/{running.process.pid}").exists()
            assert arsandbox("gc", env=task.env).code == 0
    finally:
        os.umask(before)
    assert seen[0] == seen[1]
    assert ends == [-signal.SIGKILL, -signal.SIGKILL]


def test_a_changed_interpreter_starts_afresh(home: Path) -> None:
    environment = dict(os.environ)
    assert forked.can_start(environment)
    assert not forked.can_start({**environment, "PYTHONPATH": "/x"})
    assert not forked.can_start({**environment, "LC_ALL": "C", "LANG": "x"})


def test_many_at_once_each_have_their_own_end(home: Path) -> None:
    running = [start(*(["--version"] if n % 2 else ["--nonsense"])) for n in range(12)]
    assert [one.wait().code for one in running] == [0 if n % 2 else 2 for n in range(12)]
    assert len({one.process.pid for one in running}) == 12
    wait_for(lambda: not any(Path(f"/proc/{one.process.pid}").exists() for one in running), seconds=5)

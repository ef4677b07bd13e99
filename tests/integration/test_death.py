"""Whatever a sandbox does, it is gone after its end: no process is left in its cgroup, and the reason is typed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from arsandbox.sandbox.engines import cgroup
from arsandbox.sandbox.engines.registry import open_engine
from arsandbox.sandbox.models import Reason
from arsandbox_fixtures.boxes import Collecting
from arsandbox_fixtures.docker_engine import containers
from arsandbox_fixtures.waiting import wait_for

pytestmark = [pytest.mark.engine, pytest.mark.timeout(240)]

SLEEP = "import time\ntime.sleep(600)\n"
PROGRAMS = {
    "fork bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass\n",
    "ignores every signal": (
        "import signal\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\n" + SLEEP
    ),
    "double fork and setsid": (
        "import os\nif os.fork() == 0:\n    os.setsid()\n    if os.fork():\n        os._exit(0)\n"
        "    for n in range(3): os.close(n)\n" + "import time\ntime.sleep(600)\n"
    ),
    "stops itself": "import os, signal\nfor _ in range(4): os.fork()\nos.kill(0, signal.SIGSTOP)\n" + SLEEP,
    "stops process 1": "import os, signal\ntry: os.kill(1, signal.SIGSTOP)\nexcept OSError: pass\n" + SLEEP,
}
STRONGEST = {"fork bomb", "stops itself"}


@pytest.fixture
def members(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[cgroup.Cgroup]]:
    """The cgroups of the sandboxes that run meanwhile."""
    seen: list[cgroup.Cgroup] = []
    original = cgroup.Cgroup.__init__

    def noted(self: cgroup.Cgroup, pid: int) -> None:
        original(self, pid)
        seen.append(self)

    monkeypatch.setattr(cgroup.Cgroup, "__init__", noted)
    yield seen


def alive(groups: list[cgroup.Cgroup]) -> list[int]:
    """Processes that are left in the directories of `groups`, removed ones aside."""
    assert groups, "no sandbox's cgroup was seen"
    found: list[int] = []
    for group in groups:
        for directory in group._kill_directories:
            try:
                found += [int(line) for line in (directory / "cgroup.procs").read_text().split()]
            except OSError:
                continue
    return found


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in STRONGEST else [pytest.mark.group("hostile")]) for name in PROGRAMS]
)
def test_nothing_is_left_after_the_deadline(box: Any, members: list[cgroup.Cgroup], name: str) -> None:
    ended = box(PROGRAMS[name], deadline_s=2.0)
    assert ended.reason is Reason.TIMEOUT, ended.outcome
    assert alive(members) == []


def test_a_daemon_does_not_outlive_a_command_that_ends(box: Any, members: list[cgroup.Cgroup]) -> None:
    program = PROGRAMS["double fork and setsid"].replace(
        # It lives long enough for its cgroup to be seen.
        "if os.fork() == 0:",
        "if os.fork():\n    import time\n    time.sleep(1)\n    os._exit(0)\nelse:",
        1,
    )
    ended = box(program, deadline_s=60.0)
    assert ended.reason is Reason.COMPLETED and ended.outcome.wall_s < 50, ended.outcome
    assert alive(members) == []


def test_a_reader_that_stalls_does_not_keep_a_sandbox_alive(
    box: Any, members: list[cgroup.Cgroup], monkeypatch: pytest.MonkeyPatch
) -> None:
    stalled = threading.Event()
    monkeypatch.setattr(Collecting, "output", lambda self, chunk: stalled.wait(30) and None)
    began = time.monotonic()
    ended = box("import os\nwhile True:\n    os.write(1, b'x' * 65536)\n", deadline_s=2.0, output_bytes=1024**4)
    assert ended.reason is Reason.TIMEOUT, ended.outcome
    assert alive(members) == [] and time.monotonic() - began < 90
    stalled.set()


def test_a_paused_sandbox_ends_at_its_deadline(box: Any, members: list[cgroup.Cgroup], home: Path) -> None:
    def pause() -> None:
        found = wait_for(lambda: [one for one in containers() if one.status == "running"])
        found[0].pause()
        paused.append(found[0].name)

    paused: list[str] = []
    helper = threading.Thread(target=pause)
    helper.start()
    ended = box(SLEEP, deadline_s=4.0, engine=open_engine("docker"))
    helper.join()
    assert paused and ended.reason is Reason.TIMEOUT, ended.outcome
    assert alive(members) == []

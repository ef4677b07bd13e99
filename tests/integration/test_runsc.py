"""gVisor's runtime under Docker: what holds there, and what is declared not to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from arsandbox.policies.model import MIB
from arsandbox.sandbox.engines.docker.engine import GVISOR
from arsandbox.sandbox.engines.registry import open_engine
from arsandbox.sandbox.errors import MachineError
from arsandbox.sandbox.models import Guarantee, Reason
from arsandbox_fixtures.docker_engine import docker_client
from arsandbox_fixtures.task import CONFIG

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

# runsc's own threads count in the pids cgroup, its kernel in the memory cgroup.
LIMITS = {"pids": 512, "memory_bytes": 256 * MIB}


@pytest.fixture
def runsc(home: Path) -> None:
    """The engine knows gVisor's runtime; asked when a test needs it, not when this file is read."""
    if GVISOR not in docker_client().info().get("Runtimes", {}):
        pytest.skip("the engine has no runsc (docs/configuration.md, Runtimes)")


@pytest.fixture
def engine(runsc: None) -> Any:
    return open_engine("docker", runtime=GVISOR)


def test_a_runtime_that_docker_lacks_is_refused_in_one_line(home: Path, project: Any) -> None:
    with pytest.raises(MachineError, match="--runtime missing: this Docker engine has no such runtime"):
        open_engine("docker", runtime="missing")
    done = project().run("--runtime", "missing")
    assert done.code == 4 and "--runtime missing" in done.err and "Traceback" not in done.err, done


def test_an_engine_without_runtimes_says_so() -> None:
    with pytest.raises(MachineError, match="--runtime runsc: the embedded engine has no runtimes"):
        open_engine("embedded", runtime="runsc")


def test_a_policy_that_demands_gvisor_refuses_runc(project: Any) -> None:
    task = project({"arsandbox.toml": CONFIG + '\n[policy]\nisolation = "gvisor"\n'})
    done = task.run()
    assert done.code == 4 and "asks for isolation 'gvisor'" in done.err and "--runtime runsc" in done.err, done


@pytest.mark.usefixtures("runsc")
def test_a_sandbox_runs_on_a_kernel_of_its_own(box: Any, engine: Any) -> None:
    info = engine.info()
    assert (info.runtime, info.isolation, info.guarantees.egress) == (GVISOR, "gvisor", Guarantee.NOT_OFFERED)
    assert info.guarantees.pids is Guarantee.BEST_EFFORT
    program = """
    import json, os, socket
    open("left.txt", "w").write("x"); os.remove("lower.txt")
    print(json.dumps({"version": open("/proc/version").read(), "uid": os.getuid(),
                      "interfaces": sorted(n for _, n in socket.if_nameindex())}))
    raise SystemExit(7)
    """
    ended = box(program, files={"lower.txt": "a"}, engine=engine, deadline_s=60, **LIMITS)
    assert (ended.reason, ended.outcome.termination.exit_code) == (Reason.CRASH, 7), ended.text
    seen = json.loads(ended.text.splitlines()[-1])
    assert "gVisor" in seen["version"] or "4.4.0" in seen["version"]
    assert seen["uid"] >= 61000 and seen["interfaces"] == ["lo"]
    changed = {(path.path, path.change) for path in ended.changes.paths}
    assert changed >= {("left.txt", "added"), ("lower.txt", "deleted")}


@pytest.mark.usefixtures("runsc")
@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("b = []\nwhile True:\n    b.append(bytearray(b'x' * 4_000_000))", Reason.OOM),
        ("import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(600)", Reason.TIMEOUT),
        ("import os\nwhile True:\n    os.write(1, b'x' * 65536)", Reason.OUTPUT),
        ("f = open('big', 'wb')\nwhile True:\n    f.write(b'x' * 1_000_000)", Reason.DISK),
    ],
    ids=["memory", "deadline", "output", "disk"],
)
def test_limits_end_in_their_typed_reason(box: Any, engine: Any, program: str, reason: Reason) -> None:
    deadline = 6.0 if reason is Reason.TIMEOUT else 60.0
    ended = box(program, engine=engine, deadline_s=deadline, **LIMITS)
    assert ended.reason is reason, (ended.outcome, ended.text[-300:])

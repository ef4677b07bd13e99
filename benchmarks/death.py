"""How long after its deadline a sandbox is gone: seconds of overshoot by program, median and worst.

python benchmarks/death.py [--engine docker|embedded] [--runs N] [--pids N] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
from contextlib import ExitStack
from pathlib import Path

from workloads import scratch_home

from arsandbox.policies.model import Limits
from arsandbox.sandbox import host, state
from arsandbox.sandbox.engines.port import Engine, SandboxSpec
from arsandbox.sandbox.engines.registry import open_engine
from arsandbox.sandbox.imaging import catalogue
from arsandbox.sandbox.models import ImageRef, Stage

MIB = 1024**2
DEADLINE_S = 2.0
PROGRAMS = {
    "sleeps": "import time; time.sleep(600)",
    "burns": "while True: pass",
    "ignores signals": "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)",
    "stops itself": "import os, signal; os.fork(); os.kill(0, signal.SIGSTOP)",
    "fork bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
}


class _Ignoring:
    def output(self, chunk: bytes) -> None:
        """Ignore."""

    def tick(self, elapsed_s: float, memory_bytes: int) -> None:
        """Ignore."""


def overshoot(engine: Engine, program: str, image: ImageRef, pids: int, place: Path) -> float:
    """Seconds from the deadline until every process was gone."""
    layer, scratch = place / "layer", place / "scratch"
    for directory in (layer, scratch):
        directory.mkdir(parents=True)
    place.chmod(0o755)
    identity = state.new_experiment_id()
    spec = SandboxSpec(
        experiment=identity, stage=Stage.TRAIN, image=image, command=("python3", "-c", program), environment={},
        layers=(layer,), deadline_s=DEADLINE_S, scratch=scratch,
        limits=Limits(cpus=1, memory_bytes=1024 * MIB, pids=pids, disk_bytes=16 * MIB, disk_inodes=4000),
        labels=host.labels(identity, "2030-01-01T00:00:00+00:00"),
    )  # fmt: skip
    with engine.sandbox(spec) as sandbox:
        outcome = sandbox.run(_Ignoring())
    shutil.rmtree(place)
    if outcome.termination.reason.value != "timeout":
        raise SystemExit(f"not ended by its deadline: {outcome.termination}")
    return outcome.wall_s - DEADLINE_S


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=("docker", "embedded"), default="docker")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--pids", type=int, default=512)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    engine = open_engine(options.engine)
    image = engine.find_image("cpu") if options.engine == "embedded" else None
    if image is None:
        image = ImageRef(name="cpu", digest=catalogue().resolve("cpu").digest)
    rows: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    with ExitStack() as stack:
        home = scratch_home(stack)
        for number in range(options.runs):
            for name, program in PROGRAMS.items():
                place = home / f"{number}-{name}".replace(" ", "-")
                rows[name].append(overshoot(engine, program, image, options.pids, place))
    root, docker = os.geteuid() == 0, options.engine == "docker"
    privilege = f"{options.engine}, " + ("root" if root else "socket alone" if docker else "ordinary user")
    if options.json:
        sys.stdout.write(json.dumps({"privilege": privilege, "pids": options.pids, "overshoot_s": rows}) + "\n")
        return
    sys.stdout.write(f"seconds after a deadline of {DEADLINE_S:g} s, {privilege}, pids {options.pids}\n")
    for name, values in rows.items():
        sys.stdout.write(f"{name:16} median {statistics.median(values):6.3f}   worst {max(values):6.3f}\n")


if __name__ == "__main__":
    main()

"""How fast work runs in a hardened sandbox, against the same work in a bare `docker run`: paired, as ratios.

python benchmarks/throughput.py [--rounds N] [--json]

The work times itself, by its own clock: starting and ending is overhead.py's matter. "bare" is `docker run` with
the engine's defaults and the same image, processors and memory, its workspace the container's own layer.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from workloads import scratch_home

from arsandbox.policies.model import GIB, MIB, Limits
from arsandbox.sandbox import host, state
from arsandbox.sandbox.engines.port import Engine, SandboxSpec
from arsandbox.sandbox.engines.registry import open_engine
from arsandbox.sandbox.errors import MachineError
from arsandbox.sandbox.imaging import catalogue
from arsandbox.sandbox.models import ImageRef, Stage

LIMITS = Limits(cpus=1, memory_bytes=GIB, disk_bytes=512 * MIB, disk_inodes=50_000, pids=256)
_TIMED = "import os, time\nbegan = time.perf_counter()\n{}\nprint(time.perf_counter() - began)\n"
WORK = {
    "numpy": "import numpy as np\na = np.random.default_rng(0).random((600, 600))\nfor _ in range(40): a = a @ a % 1",
    "interpreter": "n = 0\nfor i in range(6_000_000): n += i & 7",
    "system calls": "for _ in range(600_000): os.getppid()",
    "small files": (
        "for i in range(6_000):\n    with open(f'f{i}', 'w') as f: f.write('x' * 100)\n"
        "for i in range(6_000): os.unlink(f'f{i}')"
    ),
    "large file": "with open('big', 'wb') as f:\n    for _ in range(200): f.write(bytes(1 << 20))\nos.unlink('big')",
    "processes": "for _ in range(600):\n    p = os.fork()\n    if not p: os._exit(0)\n    os.waitpid(p, 0)",
    "memory": "for _ in range(12): b = bytearray(b'x') * (128 << 20); del b",
}


class _Output:
    def __init__(self) -> None:
        self.text = b""

    def output(self, chunk: bytes) -> None:
        """Keep it."""
        self.text += chunk

    def tick(self, elapsed_s: float, memory_bytes: int) -> None:
        """Ignore."""


def in_sandbox(engine: Engine, image: ImageRef, place: Path, work: str) -> float:
    """Seconds that `work` took in a sandbox of `engine`."""
    layer, scratch = place / "layer", place / "scratch"
    for directory in (layer, scratch):
        directory.mkdir(parents=True)
    place.chmod(0o755)
    layer.chmod(0o777)
    identity = state.new_experiment_id()
    spec = SandboxSpec(
        experiment=identity, stage=Stage.TRAIN, image=image, command=("python3", "-c", _TIMED.format(work)),
        environment={}, layers=(layer,), deadline_s=300.0, scratch=scratch, limits=LIMITS,
        labels=host.labels(identity, "2030-01-01T00:00:00+00:00"),
    )  # fmt: skip
    seen = _Output()
    with engine.sandbox(spec) as sandbox:
        outcome = sandbox.run(seen)
    shutil.rmtree(place, ignore_errors=True)
    if outcome.termination.exit_code != 0:
        raise SystemExit(f"{outcome.termination}: {seen.text!r}")
    return float(seen.text)


def bare(image: ImageRef, work: str) -> float:
    """Seconds that `work` took in a container with the engine's defaults."""
    threads = [f"--env={name}_NUM_THREADS=1" for name in ("OMP", "OPENBLAS", "MKL")]
    done = subprocess.run(
        ["docker", "run", "--rm", "--network=none", f"--cpus={LIMITS.cpus:g}", f"--memory={LIMITS.memory_bytes}",
         *threads, "--workdir=/tmp", image.digest, "python3", "-c", _TIMED.format(work)],
        check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return float(done.stdout)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="every sample")
    options = parser.parse_args()
    if shutil.which("docker") is None:
        parser.error("the docker command is not installed")
    pinned = catalogue().resolve("cpu")
    image = ImageRef(name="cpu", digest=pinned.digest)
    ways: dict[str, Callable[[Path, str], float]] = {"bare": lambda place, work: bare(image, work)}
    docker = open_engine("docker")
    ways["docker"] = lambda place, work: in_sandbox(docker, image, place, work)
    try:
        embedded = open_engine("embedded")
        own = embedded.find_image("host")
        assert own is not None
        ways["embedded"] = lambda place, work: in_sandbox(embedded, own, place, work)
    except MachineError as error:
        sys.stderr.write(f"without the embedded engine: {error.message}\n")
    rows: dict[str, dict[str, list[float]]] = {name: {way: [] for way in ways} for name in WORK}
    order = random.Random(0)
    with ExitStack() as stack:
        home = scratch_home(stack)
        for number in range(options.rounds):
            for name, work in WORK.items():
                for way in order.sample(sorted(ways), len(ways)):
                    rows[name][way].append(ways[way](home / f"{number}-{name}-{way}".replace(" ", "-"), work))
    if options.json:
        sys.stdout.write(json.dumps(rows) + "\n")
        return
    sys.stdout.write(f"load {os.getloadavg()[0]:.1f}, {options.rounds} rounds; seconds, ratio to bare\n")
    for name, row in rows.items():
        cells = [f"bare {statistics.median(row['bare']):7.3f} s"]
        for way in [way for way in row if way != "bare"]:
            ratio = statistics.median(a / b for a, b in zip(row[way], row["bare"], strict=True))
            cells.append(f"{way} {statistics.median(row[way]):7.3f} s {ratio:5.2f}")
        sys.stdout.write(f"{name:14}" + "   ".join(cells) + "\n")


if __name__ == "__main__":
    main()

"""What a stage costs on either engine, over a bare hardened container: paired, interleaved, medians and ratios.

python benchmarks/overhead.py [--pairs N] [--files N] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from probes import Probes
from workloads import Experiments, Stages, scratch_home, timed

from arsandbox.sandbox.engines.registry import open_engine
from arsandbox.sandbox.errors import MachineError
from arsandbox.sandbox.imaging import catalogue
from arsandbox.sandbox.models import ImageRef
from arsandbox.sandbox.record import Record

_KINDS = {
    "stage: arsandbox": "whole stage through the engine port",
    "stage: embedded": "the same by the embedded engine (bubblewrap), without Docker",
    "stage: hardened container": "create, start, wait, remove by the API, same flags, no workspace",
    "stage: docker run --rm": "the docker CLI, same flags",
    "experiment: small, --patch": "plan and run, 51 files",
    "experiment: small, working tree": "the same, candidate from the working tree",
    "experiment: large, --patch": "plan and run, --files files, three changed",
    "experiment: large, working tree": "the same, candidate from the working tree",
    "scan: small": "reading back three changed files and a new one",
    "scan: large": "the same over --files files",
    "arsandbox --help": "a process of its own",
    "python -c pass": "for comparison",
}


class Collected:
    """Samples by kind, records' own timings, and the split by probe."""

    def __init__(self) -> None:
        self.samples: dict[str, list[float]] = {}
        self.timings: dict[str, list[dict[str, float]]] = {}
        self.splits: dict[str, list[dict[str, float]]] = {}

    def experiment(self, kind: str, probes: Probes, call: Callable[[], Record]) -> float:
        """Run one experiment; returns its seconds."""
        probes.take()
        began = time.perf_counter()
        with probes.charged("other"):
            record = call()
        elapsed = time.perf_counter() - began
        self.timings.setdefault(kind, []).append(record.timing.model_dump())
        self.splits.setdefault(kind, []).append(probes.take())
        return elapsed

    def ratios(self, kind: str, to: str) -> list[float]:
        """The ratio of the two in each round."""
        return [a / b for a, b in zip(self.samples.get(kind, []), self.samples.get(to, []), strict=False)]


def measure(pairs: int, files: int, seed: int) -> tuple[Collected, dict[str, float]]:
    """Every kind once a round, in random order; and the first experiment of each repository, once."""
    engine = open_engine("docker")
    pinned = catalogue().resolve("cpu")
    image = ImageRef(name=pinned.name, digest=pinned.digest)
    probes, seen, cold = Probes(), Collected(), {}
    probes.install()
    with ExitStack() as stack:
        place = scratch_home(stack)
        stages, embedded = Stages(engine, image, place), _embedded(place)
        repositories = {}
        for size, count in (("small", 50), ("large", files)):
            _say(f"making the {size} repository ({count} files)")
            repositories[size] = repository = Experiments(engine, image, place / size, count)
            kind = f"experiment: {size}, first"
            cold[kind] = seen.experiment(kind, probes, repository.baseline)
        kinds = _kinds(stages, repositories, seen, probes)
        if embedded is not None:
            kinds["stage: embedded"] = embedded.through_the_port
        for call in kinds.values():  # warm up, not counted
            call()
        seen.timings = {k: v for k, v in seen.timings.items() if k in cold}
        seen.splits = {k: v for k, v in seen.splits.items() if k in cold}
        order = random.Random(seed)
        for number in range(pairs):
            _say(f"round {number + 1} of {pairs}")
            for kind in order.sample(sorted(kinds), len(kinds)):
                seen.samples.setdefault(kind, []).append(kinds[kind]())
    return seen, cold


def _embedded(place: Path) -> Stages | None:
    """The stages of the embedded engine, or None where it cannot be used; that is said."""
    try:
        engine = open_engine("embedded")
    except MachineError as error:
        _say(f"without the embedded engine: {error.message}")
        return None
    image = engine.find_image("host")
    assert image is not None
    (place / "embedded").mkdir(mode=0o755)
    return Stages(engine, image, place / "embedded")


def _kinds(
    stages: Stages, repositories: dict[str, Experiments], seen: Collected, probes: Probes
) -> dict[str, Callable[[], float]]:
    kinds: dict[str, Callable[[], float]] = {
        "stage: arsandbox": stages.through_the_port,
        "stage: hardened container": stages.by_the_api,
    }
    if shutil.which("docker"):
        kinds["stage: docker run --rm"] = stages.by_the_cli
    for size, repository in repositories.items():
        layers = repository.layers()
        kinds[f"scan: {size}"] = lambda layers=layers: stages.scan(layers)  # type: ignore[misc]
        for way, call in (("--patch", repository.by_patch), ("working tree", repository.by_working_tree)):
            kind = f"experiment: {size}, {way}"
            kinds[kind] = lambda kind=kind, call=call: seen.experiment(kind, probes, call)  # type: ignore[misc]
    script = Path(sys.executable).with_name("arsandbox")
    kinds["arsandbox --help"] = lambda: timed(lambda: _quiet([str(script), "--help"]))
    kinds["python -c pass"] = lambda: timed(lambda: _quiet([sys.executable, "-c", "pass"]))
    return kinds


def report(seen: Collected, cold: dict[str, float], files: int) -> str:
    """The tables, as text."""
    lines = [f"{'milliseconds':34}{'median':>9}{'p25':>9}{'p75':>9}   what"]
    for kind, what in _KINDS.items():
        if values := seen.samples.get(kind):
            low, middle, high = statistics.quantiles(values, n=4)
            what = what.replace("--files", f"{files:,}")
            lines.append(f"{kind:34}{middle * 1e3:9.1f}{low * 1e3:9.1f}{high * 1e3:9.1f}   {what}")
    for kind, seconds in cold.items():
        lines.append(f"{kind:34}{seconds * 1e3:9.1f}{'':18}   once: baseline, builds the snapshot")
    lines += ["", "ratios, median over the rounds"]
    for kind, to in (
        ("stage: arsandbox", "stage: hardened container"),
        ("stage: embedded", "stage: arsandbox"),
        ("stage: embedded", "stage: hardened container"),
        ("stage: docker run --rm", "stage: hardened container"),
        ("experiment: small, --patch", "stage: hardened container"),
        ("experiment: large, --patch", "experiment: small, --patch"),
        ("experiment: large, working tree", "experiment: small, working tree"),
        ("scan: large", "scan: small"),
        ("arsandbox --help", "python -c pass"),
    ):
        if values := seen.ratios(kind, to):
            lines.append(f"{statistics.median(values):8.2f}   {kind}  /  {to}")
    shown = [kind for kind in (*_KINDS, *cold) if kind in seen.splits]
    heads = [kind.removeprefix("experiment: ").replace("working tree", "tree") for kind in shown]
    lines += ["", f"{'median milliseconds of':26}" + "".join(f"{head:>16}" for head in heads)]
    labels = sorted({label for kind in shown for split in seen.splits[kind] for label in split})
    rows = {label: [_middle(seen.splits[kind], label) for kind in shown] for label in labels}
    for label, row in sorted(rows.items(), key=lambda item: -max(item[1])):
        lines.append(f"{label:26}" + "".join(f"{value * 1e3:16.1f}" for value in row))
    for label in ("queued_s", "setup_s", "run_s", "diff_s", "teardown_s"):
        row = [_middle(seen.timings[kind], label) for kind in shown]
        lines.append(f"{'record: ' + label:26}" + "".join(f"{value * 1e3:16.1f}" for value in row))
    return "\n".join(lines)


def _middle(rows: list[dict[str, float]], label: str) -> float:
    return statistics.median(row.get(label, 0.0) for row in rows)


def environment() -> dict[str, Any]:
    """What a reader must know of the machine."""
    info = open_engine("docker").info()
    return {
        "kernel": platform.release(),
        "cores": os.cpu_count(),
        "engine": f"docker {info.version}, {info.runtime}",
        "privilege": info.privilege,
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
    }


def _quiet(command: list[str]) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def main() -> None:
    """Measure and print; never fails for a time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=15, help="rounds (default 15)")
    parser.add_argument("--files", type=int, default=100_000, help="files of the large repository")
    parser.add_argument("--seed", type=int, default=0, help="of the order within a round")
    parser.add_argument("--json", action="store_true", help="every sample on standard output, the tables on the other")
    options = parser.parse_args()
    if options.pairs < 2 or options.files < 10:
        parser.error("--pairs must be at least 2, --files at least 10")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was made is removed
    facts = environment()
    seen, cold = measure(options.pairs, options.files, options.seed)
    text = "  ".join(f"{name} {value}" for name, value in facts.items())
    tables = f"{text}\n\n{report(seen, cold, options.files)}\n"
    (sys.stderr if options.json else sys.stdout).write(tables)
    if options.json:
        document = {
            "environment": facts,
            "pairs": options.pairs,
            "files": options.files,
            "first": cold,
            "samples": seen.samples,
            "splits": seen.splits,
            "timings": seen.timings,
        }
        sys.stdout.write(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()

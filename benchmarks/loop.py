"""How long the hardware idles between one training's end and the next one's start, in loops side by side.

    python benchmarks/loop.py [--blocks 3] [--rounds 6] [--seconds 2] [--evaluate 1] [--json]

A block is one loop of `--rounds` proposals in each of three ways, in random order, so that a busy moment hits
them alike: the sandbox made in its turn and the turn kept until the evaluation is over; the sandbox made in its
turn, the turn given on when training ends; and (what the loop does) the sandbox made ahead as well.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import random
import statistics
import sys
from contextlib import ExitStack
from pathlib import Path

from integrity import repository
from workloads import scratch_home

from arsandbox.sandbox.engines.port import Engine
from arsandbox.sandbox.engines.registry import open_engine
from arsandbox.sandbox.events import Silent
from arsandbox.sandbox.imaging import catalogue
from arsandbox.sandbox.ledger import Ledger
from arsandbox.sandbox.loop import running
from arsandbox.sandbox.loop.bounds import Bounds
from arsandbox.sandbox.loop.running import Order, loop
from arsandbox.sandbox.models import ImageRef
from arsandbox.sandbox.repository import Repository
from arsandbox.sandbox.settings import Options
from arsandbox.sandbox.slots import Slots

WAYS = {
    "in turn, kept through the evaluation": (False, False),
    "in turn, given on after training": (True, False),
    "ahead, given on after training": (True, True),
}
CONFIG = """
image = "cpu"
budget = "60s"
command = ["sh", "-c", "sleep {seconds}; mkdir -p out; cp src.txt out/"]
editable = ["src.txt"]
[metric]
name = "loss"
source = "evaluate"
[evaluate]
command = ["sh", "-c", "sleep {evaluate}; echo METRIC loss=1.0"]
artifacts = ["out/"]
[measurement]
pin = false
[decision]
rule = "greedy"
[limits]
cpus = 0.5
memory = "256m"
disk = "64m"
inodes = 20000
pids = 64
"""


def gaps(place: Path, way: str, engine: Engine, image: ImageRef, options: argparse.Namespace) -> list[float]:
    """`timing.gap_s` of every training of one loop but the first, which has none before it."""
    config = CONFIG.format(seconds=options.seconds, evaluate=options.evaluate)
    made = repository(place / "repository", {"arsandbox.toml": config.encode(), "src.txt": b"0\n"})
    queue = place / "queue"
    queue.mkdir()
    for number in range(options.rounds):
        (queue / f"{number:03}.patch").write_text(f"--- a/src.txt\n+++ b/src.txt\n@@ -1 +1 @@\n-0\n+{number + 1}\n")
    overlap, ahead = WAYS[way]
    slots = running.Slots
    running.Slots = functools.partial(  # type: ignore[assignment,misc]
        lambda count, **given: Slots(count, **{**given, "overlap": overlap, "ahead": ahead})
    )
    try:
        order = Order(made, f"patches:{queue}", Options(tag="bench"), Bounds())
        list(loop(order, engine, lambda name: image, Silent()))
    finally:
        running.Slots = slots  # type: ignore[misc]
    with Ledger.open(Repository.open(made).state) as ledger:
        records = ledger.latest()
    found = [record.timing.gap_s for record in records if record.round is not None]
    return [gap for gap in found if gap is not None]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=2.0, help="how long a training lasts")
    parser.add_argument("--evaluate", type=float, default=1.0, help="how long an evaluation lasts")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    image, engine = ImageRef(name="cpu", digest=catalogue().resolve("cpu").digest), open_engine("docker")
    chance = random.Random(options.seed)
    rows: dict[str, list[float]] = {way: [] for way in WAYS}
    with ExitStack() as stack:
        home = scratch_home(stack)
        for block in range(options.blocks):
            for way in chance.sample(list(WAYS), len(WAYS)):
                place = home / f"{block}-{len(rows[way])}-{list(WAYS).index(way)}"
                place.mkdir()
                rows[way] += gaps(place, way, engine, image, options)
    if options.json:
        sys.stdout.write(json.dumps({"load": os.getloadavg()[0], "gap_s": rows}) + "\n")
        return
    sys.stdout.write(f"seconds between trainings (load {os.getloadavg()[0]:.1f})    median    best   worst   n\n")
    for way, values in rows.items():
        middle = statistics.median(values)
        sys.stdout.write(f"{way:38}   {middle:9.3f}{min(values):8.3f}{max(values):8.3f}{len(values):4}\n")


if __name__ == "__main__":
    main()

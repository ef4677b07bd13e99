"""What the ledger costs when it is long: checking, appending, reading the end of it.

python benchmarks/ledger.py [--records N] [--long N] [--promoted SHARE] [--json]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import sqlite3
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import rfc8785

from arsandbox.sandbox import audit, promotion
from arsandbox.sandbox.ledger import GENESIS, Ledger
from arsandbox.sandbox.models import (
    ChangedPath,
    ChangeSet,
    EngineInfo,
    ImageRef,
    Patch,
    Reason,
    Stage,
    Termination,
    Usage,
    Verdict,
)
from arsandbox.sandbox.record import Baseline, Conditions, Decision, MetricInfo, PolicyInfo, Record, StageRecord, Timing
from arsandbox.sandbox.repository import Repository

_BRANCH = "arsandbox/bench"
_AIMS = {"audit, nothing promoted": 10.0, "audit": 10.0, "arsandbox history -n 20": 0.3}


def template(base: str, tree: str, patch: bytes) -> Record:
    """A record as a real experiment leaves it (about 3.5 KB of JSON)."""
    ended = Termination(reason=Reason.COMPLETED, exit_code=0, signal=None, detail="exit status 0")
    usage = Usage(cpu_s=12.25, peak_memory_bytes=28_000_000, peak_pids=3, disk_bytes=200_000, output_bytes=2000)
    stages = tuple(
        StageRecord(
            stage=kind, termination=ended, usage=usage, started_at="2026-01-02T03:04:05.678Z", wall_s=15.2,
            log_sha256="1" * 64, log_truncated=False,
        )
        for kind in (Stage.TRAIN, Stage.EVALUATE)
    )  # fmt: skip
    added = ChangedPath(path="out/model.safetensors", change="added", kind="file", size=200_000)
    return Record(
        id="",
        repo="/home/someone/task",
        branch=_BRANCH,
        base_commit=base,
        candidate_tree=tree,
        patch=Patch(sha256=hashlib.sha256(patch).hexdigest(), files=("train.py",), insertions=1, deletions=1),
        description="a better learning rate, and a word on why",
        image=ImageRef(name="cpu", digest="sha256:" + "d" * 64),
        command=("python", "train.py"),
        seed=1_234_567_890,
        budget_s=300.0,
        grace_s=30.0,
        engine=EngineInfo(name="docker", version="28.0", runtime="runc", isolation="container", privilege="root"),
        policy=PolicyInfo(
            sha256="e" * 64,
            effective={
                "network": "none",
                "limits": {"cpus": 1.0, "memory_bytes": 1 << 30, "pids": 256, "disk_bytes": 1 << 28},
                "edits": {"editable": ["train.py"], "protected": ["prepare.py", "evaluate.py", "arsandbox.toml"]},
            },
        ),
        metric=MetricInfo(name="val_bpb", goal="min", value=1.35869, source="evaluate"),
        metrics={"val_bpb": 1.35869},
        self_reported={"val_bpb": 1.36, "num_steps": 1000.0, "training_seconds": 14.2, "total_seconds": 15.1},
        trust="L2",
        setup_sha256="f" * 64,
        data_sha256="a" * 64,
        baseline=Baseline(experiment="20260102-030405-678-000000", value=1.4),
        verdict=Verdict.DISCARD,
        reason="val_bpb 1.41 against 1.4: worse by 0.01 (0.7%)",
        decision=Decision(rule="greedy", runs=(1.35869,), bound=0.0),
        stages=stages,
        change_set=ChangeSet(paths=(added,), bytes=200_000),
        artifacts={"out/model.safetensors": "b" * 64},
        timing=Timing(queued_s=0.1, setup_s=0.2, run_s=15.2, evaluate_s=1.1, diff_s=0.01, teardown_s=0.1),
        usage=usage,
        exit_code=0,
        started_at="2026-01-02T03:04:05.678Z",
        finished_at="2026-01-02T03:09:05.678Z",
        environment={"arsandbox": "0.1.0", "architecture": "x86_64", "cpu": "a processor", "kernel": "6.8.0"},
        conditions=Conditions(cores="0,1", memory_nodes="0", load_before=0.5, load_after=1.0, foreign_cpu=0.02),
        determinism={"ARSANDBOX_SEED": "1234567890", "PYTHONHASHSEED": "1234567890"},
    )


def git(place: Path, *arguments: str, stdin: bytes = b"") -> str:
    """One git command in the benchmark's own repository."""
    done = subprocess.run(
        ["git", "-c", "user.name=bench", "-c", "user.email=bench@localhost", *arguments],
        cwd=place, input=stdin, capture_output=True, check=True,
    )  # fmt: skip
    return done.stdout.decode().strip()


class Task:
    """A repository with one edit that every record is about."""

    def __init__(self, place: Path) -> None:
        place.mkdir()
        git(place, "init", "-q", "-b", "main")
        (place / "train.py").write_text("rate = 1\n")
        git(place, "add", "-A")
        git(place, "commit", "-q", "-m", "base")
        self.path = place
        self.repository = Repository.open(place)
        self.base = self.repository.head()
        blob = git(place, "hash-object", "-w", "--stdin", stdin=b"rate = 2\n")
        self.tree = git(place, "mktree", stdin=f"100644 blob {blob}\ttrain.py\n".encode())
        self.patch = self.repository.objects.unified_diff(self.base, self.tree)
        self.record = template(self.base, self.tree, self.patch)

    def commit(self, record: Record, head: str) -> str:
        """A promotion commit, written as a loose object: a git process each would take minutes."""
        who = "bench <bench@localhost> 1767323045 +0000"
        text = f"tree {self.tree}\nparent {self.base}\nauthor {who}\ncommitter {who}\n\n"
        body = (text + promotion.message(record, head)).encode()
        raw = b"commit %d\0" % len(body) + body
        name = hashlib.sha1(raw, usedforsecurity=False).hexdigest()
        target = self.path / ".git" / "objects" / name[:2] / name[2:]
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(zlib.compress(raw, 1))
        return name

    def fill(self, count: int, promoted: float) -> int:
        """Write `count` chained records into an empty ledger, `promoted` of them promotions; returns how many."""
        state = self.repository.state
        with Ledger.open(state):
            pass
        fixed = self.record.model_dump(mode="json", exclude={"ledger_hash"})
        previous, rows, promotions = GENESIS, [], 0
        for number in range(count):
            identity = f"20260102-030405-{number % 1000:03d}-{number:06x}"
            document = {**fixed, "id": identity, "previous_hash": previous}
            if int((number + 1) * promoted) > promotions:
                promotions += 1
                name = self.commit(self.record.model_copy(update={"id": identity}), previous)
                document["promotion"] = {"commit": name, "ref": f"refs/heads/{_BRANCH}"}
                document["verdict"] = "keep"
            previous = hashlib.sha256(rfc8785.dumps(document)).hexdigest()
            text = rfc8785.dumps({**document, "ledger_hash": previous}).decode()  # as Ledger.append stores it
            rows.append((identity, _BRANCH, "f" * 64, document["verdict"], self.tree, text, previous))
            home = state / "experiments" / identity
            home.mkdir(parents=True)
            (home / "patch.diff").write_bytes(self.patch)
        connection = sqlite3.connect(state / "ledger.db")
        with connection:
            connection.executemany(
                "INSERT INTO records (id, branch, setup, verdict, tree, document, hash) VALUES (?,?,?,?,?,?,?)", rows
            )
        connection.close()
        return promotions


Timed = tuple[float, float]


def timed(call: Callable[[], object], times: int = 1) -> Timed:
    """Medians of `times` calls: seconds on the wall, and of processors (on a busy machine far fewer)."""
    walls, cpus = [], []
    for _ in range(times):
        began, before = time.perf_counter(), os.times()
        call()
        after = os.times()
        walls.append(time.perf_counter() - began)
        cpus.append(sum(after[:4]) - sum(before[:4]))
    return statistics.median(walls), statistics.median(cpus)


def checked(task: Task) -> dict[str, Timed]:
    """Seconds for the chain alone and for the whole audit; fails when either finds a problem."""

    def chain() -> None:
        with Ledger.open(task.repository.state) as ledger:
            assert list(ledger.problems()) == []

    def everything() -> None:
        assert audit.problems(task.repository) == []

    return {"chain": timed(chain), "audit": timed(everything)}


def appended(task: Task, count: int) -> float:
    """Experiments announced and appended in a second (each is two transactions that reach the disk)."""
    with Ledger.open(task.repository.state) as ledger:
        began = time.perf_counter()
        for number in range(count):
            record = task.record.model_copy(update={"id": f"20270102-030405-000-{number:06x}"})
            ledger.begin(record)
            ledger.append(record)
        return count / (time.perf_counter() - began)


def read_back(task: Task) -> dict[str, Timed]:
    """Seconds to read the last 20 records: in a process that has them open, and as a whole command."""
    with Ledger.open(task.repository.state) as ledger:
        inside = timed(lambda: ledger.latest(20), times=20)
    command = [str(Path(sysconfig.get_path("scripts")) / "arsandbox"), "history", "-n", "20", "--repo", str(task.path)]

    def process(arguments: list[str]) -> Callable[[], object]:
        return lambda: subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL)

    process(command)()  # once for the page cache and the bytecode
    return {
        "latest(20)": inside,
        "arsandbox history -n 20": timed(process(command), times=15),
        "python -c pass": timed(process([sys.executable, "-c", "pass"]), times=15),
    }


def measure(records: int, long: int, promoted: float, appends: int) -> dict[str, Any]:
    """Every figure, each ledger in a fresh state directory."""
    with ExitStack() as stack:
        place = Path(tempfile.mkdtemp(prefix="bench-ledger-"))
        stack.callback(shutil.rmtree, place, ignore_errors=True)
        os.environ["ARSANDBOX_HOME"] = str(place / "home")
        plain, champion, longest = (Task(place / name) for name in ("plain", "promoted", "long"))
        plain.fill(records, 0.0)
        promotions = champion.fill(records, promoted)
        without, having = checked(plain), checked(champion)
        longest.fill(long, 0.0)
        return {
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "load_at_end": os.getloadavg()[0],
            "python": platform.python_version(),
            "records": records,
            "promotions": promotions,
            "long": long,
            "document_bytes": len(plain.record.model_dump_json()),
            "seconds": {
                "chain": without["chain"],
                "audit, nothing promoted": without["audit"],
                "audit": having["audit"],
                **read_back(longest),
            },
            "appends_per_second": appended(plain, appends),
        }


def say(found: dict[str, Any]) -> None:
    """The table."""
    what = {
        "chain": f"Ledger.problems(), {found['records']} records",
        "audit, nothing promoted": f"audit, {found['records']} records, none promoted",
        "audit": f"audit, {found['records']} records, {found['promotions']} promoted",
        "latest(20)": f"Ledger.latest(20), {found['long']} records",
        "arsandbox history -n 20": f"arsandbox history -n 20, {found['long']} records",
        "python -c pass": "python -c pass, for comparison",
    }
    head = f"{found['machine']}, load {found['load_at_end']:.1f} at the end; Python {found['python']}"
    print(f"{head}; {found['document_bytes']} bytes a record")
    print(f"{'':<52} {'wall s':>10} {'CPU s':>10}")
    for name, (wall, cpu) in found["seconds"].items():
        aim = _AIMS.get(name)
        verdict = "" if aim is None else f"   aim < {aim:g} s: {'met' if wall < aim else 'MISSED'}"
        print(f"{what[name]:<52} {wall:>10.4f} {cpu:>10.4f}{verdict}")
    print(f"{'begin and append, synchronous=FULL':<52} {found['appends_per_second']:>8.0f} /s")


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--records", type=int, default=20_000, help="records that are checked (20,000)")
    parser.add_argument("--long", type=int, default=100_000, help="records of the ledger that is read (100,000)")
    parser.add_argument("--promoted", type=float, default=0.05, help="share of promotions in the second audit (0.05)")
    parser.add_argument("--appends", type=int, default=500)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = measure(arguments.records, arguments.long, arguments.promoted, arguments.appends)
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        say(found)


if __name__ == "__main__":
    main()

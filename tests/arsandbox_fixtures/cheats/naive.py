"""A runner as most are: one container for the whole session, one working copy, and the number is believed.

It does what loops around training code commonly do: run the command with its output in a log file, search that for
the number (or read the metrics file), copy the results to a store of its own, and take the edit back if the number is
not better. It is here to show that each cheat of the corpus is real. The container is there to protect the machine
that runs these tests, not the number: it has no network and bounded memory.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

USER = "61000:61000"
LOG = "/run.log"
PAUSE_SECONDS = 0.1


@dataclass(frozen=True)
class Seen:
    """What the naive runner made of one run."""

    value: float | None
    kept: bool
    output: bytes
    stored: Path
    survivors: int


class NaiveRunner:
    """One long-lived container with one working copy at /work."""

    def __init__(self, client: Any, image: str, place: Path, files: dict[str, bytes], config: str) -> None:
        self._config = tomllib.loads(config)
        self._metric = self._config["metric"]
        self.work, self._store = place / "work", place / "store"
        self._store.mkdir(parents=True)
        for path, content in files.items():
            target = self.work / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        self.open_up()
        self._log = place / "run.log"
        self._log.touch()
        self._log.chmod(0o666)  # the container's user truncates it at each run
        self._best: float | None = None
        self._runs = 0
        self._container = client.containers.run(
            image, ["sleep", "600"], detach=True, user=USER, working_dir="/work", network_disabled=True,
            volumes={
                str(self.work): {"bind": "/work", "mode": "rw"}, str(self._log): {"bind": LOG, "mode": "rw"},
            },
            tmpfs={"/tmp": ""},
            mem_limit="1g", pids_limit=512, init=True,
            environment={
                "HOME": "/tmp", "PYTHONPATH": "/work", "ARSANDBOX_SEED": "7", "ARSANDBOX_BUDGET_SECONDS": "0.3",
                **self._config.get("environment", {}),
            },
        )  # fmt: skip

    def close(self) -> None:
        """Remove the container."""
        self._container.remove(force=True)

    def open_up(self) -> None:
        """Let the container's user write everywhere in the working copy; before anything untrusted has run there."""
        for path in (self.work, *self.work.rglob("*")):
            path.chmod(0o777 if path.is_dir() else 0o666)

    def prepare(self) -> None:
        """Run the project's preparation in the working copy, as people do once by hand."""
        if "prepare" in self._config:
            code, output = self._exec(self._config["prepare"]["command"])
            assert code == 0, output

    def apply(self, patch: Path) -> None:
        """Apply the edit before anything of it has run."""
        subprocess.run(["git", "apply", "--whitespace=nowarn", str(patch)], cwd=self.work, check=True)
        self.open_up()

    def run(self) -> Seen:
        """Run the command and judge."""
        self._runs += 1
        _, output = self._exec(self._config["command"])
        time.sleep(PAUSE_SECONDS)  # the runner has other things to do before it looks
        value = self._from_file() if self._metric["source"] == "file" else self._from_output(output)
        kept = value is not None and (self._best is None or not self._worse_or_equal(value))
        if kept:
            self._best = value
        self._note(value, kept)
        return Seen(value, kept, output, self._copy(), self._processes())

    def _exec(self, command: list[str]) -> tuple[int, bytes]:
        # As `train.py > run.log 2>&1` by hand. The engine's own stream of an exec would not do: it joins standard
        # output and error as they come, in the middle of a line too, and may end before the last of them.
        done = self._container.exec_run(["sh", "-c", f'exec "$@" > {LOG} 2>&1', "sh", *command], user=USER)
        return done.exit_code, self._log.read_bytes() or done.output or b""

    def _worse_or_equal(self, value: float) -> bool:
        """As it is usually written: `if value >= best: revert`, which NaN passes."""
        assert self._best is not None
        return value <= self._best if self._metric["goal"] == "max" else value >= self._best

    def _from_output(self, output: bytes) -> float | None:
        pattern = rf"{re.escape(self._metric['name'])}[:=]\s*(\S+)"
        found = re.findall(pattern, output.decode(errors="replace"))
        try:
            return float(found[-1]) if found else None
        except ValueError:
            return None

    def _from_file(self) -> float | None:
        try:
            return float(json.loads((self.work / self._metric["file"]).read_text()).get(self._metric["name"], 0.0))
        except (OSError, ValueError):
            return None

    def _note(self, value: float | None, kept: bool) -> None:
        """One more row of results.tsv, beside the code, as autoresearch keeps it."""
        with (self.work / "results.tsv").open("a") as file:
            file.write(f"{self._runs}\t{value}\t{'keep' if kept else 'discard'}\n")

    def _copy(self) -> Path:
        """Keep the results of the run."""
        target = self._store / str(self._runs)
        if (self.work / "out").is_dir():
            shutil.copytree(self.work / "out", target, ignore_dangling_symlinks=True, copy_function=_copy_file)
        return target

    def _processes(self) -> int:
        """How many processes of the run are still there: all but the container's own two."""
        return len(self._container.top()["Processes"]) - 2


def _copy_file(source: str, target: str) -> str:
    """Copy what can be read; a FIFO or a device would block."""
    return shutil.copyfile(source, target) if Path(source).is_file() else target

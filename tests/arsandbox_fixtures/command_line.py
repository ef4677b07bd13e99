"""The console script, started as users start it but for its imports, which a fork server has made: see forked.py."""

from __future__ import annotations

import json
import os
import subprocess
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arsandbox_fixtures import forked
from arsandbox_fixtures.home import session_home

COMMAND = Path(sysconfig.get_path("scripts")) / "arsandbox"


@dataclass
class Done:
    """A command that ended."""

    code: int
    out: str
    err: str
    peak_rss: int = 0

    @property
    def record(self) -> dict[str, Any]:
        """The one JSON document on standard output."""
        document = json.loads(self.out)
        assert isinstance(document, dict), self.out
        return document

    def __str__(self) -> str:
        return f"exit {self.code}\n--- stdout\n{self.out}\n--- stderr\n{self.err}"


@dataclass
class Running:
    """The CLI while it runs."""

    process: subprocess.Popen[str]

    def wait(self, seconds: float = 90) -> Done:
        """What came of it."""
        out, err = self.process.communicate(timeout=seconds)
        return Done(self.process.returncode, out, err)


def arsandbox(
    *arguments: str | Path, env: dict[str, str] | None = None, cwd: Path | None = None, timeout: float = 120,
    prefix: Sequence[str] = (), fresh: bool = False,
) -> Done:  # fmt: skip
    """Run the console script and wait; no traceback may ever be on standard error."""
    done = start(*arguments, env=env, cwd=cwd, prefix=prefix, fresh=fresh).wait(timeout)
    assert "Traceback" not in done.err, done
    return done


def start(
    *arguments: str | Path, env: dict[str, str] | None = None, cwd: Path | None = None, prefix: Sequence[str] = (),
    fresh: bool = False,
) -> Running:  # fmt: skip
    """Start it from the fork server, or afresh: with a `prefix`, or an environment that changes what is imported.

    `fresh`: the script itself, for tests of how it starts.
    """
    session_home()
    environment = {**os.environ, **(env or {})}
    afresh = fresh or bool(prefix) or not forked.can_start(environment)
    popen = subprocess.Popen if afresh else forked.Popen
    return Running(
        popen(
            [*prefix, str(COMMAND), *map(str, arguments)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
            env=environment, cwd=cwd,
        )
    )  # fmt: skip


def driven(program: str, arguments: Sequence[str | Path], env: dict[str, str], *, timeout: float = 120) -> Done:
    """Run the CLI inside `program`, which changes one of its functions before it calls main()."""
    session_home()
    done = subprocess.run(
        [str(Path(sysconfig.get_path("scripts")) / "python"), "-P", "-c", program, *map(str, arguments)],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=timeout,
        env={**os.environ, **env},
    )  # fmt: skip
    return Done(done.returncode, done.stdout, done.stderr)


def json_lines(text: str) -> list[Any]:
    """The documents in `text`, one a line."""
    return [json.loads(line) for line in text.splitlines()]

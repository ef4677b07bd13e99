"""Starting the host programs that a build needs."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from typing import IO

from arsandbox.sandbox.errors import MachineError


def run_program(
    argv: Sequence[str],
    *,
    missing_hint: str,
    failed_hint: str = "",
    env: Mapping[str, str] | None = None,
    stdin: bytes = b"",
    stdout: IO[bytes] | None = None,
    accept: tuple[int, ...] = (0,),
) -> bytes:
    """Run `argv` without a shell and return its standard output (empty when `stdout` receives it).

    Raises MachineError with `missing_hint` when there is no such program, and with its last lines and
    `failed_hint` when it ends with a code that is not in `accept`.
    """
    program = argv[0].rpartition("/")[2]
    try:
        done = subprocess.run(
            list(argv),
            input=stdin,
            stdout=stdout if stdout is not None else subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(env) if env is not None else None,
            check=False,
        )
    except FileNotFoundError as error:
        raise MachineError(f"{program} is not installed", hint=missing_hint) from error
    except OSError as error:
        raise MachineError(f"{program} cannot be started: {error}", hint=missing_hint) from error
    if done.returncode not in accept:
        lines = [line.strip() for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
        # Programs put the cause in lines marked as errors and then clean up; without any, the end must do.
        telling = [line for line in lines if line.lower().startswith(("e:", "error"))] or lines
        detail = "; ".join(telling[-3:]) or "no message"
        raise MachineError(f"{program} failed (exit {done.returncode}): {detail}", hint=failed_hint)
    return done.stdout or b""

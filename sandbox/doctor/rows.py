"""One row of the examination, and how things are tried."""

from __future__ import annotations

import subprocess
from typing import Literal

from arsandbox.sandbox.models import Model


class Row(Model):
    """One check: what was found, and the one command that helps (empty when all is well).

    `warning`: sandboxes work, with less than they could have; `missing`: they do not, or not safely.
    """

    name: str
    status: Literal["ok", "warning", "missing"]
    detail: str
    fix: str = ""


def attempt(arguments: list[str]) -> str | None:
    """None when the command worked, else its last line."""
    try:
        done = subprocess.run(
            arguments, capture_output=True, text=True, errors="replace", check=False, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError:
        return f"{arguments[0]} is not installed"
    except OSError as error:
        return f"{arguments[0]} cannot be started: {error.strerror}"
    if done.returncode == 0:
        return None
    return (done.stderr.strip().splitlines() or ["no message"])[-1]

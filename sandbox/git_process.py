"""Git as a program: outside any work tree, without anybody's configuration, hooks or prompts."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from arsandbox.sandbox.errors import MachineError, RepositoryError


def git_environment(git_directory: Path, *, index: Path | None = None) -> dict[str, str]:
    """A minimal environment for git: no user or system config, no hooks, no prompts, no replace refs."""
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": os.devnull,
        "LC_ALL": "C",
        "GIT_DIR": str(git_directory),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_ALLOW_PROTOCOL": "none",  # the same for git before 2.44: no transport, so nothing is fetched
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_AUTHOR_NAME": "arsandbox",
        "GIT_AUTHOR_EMAIL": "arsandbox@localhost",
        "GIT_COMMITTER_NAME": "arsandbox",
        "GIT_COMMITTER_EMAIL": "arsandbox@localhost",
    }
    return environment if index is None else {**environment, "GIT_INDEX_FILE": str(index)}


SAFE_OPTIONS = (
    "--literal-pathspecs",
    "-c", "core.hooksPath=/dev/null",
    "-c", "core.fsmonitor=false",
    "-c", "core.logAllRefUpdates=true",
    "-c", "gc.auto=0",
    "-c", "maintenance.auto=false",
)  # fmt: skip


def run_git(
    git_directory: Path,
    arguments: Sequence[str],
    *,
    stdin: bytes = b"",
    check: bool = True,
    index: Path | None = None,
    timeout: float | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """Run git on `git_directory` outside any work tree.

    Raises RepositoryError with git's own last line, or when it takes more than `timeout` seconds; MachineError
    without git.
    """
    try:
        done = subprocess.run(
            ["git", *SAFE_OPTIONS, *arguments],
            input=stdin,
            capture_output=True,
            check=False,
            cwd="/",
            env=git_environment(git_directory, index=index),
            timeout=timeout,
        )
    except FileNotFoundError as error:
        raise MachineError("git is not installed", hint="sudo apt-get install git") from error
    except subprocess.TimeoutExpired as error:
        raise RepositoryError(f"git {arguments[0]} does not answer on {git_directory}") from error
    if check and done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        raise RepositoryError(f"git {arguments[0]} failed: {lines[-1]}")
    return done

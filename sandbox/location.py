"""Find a repository's state directory without opening the repository: reading history must be quick."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from arsandbox.sandbox import state
from arsandbox.sandbox.errors import MachineError, RepositoryError, UsageError
from arsandbox.sandbox.git_process import SAFE_OPTIONS, git_environment

_ANSWER_S = 20.0


def find_state(path: Path) -> Path:
    """The state directory of the repository that `path` is in. Raises UsageError where there is none.

    Raises RepositoryError where git does not answer, MachineError where there is none.
    """
    if not path.exists():
        raise UsageError(f"--repo {path}: no such directory")
    # Only asks where the repository is; `safe.directory` because reading our ledger trusts nothing in it.
    arguments = ["rev-parse", "--path-format=absolute", "--git-common-dir"]
    environment = {name: value for name, value in git_environment(Path()).items() if name != "GIT_DIR"}
    try:
        found = subprocess.run(
            ["git", *SAFE_OPTIONS, "-c", "safe.directory=*", *arguments],
            cwd=path,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=_ANSWER_S,
        )
    except subprocess.TimeoutExpired as error:  # a FIFO in place of its config
        raise RepositoryError(f"{path}: git does not answer; is its .git intact?") from error
    except FileNotFoundError as error:
        raise MachineError("git is not installed", hint="sudo apt-get install git") from error
    except NotADirectoryError as error:
        raise UsageError(f"--repo {path}: is not a directory") from error
    if found.returncode != 0:
        raise UsageError(
            f"{path.resolve()} is not in a git repository", hint="git init && git add -A && git commit -m base"
        )
    return state.repository_state(Path(os.fsdecode(found.stdout.removesuffix(b"\n"))))

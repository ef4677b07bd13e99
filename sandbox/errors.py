"""Our own failures: each is one clear line, a hint, and an exit code of docs/exit-codes.

How an experiment ends is never an exception: that is a `Termination` or a verdict (models.py).
"""

from __future__ import annotations

from typing import ClassVar


class ArsandboxError(Exception):
    """A refusal or failure that the user can act on.

    `message` says what and where, in one line; `hint` how to fix it (may be empty);
    `exit_code` is what the command line ends with.
    """

    exit_code: ClassVar[int] = 5

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(ArsandboxError):
    """The call or a config file is wrong (exit 2)."""

    exit_code = 2


class ConflictError(UsageError):
    """An edit does not fit the commit that it was to be put onto (exit 2); `paths` are the files that stand against it.

    `paths` is empty for a patch that git cannot apply anywhere.
    """

    def __init__(self, message: str, *, paths: tuple[str, ...] = (), hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.paths = paths


class RefusedError(ArsandboxError):
    """A policy or an integrity check says no (exit 3)."""

    exit_code = 3


class MachineError(ArsandboxError):
    """This machine cannot do it: no engine, image, GPU or isolation level (exit 4)."""

    exit_code = 4


class NotRemovedError(MachineError):
    """The engine could not remove a sandbox (exit 4); its run directory stays, for the next recovery to do it."""


class RepositoryError(ArsandboxError):
    """The git repository cannot be read or changed as asked (exit 5); nothing was promoted."""

    exit_code = 5


class StateError(ArsandboxError):
    """The state directory or its ledger cannot be read or written (exit 5); nothing was promoted."""

    exit_code = 5


class Interrupted(ArsandboxError):  # noqa: N818 - the field's name for Ctrl-C, not a failure
    """The user ended the command (exit 130); the sandbox is gone."""

    exit_code = 130

"""The one error boundary: our errors become one line and an exit code, never a traceback."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

import typer

from arsandbox.sandbox.errors import ArsandboxError

# typer may bring a click of its own, so the base class of its complaints is found, not imported.
_ClickException: type[typer.BadParameter] = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)


def guarded(command: Callable[[], object]) -> int:
    """Run `command` and return the exit code; errors are said on standard error (and as JSON if asked)."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        result = command()
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except typer.Exit as error:
        return int(error.exit_code)
    except _ClickException as error:
        hint = _usage_hint(error)
        return _say(error.format_message(), hint, 2)
    except ArsandboxError as error:
        return _say(error.message, error.hint, error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return _say("interrupted", "", 130)
    except BrokenPipeError:
        # The reader of our output went away (`| head`): not an error of ours, and nothing more to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        return _say(f"{error.strerror or error}{where}", "is the disk full, or a permission missing?", 5)
    except Exception as error:
        if os.environ.get("ARSANDBOX_DEBUG"):
            raise
        hint = "set ARSANDBOX_DEBUG=1 for the traceback and report it"
        return _say(f"internal error: {type(error).__name__}: {error}", hint, 5)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _usage_hint(error: Exception) -> str:
    context = getattr(error, "ctx", None)
    return f"{context.command_path} --help" if context is not None else "arsandbox --help"


def _say(message: str, hint: str, code: int) -> int:
    line = " ".join(message.split())
    if "--json" in sys.argv[1:]:
        sys.stdout.write(json.dumps({"error": {"message": line, "hint": hint, "exit_code": code}}) + "\n")
    sys.stderr.write(f"arsandbox: {line}\n")
    if hint:
        sys.stderr.write(f"  fix: {hint}\n")
    return code


def application(**options: object) -> typer.Typer:
    """A typer application with our conventions: no shell completion noise, `-h`, plain errors."""
    return typer.Typer(
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        **options,  # type: ignore[arg-type]
    )

"""The one error boundary: our errors become one line and an exit code, never a traceback."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import typer
from typer.core import TyperGroup

from arsandbox.cli.interrupts import ignore_interrupts, raise_interrupts
from arsandbox.sandbox.errors import ArsandboxError, Interrupted

if TYPE_CHECKING:
    from typing_extensions import Buffer

# typer may bring a click of its own, so the base class of its complaints is found, not imported.
_ClickException: type[typer.BadParameter] = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)


class _ReaderGoneError(Exception):
    """The reader of our standard output went away (`| head`); no OSError, which click and rich answer themselves."""


class _Output(io.FileIO):
    def write(self, data: Buffer, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError as error:
            raise _ReaderGoneError from error


def guarded(command: Callable[[], object]) -> int:
    """Run `command` and return the exit code; errors are said on standard error (and as JSON if asked).

    The process is to end with it: afterwards it ignores interrupts.
    """
    raise_interrupts()
    _watch_output()
    code = 0
    try:
        try:
            code = _code(command)
            sys.stdout.flush()
        finally:
            ignore_interrupts()  # a second Ctrl-C comes too late: neither a traceback nor another exit code
        return code
    except _ClickException as error:
        return _say(error.format_message() + _refused_value(error), _usage_hint(error), 2)
    except ArsandboxError as error:
        return _say(error.message, error.hint, error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return _say("interrupted", "", 130)
    except _ReaderGoneError:
        _discard_output()
        return code  # no error of ours, but none of what the command had found goes away with the reader
    except OSError as error:
        return _say_failure(error)
    except SystemExit as error:  # how click and rich answer a broken pipe to whomever
        if not isinstance(error.__context__, OSError):
            raise
        return _say_failure(error.__context__)
    except Exception as error:  # the boundary: whatever is left is a bug of ours, said in one line
        if os.environ.get("ARSANDBOX_DEBUG"):
            raise
        hint = "set ARSANDBOX_DEBUG=1 for the traceback and report it"
        return _say(f"internal error: {type(error).__name__}: {error}", hint, 5)


def _code(command: Callable[[], object]) -> int:
    try:
        result = command()
    except typer.Exit as error:
        return int(error.exit_code)
    return result if isinstance(result, int) else 0


@contextlib.contextmanager
def last_words() -> Iterator[None]:
    """Around what a command prints of its findings: a reader that goes away (`| head`) does not end the command.

    Its exit code is then still what it found.
    """
    try:
        yield
        sys.stdout.flush()
    except _ReaderGoneError:
        _discard_output()


def _watch_output() -> None:
    """Make a broken pipe of our standard output tell itself apart from those of git and the engine."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started us: its number must not become another file's
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
    output = sys.stdout
    if isinstance(output, io.TextIOWrapper) and output is sys.__stdout__:
        output.flush()
        sys.stdout = io.TextIOWrapper(
            io.BufferedWriter(_Output(output.fileno(), "w", closefd=False)),
            encoding=output.encoding,
            errors=output.errors,
            line_buffering=output.line_buffering,
            write_through=output.write_through,
        )


def _discard_output() -> None:
    """Let what is still buffered for standard output go nowhere, so that no later flush fails."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _refused_value(error: Exception) -> str:
    """The value itself, which typer's complaints leave out where pydantic made them."""
    from pydantic import ValidationError

    cause = error.__cause__
    return f", not {cause.errors()[0]['input']!r}" if isinstance(cause, ValidationError) else ""


def _usage_hint(error: Exception) -> str:
    context, option = getattr(error, "ctx", None), getattr(error, "param", None)
    path = context.command_path if context is not None else "arsandbox"
    help_text = str(getattr(option, "help", None) or "").rstrip(".")
    if option is None or not help_text:
        return f"{path} --help"
    return f"{option.opts[0]}: {help_text} ({path} --help)"


def _say_failure(error: OSError) -> int:
    where = f" {error.filename}" if error.filename else ""
    hint = "is the disk full, or a permission missing?"
    if isinstance(error, ConnectionError):
        hint = "a program that this one talked to ended early: try again"
    return _say(f"{error.strerror or error}{where}", hint, 5)


def _say(message: str, hint: str, code: int) -> int:
    line, fix = _one_line(message), _one_line(hint)
    try:
        if _json_is_asked():
            sys.stdout.write(json.dumps({"error": {"message": line, "hint": fix, "exit_code": code}}) + "\n")
        sys.stdout.flush()
    except (OSError, _ReaderGoneError):
        _discard_output()
    with contextlib.suppress(OSError):
        sys.stderr.write(f"arsandbox: {line}\n")
        if fix:
            sys.stderr.write(f"  fix: {fix}\n")
    return code


def _one_line(text: str) -> str:
    from arsandbox.sandbox.state import printable

    return printable(" ".join(text.split()))


def _json_is_asked() -> bool:
    """Whether `--json` is among our arguments; what follows `--` is the training command's."""
    arguments = sys.argv[1:]
    return "--json" in (arguments[: arguments.index("--")] if "--" in arguments else arguments)


class _Commands(TyperGroup):
    """Lets Ctrl-C through to the boundary, as an error of ours: typer would answer it without a word."""

    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Interrupted("interrupted") from error


def application(**options: object) -> typer.Typer:
    """A typer application with our conventions: no shell completion noise, `-h`, plain errors."""
    return typer.Typer(
        cls=_Commands,
        add_completion=False,
        no_args_is_help=True,
        rich_markup_mode=None,  # its help pages cost as much time as all the rest of `--help`
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        **options,  # type: ignore[arg-type]
    )

"""The error boundary: each kind of end becomes an exit code and one plain line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest
import typer

from arsandbox.cli.boundary import application, guarded
from arsandbox.sandbox import errors

Raise = Callable[[], object]


@pytest.fixture(autouse=True)
def quiet_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["arsandbox", "run"])


def raising(error: BaseException) -> Raise:
    def command() -> object:
        raise error

    return command


ENDS: list[tuple[BaseException, int, str]] = [
    (errors.UsageError("bad call", hint="do this"), 2, "bad call"),
    (errors.RefusedError("no"), 3, "no"),
    (errors.MachineError("no engine"), 4, "no engine"),
    (errors.RepositoryError("broken"), 5, "broken"),
    (errors.StateError("locked"), 5, "locked"),
    (errors.Interrupted("stopped"), 130, "stopped"),
    (errors.ArsandboxError("general"), 5, "general"),
    (KeyboardInterrupt(), 130, "interrupted"),
    (typer.Abort(), 130, "interrupted"),
    (typer.BadParameter("not a number"), 2, "not a number"),
    (OSError(28, "No space left on device", "/x/y"), 5, "No space left on device /x/y"),
    (OSError("odd"), 5, "odd"),
    (ValueError("boom"), 5, "internal error: ValueError: boom"),
    (RecursionError("deep"), 5, "internal error: RecursionError: deep"),
    (MemoryError(), 5, "internal error: MemoryError"),
]


@pytest.mark.parametrize(("error", "code", "words"), ENDS, ids=lambda value: type(value).__name__)
def test_every_error_is_a_code_and_one_line(
    error: BaseException, code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert guarded(raising(error)) == code
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == "" and lines[0].startswith("arsandbox: ") and words in lines[0]
    assert len(lines) <= 2 and all(line.startswith("  fix: ") for line in lines[1:])
    assert "Traceback" not in err


@pytest.mark.parametrize(("error", "code", "words"), ENDS, ids=lambda value: type(value).__name__)
def test_with_json_the_error_is_one_document_on_standard_output(
    error: BaseException, code: int, words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["arsandbox", "run", "--json"])
    assert guarded(raising(error)) == code
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert out.count("\n") == 1
    assert document["error"]["exit_code"] == code and words in document["error"]["message"]
    assert words in err


@pytest.mark.parametrize(("result", "code"), [(None, 0), (0, 0), (1, 1), (3, 3), (130, 130), ("text", 0)])
def test_the_command_s_own_result_is_the_exit_code(result: object, code: int) -> None:
    assert guarded(lambda: result) == code


@pytest.mark.parametrize("depth", [1, 2])
def test_ctrl_c_in_a_command_is_said_and_not_swallowed_on_its_way(
    depth: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    app, inner = application(), application()

    def stopped(json: bool = False) -> None:
        raise KeyboardInterrupt

    (app if depth == 1 else inner).command("stopped")(stopped)
    app.command("other")(lambda: None)
    inner.command("other")(lambda: None)
    app.add_typer(inner, name="inner")
    arguments = ["inner", "stopped", "--json"][2 - depth :]
    monkeypatch.setattr(sys, "argv", ["arsandbox", *arguments])
    assert guarded(lambda: app(standalone_mode=False)) == 130
    out, err = capsys.readouterr()
    assert json.loads(out)["error"] == {"message": "interrupted", "hint": "", "exit_code": 130}
    assert err == "arsandbox: interrupted\n"


@pytest.mark.parametrize("code", [0, 2, 7])
def test_typer_exits_keep_their_code_and_say_nothing(code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(raising(typer.Exit(code))) == code
    assert capsys.readouterr() == ("", "")


def test_a_message_of_many_lines_becomes_one(capsys: pytest.CaptureFixture[str]) -> None:
    guarded(raising(errors.UsageError("a\n  b\r\nc\u2028d")))
    assert capsys.readouterr().err == "arsandbox: a b c d\n"


def test_control_sequences_never_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Messages quote paths and output that the candidate chose (containment 35)."""
    guarded(raising(errors.RefusedError("file \x1b[2J\x1b]0;owned\x07\x9b1m\u202e.py", hint="rm \x1b[8mhidden")))
    text = capsys.readouterr().err
    assert "\x1b" not in text and "\x07" not in text and "\x9b" not in text and "\u202e" not in text


def test_a_hint_of_many_lines_stays_on_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    guarded(raising(errors.UsageError("a", hint="b\narsandbox: keep")))
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_names_that_are_no_text_do_not_break_the_message() -> None:
    code = (
        "import os, sys\nfrom arsandbox.cli.boundary import guarded\n"
        "def command():\n    raise OSError(2, 'No such file', os.fsdecode(b'/x/\\xff\\n'))\n"
        "sys.exit(guarded(command))"
    )
    done = subprocess.run([sys.executable, "-c", code, "--json"], capture_output=True, check=False)
    assert done.returncode == 5
    assert json.loads(done.stdout)["error"]["exit_code"] == 5
    assert len(done.stderr.splitlines()) == 2


def test_json_in_the_training_command_is_not_an_option_of_ours(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["arsandbox", "run", "--", "python", "train.py", "--json"])
    guarded(raising(errors.UsageError("bad")))
    assert capsys.readouterr().out == ""


def test_debug_lets_the_traceback_through_for_bugs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARSANDBOX_DEBUG", "1")
    with pytest.raises(ValueError, match="boom"):
        guarded(raising(ValueError("boom")))
    assert guarded(raising(errors.UsageError("bad"))) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_term_and_hangup_interrupt_as_ctrl_c_does(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        os.kill(os.getpid(), number)
        signal.pause()

    assert guarded(command) == 130
    assert "interrupted" in capsys.readouterr().err


PIPE = """
import sys
from arsandbox.cli.boundary import guarded
def command():
    for number in range(100000):
        print(number)
sys.exit(guarded(command))
"""


def test_a_reader_that_went_away_is_no_error() -> None:
    with subprocess.Popen([sys.executable, "-c", PIPE], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        said = process.stderr.read()
    assert (process.returncode, said) == (0, b"")


@pytest.mark.parametrize("many", ["10", "100000"])
@pytest.mark.parametrize("end", ["return 4", "raise typer.Exit(4)"])
def test_a_reader_that_went_away_does_not_turn_findings_into_success(many: str, end: str) -> None:
    """`doctor | head -1`: the exit code is that of the rows, printed or not; small output fails only at its flush."""
    code = (
        "import sys, typer\nfrom arsandbox.cli.boundary import guarded, last_words\n"
        f"def command():\n    sys.stdin.read()\n    with last_words():\n        for n in range({many}): print(n)\n"
        f"    {end}\nsys.exit(guarded(command))"
    )
    command = [sys.executable, "-c", code]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        process.stdout.close()
        process.stdin.close()
        said = process.stderr.read()
    assert (process.returncode, said) == (4, b"")


def test_a_reader_that_is_gone_at_the_last_flush_leaves_the_exit_code() -> None:
    code = (
        "import sys, typer\nfrom arsandbox.cli.boundary import guarded\n"
        "def command():\n    sys.stdin.read()\n    print('row')\n    raise typer.Exit(3)\nsys.exit(guarded(command))"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        process.stdout.close()
        process.stdin.close()
        said = process.stderr.read()
    assert (process.returncode, said) == (3, b"")


def test_a_broken_pipe_to_git_or_the_engine_is_not_taken_for_success() -> None:
    """Only our own output's reader may leave in peace: exit 0 says that there is a verdict."""
    code = (
        "import os, sys\nfrom arsandbox.cli.boundary import guarded\n"
        "def command():\n    inner, outer = os.pipe()\n    os.close(inner)\n    os.write(outer, b'x')\n"
        "sys.exit(guarded(command))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 5
    assert done.stderr.startswith(b"arsandbox: ")

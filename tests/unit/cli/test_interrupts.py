"""Ctrl-C at any moment ends what the main thread waits for, and leaves no lock taken."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time

import pytest

from arsandbox.cli import interrupts

# Takes and gives back the lock of an event without a pause, and counts how often an interrupt left it taken.
TIGHT = """
import os, random, signal, sys, threading, time
from arsandbox.cli.interrupts import raise_interrupts
signal.signal(signal.SIGINT, signal.default_int_handler)
if sys.argv[1] == "ours":
    raise_interrupts()
event, ready, handled, kept = threading.Event(), False, 0, 0

def send():
    chance = random.Random(1)
    for number in range(400):
        while not ready:
            time.sleep(0.001)
        time.sleep(chance.uniform(0.001, 0.003))
        os.kill(os.getpid(), signal.SIGINT)
        while handled <= number:
            time.sleep(0.0002)

sender = threading.Thread(target=send)
sender.start()
while handled < 400:
    try:
        ready = True
        while True:
            for _ in range(100):
                event.set()
                event.clear()
                event.wait(0)
    except (KeyboardInterrupt, RuntimeError):  # RuntimeError: a lock given back that was not taken
        if event._cond._lock.locked():
            kept += 1
            event = threading.Event()
        ready = False
        handled += 1
print(handled, kept)
"""


def counted(how: str) -> tuple[int, int]:
    done = subprocess.run(
        [sys.executable, "-c", TIGHT, how],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )
    handled, kept = done.stdout.split()
    return int(handled), int(kept)


def test_an_interrupt_leaves_no_lock_of_the_standard_library_taken() -> None:
    assert counted("ours") == (400, 0)
    assert counted("python's own")[1] > 0, "this test shows nothing: the locks are safe by themselves"


class Interrupted:
    """A lock at whose taking Ctrl-C comes."""

    def __enter__(self) -> None:
        signal.raise_signal(signal.SIGINT)


def test_an_alarm_within_the_handler_is_put_off_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine so busy that the timer ends before the handler that set it: found under load."""
    alarms: list[float] = []

    def at_once(which: int, seconds: float) -> None:
        if len(alarms) < 3:
            alarms.append(seconds)
            signal.raise_signal(signal.SIGALRM)

    condition = threading.Condition()
    condition._lock = Interrupted()  # type: ignore[attr-defined]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where whoever started the tests ignores it
    interrupts.raise_interrupts()
    monkeypatch.setattr(signal, "setitimer", at_once)
    condition.__enter__()
    assert len(alarms) == 3
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGALRM)


WAITING = """
import sys, time
from arsandbox.cli.boundary import guarded
def command():
    print("ready", flush=True)
    time.sleep(1.0)
    return 7
sys.exit(guarded(command))
"""


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
@pytest.mark.parametrize("ignored", [True, False])
def test_what_whoever_started_us_ignores_stays_ignored(number: signal.Signals, ignored: bool) -> None:
    """`nohup arsandbox loop` outlives its terminal."""

    def ignore() -> None:
        signal.signal(number, signal.SIG_IGN if ignored else signal.SIG_DFL)

    with subprocess.Popen(
        [sys.executable, "-c", WAITING], stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=ignore
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        time.sleep(0.1)
        assert process.wait(30) == (7 if ignored else 130)


ENDING = """
import sys, time
from arsandbox.cli.boundary import guarded
def command():
    print("ready", flush=True)
    time.sleep(30)
code = guarded(command)
time.sleep(0.5)
sys.exit(code)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_second_ctrl_c_at_the_end_changes_nothing(number: signal.Signals) -> None:
    """After the last word it was a traceback, or a death by the signal: found by interrupting twice."""

    def by_default() -> None:
        signal.signal(number, signal.SIG_DFL)

    with subprocess.Popen(
        [sys.executable, "-c", ENDING], stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=by_default
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        assert process.stderr is not None and process.stderr.readline() == b"arsandbox: interrupted\n"
        process.send_signal(number)
        assert (process.wait(30), process.stderr.read()) == (130, b"")

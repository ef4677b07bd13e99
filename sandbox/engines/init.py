"""Process 1 of a sandbox: runs the command, reaps orphans, and ends everything at the deadline.

It needs nobody outside: when the controller is dead, the sandbox still ends on time, since the kernel
kills every process of a PID namespace with its process 1. From inside it cannot be killed or stopped
(pid_namespaces(7); SIGALRM ends the sandbox early, as 124), nor traced, for it is not dumpable (prctl(2),
PR_SET_DUMPABLE). It runs with the command's own unprivileged user, as
`python3 -I -S -c SOURCE SECONDS COMMAND…`; standard library only.
"""

# The built-in behind `signal`, which makes enumerations of its numbers: that would be a third of what starting takes.
import _signal as signal  # type: ignore[import-not-found]
import ctypes
import os
import sys
import time

PR_SET_DUMPABLE = 4
TIMED_OUT, NOT_FOUND, NOT_EXECUTABLE = 124, 127, 126
# A failed command's file systems and counters stay for this long, for the host to read.
LINGER_SECONDS = 0.15


def _execute(command: list[str]) -> None:
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)  # Python ignores them, and so would the command
    try:
        os.execvp(command[0], command)  # noqa: S606 - the command, without a shell, is the point
    except OSError as error:
        os.write(2, f"{command[0]}: {error.strerror}\n".encode())
        os._exit(NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE)


def _left() -> int:
    """Stop all processes that outlive the command, for they could use the time; returns how many they are."""
    try:
        os.kill(-1, signal.SIGSTOP)  # all but this process
    except ProcessLookupError:
        return 0
    try:
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass  # a zombie; orphans are children of this process
    except ChildProcessError:
        return 0
    return max(1, sum(name.isdigit() for name in os.listdir("/proc")) - 1)


def main(seconds: float, command: list[str]) -> int:
    """Run `command`; returns the exit code to end with (128 + n after signal n)."""
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    signal.signal(signal.SIGALRM, lambda *_: os._exit(TIMED_OUT))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    child = os.fork()
    if child == 0:
        signal.setitimer(signal.ITIMER_REAL, 0)
        _execute(command)
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == child:
            break
    code = os.waitstatus_to_exitcode(status)
    left = _left() if os.getpid() == 1 else 0  # elsewhere "all processes" would be others'
    if code != 0:
        time.sleep(LINGER_SECONDS)
    elif left:
        os.write(2, b"\narsandbox: processes that outlived the command: %d\n" % left)
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    os._exit(main(float(sys.argv[1]), sys.argv[2:]))

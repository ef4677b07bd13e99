"""Runs attacks inside a sandbox, each in a process of its own, and prints one JSON line for each.

Run as `python3 -I -S inside.py FILE...`; standard library only. A payload defines `attack()`: it returns what it
got hold of as text (the attack succeeded), or None, or raises OSError (it was stopped). Anything else is a broken
payload and is said as such: it must never count as stopped. Payloads find the names below without an import.
"""

import ctypes
import errno
import json
import os
import platform
import signal
import sys
import traceback

SECONDS = 15
STARTED_WITH = sorted(int(name) for name in os.listdir("/proc/self/fd"))[:-1]  # but the listing's own
libc = ctypes.CDLL(None, use_errno=True)

# Numbers of system calls that the C library has no function for: (x86_64, aarch64).
_NUMBERS = {
    "add_key": (248, 217), "bpf": (321, 280), "clone": (56, 220), "clone3": (435, 435), "finit_module": (313, 273),
    "fsopen": (430, 430), "init_module": (175, 105), "io_uring_setup": (425, 425), "kcmp": (312, 272),
    "kexec_load": (246, 104), "keyctl": (250, 219), "mknodat": (259, 33), "modify_ldt": (154, None),
    "move_mount": (429, 429), "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "open_tree": (428, 428),
    "perf_event_open": (298, 241), "personality": (135, 92), "pidfd_getfd": (438, 438), "pidfd_open": (434, 434),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "ptrace": (101, 117), "setns": (308, 268),
    "mq_open": (240, 180), "sync": (162, 81), "syslog": (103, 116), "unshare": (272, 97), "userfaultfd": (323, 282),
    "vmsplice": (278, 75), "mount": (165, 40), "chroot": (161, 51), "socket": (41, 198), "quotactl": (179, 60),
}  # fmt: skip


def syscall(name, *arguments):
    """Make the system call; returns its result or raises OSError."""
    number = _NUMBERS[name][platform.machine() != "x86_64"]
    if number is None:
        raise OSError(errno.ENOSYS, "no such call on this processor")
    ctypes.set_errno(0)
    words = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    result = libc.syscall(ctypes.c_long(number), *words)
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def status(field):
    """A field of /proc/self/status."""
    with open("/proc/self/status") as file:
        return next(line.split(":", 1)[1].strip() for line in file if line.startswith(field + ":"))


def mounts():
    """(mount point, options, optional fields, kind, source, root) of each mount."""
    found = []
    with open("/proc/self/mountinfo") as file:
        for line in file:
            words = line.split()
            dash = words.index("-")
            options = {*words[5].split(","), *(["ro"] if "ro" in words[dash + 3].split(",") else [])}
            found.append((words[4], options, words[6:dash], words[dash + 1], words[dash + 2], words[3]))
    return found


def directories(most=20000):
    """Directories of every file system but proc and sys, as far as they can be listed."""
    pending, seen = ["/"], 0
    while pending and seen < most:
        place = pending.pop()
        seen += 1
        yield place
        try:
            with os.scandir(place) as entries:
                below = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
        except OSError:
            continue
        pending += [path for path in below if path not in ("/proc", "/sys")]


def child():
    """A child process that waits to be killed; payloads do so."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(0)
        while True:
            signal.pause()
    return pid


def _try(source, name):
    try:
        namespace = dict(globals())
        exec(compile(source, name, "exec"), namespace)
        got = namespace["attack"]()
    except OSError as error:
        return {"outcome": "stopped", "detail": str(error), "errno": errno.errorcode.get(error.errno, str(error.errno))}
    except BaseException:  # noqa: BLE001 - said, and never taken for a stopped attack
        return {"outcome": "broken", "detail": traceback.format_exc()[-800:], "errno": ""}
    return {"outcome": "stopped" if got is None else "succeeded", "detail": got or "it got nothing", "errno": ""}


def _run(path):
    with open(path) as file:
        source = file.read()
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(SECONDS)
        os.write(write, json.dumps(_try(source, path)).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as answers:
        answer = answers.read()
    ended = os.waitpid(pid, 0)[1]
    if not answer and os.WIFSIGNALED(ended) and os.WTERMSIG(ended) == signal.SIGSYS:
        return {"outcome": "stopped", "detail": "the kernel killed the process for the call", "errno": "SIGSYS"}
    return json.loads(answer) if answer else {"outcome": "broken", "detail": f"ended with {ended}", "errno": ""}


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print("ATTACK", json.dumps({"name": os.path.basename(argument)[:-3], **_run(argument)}), flush=True)

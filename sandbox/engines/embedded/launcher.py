"""Becomes bubblewrap: sets resource limits, gives up root if it has it, executes bwrap with an empty environment.

A program of its own, run as `python3 -I -S -c SOURCE FD`: it reads one request from FD, written by `marshal` (by
the same interpreter; to load `json` would take as long as all the rest). The standard library only. Root goes
first: bubblewrap started by real root is not a boundary, for files of /proc/sys check the global user id. An
unprivileged user id cannot walk directories that root alone may enter, so that what bubblewrap will mount is
bound below STAGE first, in a mount namespace of this process.
"""

import ctypes
import marshal
import os
import resource
import sys

STAGE = "/mnt"  # exists everywhere (FHS), and may be traversed by everyone
CLONE_NEWNS, MS_BIND, MS_REC, MS_PRIVATE, PR_SET_PDEATHSIG, SIGKILL = 0x20000, 0x1000, 0x4000, 0x40000, 1, 9


def _call(name: str, *arguments: object) -> None:
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


def stage(sources: list[str]) -> None:
    """Bind the n-th of `sources` at STAGE/n, in a mount namespace of our own."""
    _call("unshare", CLONE_NEWNS)
    _call("mount", None, b"/", None, MS_REC | MS_PRIVATE, None)
    opened = [os.open(source, os.O_PATH) for source in sources]  # before STAGE hides what lies below it
    _call("mount", b"tmpfs", STAGE.encode(), b"tmpfs", 0, b"size=1m,mode=0755")
    for number, descriptor in enumerate(opened):
        source, target = f"/proc/self/fd/{descriptor}", f"{STAGE}/{number}"
        if os.path.isdir(source):
            os.mkdir(target)
        else:
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY))
        _call("mount", source.encode(), target.encode(), None, MS_BIND | MS_REC, None)
        os.close(descriptor)


def main(descriptor: int) -> None:
    """Do the request and execute bwrap; raises OSError where the kernel refuses."""
    with os.fdopen(descriptor, "rb") as file:
        request = marshal.load(file)  # noqa: S302 - the controller wrote it
    for name, value in request["limits"].items():
        hard = resource.getrlimit(getattr(resource, name))[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(getattr(resource, name), (value, value))
    if request["uid"] is not None:
        stage(request["sources"])
        os.setgroups([])
        os.setresgid(*[request["uid"]] * 3)
        os.setresuid(*[request["uid"]] * 3)
    # From here to bwrap's own --die-with-parent there is no moment in which our controller's death is missed.
    _call("prctl", PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)
    if os.getppid() != request["parent"]:
        os._exit(1)
    os.umask(0o022)
    os.chdir("/")
    os.execve(request["argv"][0], request["argv"], {})  # noqa: S606 - no shell is the point


if __name__ == "__main__":
    try:
        main(int(sys.argv[1]))
    except OSError as error:
        sys.stderr.write(f"arsandbox: cannot prepare the sandbox: {error}\n")
        os._exit(1)

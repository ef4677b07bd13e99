"""Training code works under the seccomp filter: what numpy, data loaders, caches and servers need is allowed."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.engine

WORK = """
import concurrent.futures, mmap, multiprocessing, os, pathlib, queue, signal, socket, sqlite3, subprocess, sys
import tempfile, threading, time
from multiprocessing import shared_memory

import numpy as np

def square(number):
    return number * number

def numeric():
    assert ((np.ones((200, 200)) @ np.ones((200, 200))) == 200).all()
    np.save("array.npy", np.arange(1000)); assert np.load("array.npy", mmap_mode="r")[999] == 999

def threads():
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(square, range(50))) == [square(n) for n in range(50)]

def processes(method):
    context = multiprocessing.get_context(method)
    with context.Pool(2) as pool:
        assert pool.map(square, range(10)) == [square(n) for n in range(10)]

def shared():
    block = shared_memory.SharedMemory(create=True, size=4096)
    array = np.ndarray((512,), buffer=block.buf); array[:] = 7.0
    other = shared_memory.SharedMemory(name=block.name); assert bytes(other.buf[:8]) == bytes(block.buf[:8])
    other.close(); del array; block.close(); block.unlink()

def database():
    connection = sqlite3.connect("cache.db")
    assert connection.execute("pragma journal_mode=wal").fetchone() == ("wal",)
    connection.execute("create table t (x)"); connection.execute("insert into t values (1)"); connection.commit()
    assert connection.execute("select x from t").fetchall() == [(1,)]

def loopback():
    for family, host in ((socket.AF_INET, "127.0.0.1"),):
        server = socket.create_server((host, 0), family=family)
        client = socket.create_connection(server.getsockname()[:2])
        peer, _ = server.accept(); client.sendall(b"x"); assert peer.recv(1) == b"x"
    one, other = socket.socketpair(); one.sendall(b"y"); assert other.recv(1) == b"y"
    assert socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    assert "lo" in [name for _, name in socket.if_nameindex()]

def files():
    os.mkfifo("fifo"); os.symlink("a", "b"); os.link("cache.db", "hard"); os.utime("hard"); os.chmod("hard", 0o600)
    with open("big", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, 65536)
    with open("big", "r+b") as file:
        mmap.mmap(file.fileno(), 65536)[0:1] = b"z"
    memory = os.memfd_create("m"); os.write(memory, b"m")
    assert sum(1 for _ in os.scandir("/proc/self/fd")) > 2

def children():
    assert subprocess.run(["sh", "-c", "echo hi | cat"], capture_output=True).stdout == b"hi\\n"
    child = subprocess.Popen(["sleep", "30"], start_new_session=True); child.send_signal(signal.SIGTERM); child.wait()
    os.sched_setaffinity(0, os.sched_getaffinity(0)); os.nice(1)
    signal.setitimer(signal.ITIMER_REAL, 10); signal.setitimer(signal.ITIMER_REAL, 0)

if __name__ == "__main__":
    numeric(); threads(); shared(); database(); loopback(); files(); children()
    for method in ("fork", "spawn", "forkserver"):
        processes(method)
    assert "Seccomp:\\t2" in pathlib.Path("/proc/self/status").read_text()
    print("all of it works")
"""


def test_what_training_code_needs_is_allowed(box: Any) -> None:
    done = box(WORK, pids=256, memory_bytes=512 * 1024**2, deadline_s=60.0)
    assert "all of it works" in done.text, done.text

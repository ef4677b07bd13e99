import os
import signal
import sys

children = []
for _ in range(120):
    try:
        pid = os.fork()
    except OSError:
        sys.exit(1)
    if pid == 0:
        signal.pause()
    children.append(pid)
for pid in children:
    os.kill(pid, signal.SIGKILL)

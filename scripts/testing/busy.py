"""A processor kept busy until the process with the pid that is given is no longer this one's parent."""

from __future__ import annotations

import os
import signal
import sys

# Ctrl-C goes to the parent, which ends us.
signal.signal(signal.SIGINT, signal.SIG_IGN)
PARENT = int(sys.argv[1])
while os.getppid() == PARENT:
    for _ in range(1_000_000):
        pass

"""pytest with this tool's plugin. It stops, as on Ctrl-C, when the process that started it is gone."""

from __future__ import annotations

import signal
import sys

import pytest

from testing.processes import end_with_parent

if __name__ == "__main__":
    end_with_parent(int(sys.argv[1]), signal.SIGINT)
    sys.exit(pytest.main(["-p", "testing.plugin", *sys.argv[2:]]))

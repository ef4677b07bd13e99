"""The program behind scripts/test, which sets the machine up and then starts this one."""

from __future__ import annotations

import sys

from testing.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

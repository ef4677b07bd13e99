"""A controller that can be killed: opens an engine by name and runs one sandbox.

`python -m arsandbox.sandbox.testing.controller ENGINE` reads a SandboxSpec as JSON from standard input and
copies the sandbox's output to its own.
"""

from __future__ import annotations

import os
import sys

from arsandbox.sandbox.engines.port import SandboxSpec
from arsandbox.sandbox.engines.registry import open_engine


class _Copying:
    def output(self, chunk: bytes) -> None:
        os.write(1, chunk)

    def tick(self, elapsed_s: float, memory_bytes: int) -> None:
        pass


def main(name: str) -> None:
    """Run it."""
    spec = SandboxSpec.model_validate_json(sys.stdin.buffer.read())
    with open_engine(name).sandbox(spec) as sandbox:
        sandbox.run(_Copying())


if __name__ == "__main__":
    main(sys.argv[1])

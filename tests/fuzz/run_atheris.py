"""Fuzz one target by coverage, where atheris installs: `python tests/fuzz/run_atheris.py request -max_total_time=600`.

What it finds goes into tests/fuzz/corpus/TARGET by hand, with a name that says what it is.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["arsandbox", "h11"]):
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from arsandbox_fixtures.fuzz_targets import TARGETS


def main() -> None:
    """Run libFuzzer over the target that the first argument names."""
    name = sys.argv.pop(1)
    corpus = Path(__file__).parent / "corpus" / name
    atheris.Setup([*sys.argv, str(corpus)], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()

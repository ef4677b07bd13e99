"""The seed from which tests of the groups draw at random; `scripts/test --seed S` gives it and says it."""

from __future__ import annotations

import os


def seed_of_the_run() -> int:
    """The seed of this run of `scripts/test`; 0 where pytest was started by itself."""
    return int(os.environ.get("ARSANDBOX_TEST_SEED", "0"))

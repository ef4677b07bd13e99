"""What collecting leaves: thousands of items that live as long as the session."""

from __future__ import annotations

import gc


def pytest_collection_finish() -> None:
    """Keep them out of the garbage collector's later rounds, of which tests of engines make one for each sandbox."""
    gc.collect()
    gc.freeze()

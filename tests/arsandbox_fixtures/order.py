"""The order in which test modules are handed to the workers: what takes longest first, so that all end together.

Each module is one worker's (`--dist loadfile`), for the sake of what its tests share.
"""

from __future__ import annotations

import pytest

# Modules that take half a minute or more, longest first; then whole folders. While the first one makes the image that
# all tests of an engine wait for, two that need none use the processors.
FIRST = (
    "integration/test_rerun.py", "unit/sandbox/test_ledger_concurrency.py", "unit/sandbox/evidence/test_tampered",
    "integration/test_recovery.py", "integration/test_rerun_recorded.py",
    "integration/test_loop.py", "integration/test_image_build.py", "integration/test_promotion.py",
    "integration/test_gpu_hook.py", "cheats/test_levels.py", "cli/test_run.py",
    "integration/test_registry.py", "integration/test_confirm.py", "integration/test_death.py",
    "integration/", "hostile/", "cli/", "contract/", "cheats/",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort them, leaving each module's own order as it is."""
    items.sort(key=_rank)


def _rank(item: pytest.Item) -> int:
    return next((n for n, part in enumerate(FIRST) if f"/tests/{part}" in item.path.as_posix()), len(FIRST))

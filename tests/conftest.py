"""What the whole test session shares, also between parallel workers."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("arsandbox_fixtures")  # before any of it is imported

from arsandbox_fixtures.collected import pytest_collection_finish as pytest_collection_finish  # noqa: E402
from arsandbox_fixtures.layer_cache import pytest_configure as pytest_configure  # noqa: E402
from arsandbox_fixtures.nvidia import nvml_directory as nvml_directory  # noqa: E402
from arsandbox_fixtures.order import pytest_collection_modifyitems as pytest_collection_modifyitems  # noqa: E402
from arsandbox_fixtures.surroundings import heed_signals  # noqa: E402

heed_signals()

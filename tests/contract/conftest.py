"""Fixtures of the engines' contract."""

from __future__ import annotations

import pytest

from arsandbox_fixtures.contract import docker_image as docker_image
from arsandbox_fixtures.contract import own_home as own_home
from arsandbox_fixtures.contract import pytest_collection_modifyitems as pytest_collection_modifyitems

pytest.register_assert_rewrite("arsandbox.sandbox.testing")

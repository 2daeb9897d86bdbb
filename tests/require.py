"""Skip tests whose requirements are not installed, or fail where they must run."""

import os
from typing import NoReturn

import pytest


def missing(name: str) -> NoReturn:
    """Skip the test, or fail if JAXTEMPL_REQUIRE, a comma-separated list, contains `name`."""
    if name in os.environ.get("JAXTEMPL_REQUIRE", "").split(","):
        pytest.fail(f"{name} is not installed, and JAXTEMPL_REQUIRE names it")
    pytest.skip(f"{name} is not installed")

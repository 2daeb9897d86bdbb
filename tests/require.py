"""What a test needs beside Python; where it is not installed the test skips, or fails where it must run."""

import os
from typing import NoReturn

import pytest


def missing(name: str) -> NoReturn:
    """Skips; fails where the environment's JAXTEMPL_REQUIRE, names with commas between, has this one."""
    if name in os.environ.get("JAXTEMPL_REQUIRE", "").split(","):
        pytest.fail(f"{name} is not installed, and JAXTEMPL_REQUIRE names it")
    pytest.skip(f"{name} is not installed")

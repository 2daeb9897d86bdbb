"""Configuration of all tests: eight fake CPU devices, and an error on implicit rank promotion."""

import os
import sys
import tempfile
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
# LLVM does not optimize, because compiling takes longer than computing with so small models.
os.environ["XLA_FLAGS"] = (
    f"--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 {os.environ.get('XLA_FLAGS', '')}"
)
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["XDG_STATE_HOME"] = os.devnull  # a folder that cannot be written: tracebacks go to standard error
# Compilation takes most of a test's time, so tests and their child processes share a cache.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / f"jaxtempl-tests-{os.getuid()}"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

import hypothesis
import jax
import pytest
import shared

hypothesis.settings.register_profile("busy", deadline=None)  # a busy machine makes no example wrong
hypothesis.settings.load_profile("busy")
# Modules are compiled once for this session, its child processes and the slow tests after it.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")


def pytest_sessionstart(session: pytest.Session) -> None:
    if jax.device_count() != 8:
        pytest.exit(
            f"the tests need 8 fake CPU devices and got {jax.device_count()}; is jax imported before conftest?", 1
        )


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the slow tests, and them alone")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect tests instead of skipping them: a skip means that something could not be tested."""
    wanted = config.getoption("--slow")
    kept = [item for item in items if ("slow" in item.keywords) == wanted]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


@pytest.fixture(scope="session", autouse=True)
def shared_folder(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> None:
    """Set the folder in which the workers of this session share what they build."""
    own = tmp_path_factory.getbasetemp()
    os.environ[shared.FOLDER] = str(own if worker_id == "master" else own.parent)

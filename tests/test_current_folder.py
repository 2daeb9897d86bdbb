"""No command imports a module of the folder that it is started in."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jaxtempl.config import paths
from jaxtempl.config.paths import ROOT

SCRIPTS = sorted({path.name for path in (ROOT / "bin").iterdir()} - {"environment.sh", "setup", "test"})
MODULES = ("random.py", "json.py", "jaxtempl/__init__.py", "converters/__init__.py", "numpy/__init__.py", "jax.py")
REPORT = "import json, random, sys; print(json.dumps([sys.argv, sys.path, random.__file__]))"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of modules that fail when imported, with the names of installed ones."""
    folder = tmp_path_factory.mktemp("hostile")
    for name in MODULES:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("raise SystemExit(f'imported {__file__}')")
    return folder


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkout whose packages only print what they are started with, so that a start is cheap."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "bin", folder / "bin")
    (folder / "bin" / "setup").write_text("#!/bin/sh\n")
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "python").symlink_to(sys.executable)
    for package in ("jaxtempl", "converters"):
        (folder / package).mkdir()
        (folder / package / "__main__.py").write_text(REPORT)
    return folder


def run(command: list[str], folder: Path, pythonpath: str) -> str:
    environment = {**os.environ, "PYTHONPATH": pythonpath}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("pythonpath", ["", ":", ":/lib::/more:"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_does_not_import_from_the_current_folder(
    name: str, pythonpath: str, hostile: Path, checkout: Path
) -> None:
    argv, path, random = json.loads(run([str(checkout / "bin" / name), "--flag"], hostile, pythonpath))
    assert Path(argv[0]).parents[1] == checkout
    assert argv[-1] == "--flag"
    assert path[0] == str(checkout)
    assert str(hostile) not in path
    assert [part for part in ("/lib", "/more") if part in path] == [part for part in pythonpath.split(":") if part]
    assert not random.startswith(str(hostile))


def test_a_script_runs_from_its_checkout_when_it_is_called_through_symbolic_links(
    hostile: Path, checkout: Path, tmp_path: Path
) -> None:
    for name in SCRIPTS:
        (tmp_path / f"{name}-link").symlink_to(checkout / "bin" / name)
        (tmp_path / name).symlink_to(f"{name}-link")
        argv, path, _ = json.loads(run([str(tmp_path / name)], hostile, ""))
        assert Path(argv[0]).parents[1] == Path(path[0]) == checkout


def test_python_m_jaxtempl_does_not_import_from_the_current_folder(hostile: Path, tmp_path: Path) -> None:
    for name in MODULES:
        if not name.startswith("jaxtempl"):  # `python -m` runs a package of that name, whatever it holds
            (tmp_path / name).parent.mkdir(exist_ok=True)
            shutil.copy(hostile / name, tmp_path / name)
    assert "usage: jaxtempl" in run([sys.executable, "-m", "jaxtempl", "--help"], tmp_path, str(ROOT))


def test_python_m_jaxtempl_runs_in_a_checkout_that_is_not_installed() -> None:
    assert "usage: jaxtempl" in run([sys.executable, "-m", "jaxtempl", "--help"], ROOT, "")


def test_a_command_that_starts_another_keeps_the_current_folder_off_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert paths.program("serve") == [str(ROOT / "bin" / "serve")]
    monkeypatch.setattr(paths, "SCRIPTS", tmp_path / "none")
    assert paths.program("serve") == [sys.executable, "-P", "-m", "jaxtempl", "serve"]
    sources = [*(ROOT / "jaxtempl").rglob("*.py"), *(ROOT / "converters").rglob("*.py")]
    starting = {path.relative_to(ROOT).as_posix() for path in sources if "sys.executable," in path.read_text("utf-8")}
    assert starting == {"jaxtempl/__main__.py", "jaxtempl/config/paths.py"}

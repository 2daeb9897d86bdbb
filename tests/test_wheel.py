"""The wheel is complete, its extras mirror the requirements files, and its commands run outside a checkout."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import tiny
from packaging.metadata import Metadata
from packaging.requirements import Requirement

from jaxtempl.__main__ import COMMANDS, ENVIRONMENT
from jaxtempl.config.paths import ROOT

SOURCES = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "jaxtempl", "converters", "configs")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel without network, from a copy because a build leaves files next to its sources."""
    folder = tmp_path_factory.mktemp("wheel")
    sources = [*SOURCES, *(path.name for path in ROOT.glob("requirements*.txt"))]
    subprocess.run(["cp", "-r", *(str(ROOT / name) for name in sources), folder], check=True)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, f"--wheel-dir={folder / 'dist'}", str(folder)], check=True)
    (built,) = (folder / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a fresh virtual environment with only the wheel, and access to the libraries of the tests."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", f"--python={python}", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, str(wheel)], check=True)
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    (site / "libraries.pth").write_text(sysconfig.get_paths()["purelib"])
    return folder / "venv" / "bin" / "jaxtempl"


def run(script: Path, folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    """Run the console script outside the checkout."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH" and key not in ENVIRONMENT}
    command = [str(script), *argv]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_wheel_contains_code_configurations_and_assets(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    tracked = subprocess.run(["git", "ls-files", "jaxtempl", "converters"], cwd=ROOT, capture_output=True, text=True)
    assert set(tracked.stdout.split()) <= names
    assert {f"jaxtempl/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*.yaml")} <= names


def test_extras_mirror_the_requirements_files(wheel: Path) -> None:
    (name,) = (name for name in zipfile.ZipFile(wheel).namelist() if name.endswith("/METADATA"))
    requires = Metadata.from_email(zipfile.ZipFile(wheel).read(name), validate=False).requires_dist or []
    files = {"": "", "serve": "-serve", "tensorrt": "-tensorrt", "test": "-test"}
    found: dict[str, set[str]] = {extra: set() for extra in files}
    for requirement in requires:
        extra = re.search(r'extra == "(\w+)"', str(requirement.marker))
        found[extra[1] if extra else ""].add(f"{requirement.name}{requirement.specifier}")
    for extra, suffix in files.items():
        lines = (ROOT / f"requirements{suffix}.txt").read_text().splitlines()
        listed = [Requirement(line.partition("#")[0]) for line in lines if line.partition("#")[0].strip()]
        assert found[extra] == {f"{one.name}{one.specifier}" for one in listed}, extra


def test_an_installed_command_prints_its_help(installed: Path, tmp_path: Path) -> None:
    done = run(installed, tmp_path, "--help")
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in (*COMMANDS, "convert"))
    assert run(installed, tmp_path, "convert", "--help").stdout.startswith("usage: bin/convert NAME")
    unknown = run(installed, tmp_path, "prepear")
    assert unknown.returncode == 2
    assert unknown.stderr.count("\n") == 1


def test_installed_commands_prepare_and_suggest_in_a_folder_of_modules(installed: Path, tmp_path: Path) -> None:
    for name in ("random", "numpy", "jax", "jaxtempl", "converters"):  # must not be imported
        (tmp_path / f"{name}.py").write_text("raise SystemExit(f'imported {__file__}')")
    cases = [tiny.case(i, ("refund", "card")[i % 2]) for i in range(20)]
    (tmp_path / "cases.jsonl").write_text("".join(json.dumps(case) + "\n" for case in cases))
    prepared = run(installed, tmp_path, "prepare", "--transcripts=cases.jsonl", "--size=nano", "--length=32")
    assert prepared.returncode == 0, prepared.stderr
    tiny.make_run(tmp_path / "run", [tiny.template(i, name) for i, name in enumerate(tiny.REPLIES)])
    (tmp_path / "case.json").write_text(json.dumps({"messages": cases[0]["messages"][:3]}))
    suggested = run(installed, tmp_path, "suggest", "--run=run", "--json", "case.json")
    assert suggested.returncode == 0, suggested.stderr
    assert len(json.loads(suggested.stdout)["suggestions"]) == len(tiny.REPLIES)


def test_the_console_script_and_the_scripts_of_the_checkout_set_the_same_environment() -> None:
    text = (ROOT / "bin" / "environment.sh").read_text()
    assert dict(re.findall(r'(\w+)="\$\{\1:-([^}]*)\}"', text)) == dict(ENVIRONMENT)


def test_every_command_has_a_script() -> None:
    scripts = {path.name for path in (ROOT / "bin").iterdir()} - {"environment.sh", "setup", "test"}
    plugins = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["jaxtempl.commands"]
    assert scripts == {*COMMANDS, *plugins}

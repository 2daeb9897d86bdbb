"""Packages import only the packages that the map in CONTRIBUTING.md allows."""

import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from imports import TRAINING, imports, reached, without

from jaxtempl.config.paths import ROOT

ROW = re.compile(r"^\| `(?P<name>[\w/]+)` \| (?P<imports>[^|]*) \| (?P<jax>[^|]*) \| (?P<what>[^|]+) \|$", re.M)
JAX = {"jax", "flax", "optax", "orbax"}
WEB = {"fastapi", "starlette", "uvicorn", "aiohttp", "httpx", "httpx2", "requests", "urllib", "huggingface_hub"}
DATA = {"grain", "tensorflow_datasets", "array_record", "msgspec", "tensorboardX", "zstandard"}
FILES = sorted([*(ROOT / "jaxtempl").rglob("*.py"), *(ROOT / "converters").rglob("*.py")])


class Package(NamedTuple):
    """One row of the map."""

    imports: frozenset[str]
    jax: bool


@cache
def packages() -> dict[str, Package]:
    """Return the rows of the map, bottom layer first."""
    rows = ROW.finditer((ROOT / "CONTRIBUTING.md").read_text())
    return {
        row["name"]: Package(frozenset(re.findall(r"[\w/]+", row["imports"].replace("`", ""))), row["jax"] == "JAX")
        for row in rows
    }


def package_of(module: str) -> str:
    """Return the map's name for a module's package."""
    top, *rest = module.split(".")
    if top == "converters":
        return "/".join(["converters", *rest[:1]]) if rest[:1] != ["__main__"] else "converters"
    nested = "/".join(rest[:2])  # a package within a package may have its own row
    return nested if nested in packages() else rest[0] if rest else ""


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def neighbours(path: Path) -> set[str]:
    """Return the other packages of this project that a file imports."""
    ours = {name for name in imports(path) if name.startswith(("jaxtempl.", "converters."))}
    found = {package_of(name) for name in ours} & set(packages())
    return found - {package_of(module_of(path))}


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_a_file_imports_only_what_the_map_allows(path: Path) -> None:
    package = package_of(module_of(path))
    if package in ("", "__main__"):
        return
    assert neighbours(path) <= packages()[package].imports


def test_the_map_is_acyclic_and_lists_every_package() -> None:
    names = list(packages())
    for i, name in enumerate(names):
        assert packages()[name].imports <= set(names[:i]), f"{name} imports a package from a later row of the map"
    assert {package_of(module_of(path)) for path in FILES} - {"", "__main__"} == set(names)


def test_the_map_allows_only_imports_that_are_used() -> None:
    used = {name: set[str]() for name in packages()}
    for path in FILES:
        if package_of(module_of(path)) in used:
            used[package_of(module_of(path))] |= neighbours(path)
    assert {name: sorted(package.imports - used[name]) for name, package in packages().items()} == {
        name: [] for name in packages()
    }


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_packages_without_jax_never_reach_it(path: Path) -> None:
    package = package_of(module_of(path))
    if package in packages() and not packages()[package].jax:
        assert not {name.split(".")[0] for name in reached(path)} & JAX


@pytest.mark.parametrize("name", ["serve", "loadtest", "experiment", "scaling"])
def test_commands_of_a_serving_machine_never_reach_jax(name: str) -> None:
    known = reached(ROOT / "jaxtempl" / "commands" / f"{name}.py")
    assert not {found.split(".")[0] for found in known} & TRAINING


@pytest.mark.parametrize(
    "name",
    ["bundle", "serve", "serve/experiments", "experiments", "loadtest", "converters/tensorrt", "converters/triton"],
)
def test_serving_never_reaches_training_libraries(name: str) -> None:
    for path in (file for file in FILES if package_of(module_of(file)) == name):
        assert not {found.split(".")[0] for found in reached(path)} & (TRAINING | {"onnx_ir", "tensorflow_datasets"})


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_packages_do_not_import_torch(path: Path) -> None:
    assert not {name.split(".")[0] for name in imports(path)} & {"torch", "transformers", "tensorflow"}


def compute() -> list[Path]:
    """Return the files that implement a training step."""
    step = ("training.loop", "training.step", "training.state", "training.objectives", "training.optimizer")
    return [p for p in FILES if package_of(module_of(p)) in ("models", "parallel") or module_of(p).endswith(step)]


@pytest.mark.parametrize("path", compute(), ids=module_of)
def test_a_training_step_reaches_neither_http_nor_transcripts(path: Path) -> None:
    known = reached(path)
    assert not {name.split(".")[0] for name in known} & WEB
    assert not {name for name in known if package_of(name) in ("text", "data", "prepare")}


def test_a_training_step_needs_no_data_pipeline() -> None:
    """A machine that only trains has neither TFDS nor grain."""
    modules = [module_of(path) for path in compute()]
    done = without(DATA, [*modules, "bench.gpu", "bench.profile_gpu", "bench.vocabulary"])
    assert done.returncode == 0, done.stderr
    assert "grain" in without(DATA, ["jaxtempl.data.loader"]).stderr, "a module that needs grain fails without it"


def test_no_test_imports_another_test_file() -> None:
    """Code that tests share is in separate modules, named for their contents."""
    tests = sorted((ROOT / "tests").glob("*.py"))
    found = {path.name: sorted(name for name in imports(path) if name.startswith("test_")) for path in tests}
    assert {name: shared for name, shared in found.items() if shared} == {}


def test_only_one_file_imports_jax_internals() -> None:
    touching = [module_of(path) for path in FILES if any(name.startswith("jax._src") for name in imports(path))]
    assert touching == ["jaxtempl.parallel.watchdog"]


def test_imports_are_found() -> None:
    assert "optax" in imports(ROOT / "jaxtempl" / "training" / "loop.py")
    assert {"jaxtempl.data.loader", "jaxtempl.text.cases"} <= reached(ROOT / "jaxtempl" / "training" / "adapt.py")
    assert "serve" not in packages()["models"].imports

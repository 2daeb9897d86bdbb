"""Who may import whom (DESIGN: "Who may import whom"); read from the source, so no import has to fail first."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from jaxtempl.config import ROOT

TRAINING = {"jax", "flax", "optax", "orbax", "grain", "torch", "transformers"}
LOW = ("errors", "files", "cases", "decoding", "sources", "reader", "text", "tokenizer", "config")
CORE = ("models", "partition", "precision", "optim", "tasks", "train", "checkpoint")


def imports(path: Path) -> set[str]:
    """Every module that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def reached(path: Path) -> set[str]:
    """Every module that a file imports, and that those of this package import in their turn."""
    found, waiting = set[str](), [path]
    while waiting:
        new = imports(waiting.pop()) - found
        found |= new
        files = (ROOT / f"{name.replace('.', '/')}.py" for name in new if name.startswith(("jaxtempl.", "converters.")))
        waiting += [file for file in files if file.is_file()]
    return found


def sources(*names: str) -> list[Path]:
    chosen = [ROOT / "jaxtempl" / f"{name}.py" for name in names] + [
        p for n in names for p in (ROOT / "jaxtempl" / n).rglob("*.py")
    ]
    found = [path for path in chosen if path.is_file()]
    assert found
    return found


@pytest.mark.parametrize("path", sources(*LOW), ids=lambda p: p.name)
def test_the_low_files_know_nothing_above_them(path: Path) -> None:
    ours = {name.split(".")[1] for name in imports(path) if name.startswith("jaxtempl.")}
    assert ours <= set(LOW)
    assert not {name.split(".")[0] for name in imports(path)} & TRAINING


@pytest.mark.parametrize("path", sources(*CORE), ids=lambda p: p.name)
def test_training_knows_no_http_and_no_transcripts(path: Path) -> None:
    known = reached(path)
    web = {"fastapi", "starlette", "uvicorn", "aiohttp", "httpx", "httpx2", "requests", "urllib", "huggingface_hub"}
    assert not {name.split(".")[0] for name in known} & web
    transcripts = ("cases", "sources", "reader", "prepare", "text", "dataset", "batches")
    assert not {name for name in known if name.split(".")[:2] in [["jaxtempl", part] for part in transcripts]}


@pytest.mark.parametrize("path", sorted((ROOT / "jaxtempl").rglob("*.py")), ids=lambda p: p.name)
def test_nothing_in_the_package_knows_the_converters_or_torch(path: Path) -> None:
    assert not {name.split(".")[0] for name in imports(path)} & {"converters", "torch", "transformers", "tensorflow"}


@pytest.mark.parametrize("path", sorted((ROOT / "converters").rglob("*.py")), ids=lambda p: p.name)
def test_converters_know_no_training(path: Path) -> None:
    ours = {name.split(".")[1] for name in imports(path) if name.startswith("jaxtempl.")}
    assert not ours & {"train", "tasks", "optim", "batches", "prepare", "launch", "adapt", "finetune"}


SERVING = [
    *sources("bundle", "onnx_file", "serve", "loadtest"),
    *(path for path in (ROOT / "converters").glob("*.py") if path.name.startswith(("tensorrt", "triton"))),
]


@pytest.mark.parametrize("path", SERVING, ids=lambda p: p.name)
def test_what_runs_where_it_serves_knows_nothing_of_training(path: Path) -> None:
    known = reached(path)
    assert not {name.split(".")[0] for name in known} & (TRAINING | {"onnx_ir", "tensorflow_datasets"})
    assert not {name for name in known if name.split(".")[:2] in [["jaxtempl", part] for part in (*CORE, "run")]}


@pytest.mark.parametrize("path", sources("scaling"), ids=lambda p: p.name)
def test_studies_start_trainings_as_processes_alone(path: Path) -> None:
    known = reached(path)
    assert not {name.split(".")[0] for name in known} & TRAINING
    assert not {name for name in known if name.split(".")[:2] in [["jaxtempl", part] for part in (*CORE, "run")]}


DATA = {"grain", "tensorflow_datasets", "array_record", "msgspec", "tensorboardX", "zstandard"}
WITHOUT = """
import importlib, sys
class Missing:
    def find_spec(self, name, *_):
        if name.split(".")[0] in {missing!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
for name in {names!r}:
    importlib.import_module(name)
"""


def without(missing: set[str], names: list[str]) -> subprocess.CompletedProcess[str]:
    """Imports the modules of these names where others are missing."""
    script = WITHOUT.format(missing=missing, names=names)
    return subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)


def test_training_needs_no_data_pipeline() -> None:
    """A machine that only computes has neither TFDS nor grain."""
    core = [
        str(path.relative_to(ROOT).with_suffix("")).replace("/", ".") for path in sources(*CORE, "programs", "flops")
    ]
    done = without(DATA, [*core, "bench.gpu", "bench.profile_gpu", "bench.vocabulary"])
    assert done.returncode == 0, done.stderr
    assert "grain" in without(DATA, ["jaxtempl.batches"]).stderr, "what is missing is missed"


def test_the_walls_are_seen() -> None:
    """The reader of imports finds what is there."""
    assert "optax" in imports(ROOT / "jaxtempl" / "train.py")
    assert "jaxtempl.tasks" in imports(ROOT / "jaxtempl" / "train.py")
    assert {"jaxtempl.batches", "jaxtempl.cases"} <= reached(ROOT / "jaxtempl" / "adapt.py")

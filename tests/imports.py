"""List the imports of Python files, and import modules while others are missing."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

from jaxtempl.config.paths import ROOT

TRAINING = {"jax", "flax", "optax", "orbax", "grain", "torch", "transformers"}
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


@cache
def imports(path: Path) -> frozenset[str]:
    """Return every module that a file imports, at its top or inside a function."""
    found = set[str]()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


@cache
def reached(path: Path) -> frozenset[str]:
    """Return every module that a file imports, directly or through modules of this project."""
    found, waiting = set[str](), [path]
    while waiting:
        new = imports(waiting.pop()) - found
        found |= new
        bases = (ROOT / name.replace(".", "/") for name in new if name.startswith(("jaxtempl.", "converters.")))
        files = (file for base in bases for file in (base.with_suffix(".py"), base / "__init__.py"))
        waiting += [file for file in files if file.is_file()]
    return frozenset(found)


def without(missing: set[str], names: list[str]) -> subprocess.CompletedProcess[str]:
    """Import the modules of these names in a process where others are missing."""
    script = WITHOUT.format(missing=missing, names=names)
    return subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)

"""Bundles are read only if every file matches the manifest; hostile bundles are rejected with one line."""

import ast
import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import FACTS, make_graph, write_bundle
from exported import TEMPLATES
from imports import without
from onnx import TensorProto, helper
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from jaxtempl import files
from jaxtempl.bundle import bundle, onnx_check
from jaxtempl.bundle.bundle import Bundle
from jaxtempl.config.paths import ROOT
from jaxtempl.errors import UserError
from jaxtempl.serve.inference.backends import OnnxRuntime
from jaxtempl.serve.inference.suggester import bundle_suggester


def external(location: str, **place: Any) -> TensorProto:
    """Return a weight that declares its values in an external file."""
    tensor = TensorProto(name="table", data_type=TensorProto.FLOAT, dims=[50, 7], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **place}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def change(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    manifest = json.loads((folder / "bundle.json").read_text())
    edit(manifest)
    (folder / "bundle.json").write_text(json.dumps(manifest))


def test_a_written_bundle_can_be_read(tmp_path: Path) -> None:
    found = Bundle.open(write_bundle(tmp_path / "b", make_graph()))
    assert found.templates == TEMPLATES
    assert found.model.name == "model.onnx"
    assert found.manifest["temperature"] == 1
    assert found.tokenizer.encode(["hi"])
    assert OnnxRuntime(found.model)(np.zeros((2, 3), np.int32), np.ones(2, np.int32)).shape == (2, 7)


def test_the_version_depends_only_on_the_files(tmp_path: Path) -> None:
    one, same = (Bundle.open(write_bundle(tmp_path / name, make_graph())) for name in ("a", "b"))
    other = Bundle.open(write_bundle(tmp_path / "c", make_graph(domain="ai.onnx")))
    assert one.manifest["version"] == same.manifest["version"] != other.manifest["version"]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: (f / "model.onnx").write_bytes(b"x"), "1 bytes, not"),
        (lambda f: (f / "templates.json").unlink(), "templates.json is missing"),
        (lambda f: (f / "bundle.json").unlink(), "is not a bundle"),
        (lambda f: (f / "bundle.json").write_text("{"), "is not JSON"),
        (lambda f: (f / "bundle.json").write_text("[]"), "is not the manifest of a bundle"),
        (lambda f: change(f, lambda m: m.update(kind="run")), "is not the manifest of a bundle"),
        (lambda f: change(f, lambda m: m.update(format=3)), "has format 3"),
        (lambda f: change(f, lambda m: m.update(window="8", head=None)), "keys: head, window"),
        (lambda f: change(f, lambda m: m["files"].pop("tokenizer.json")), "does not list tokenizer.json"),
        (lambda f: change(f, lambda m: m["files"].update(extra={"bytes": 1})), "no size and sha256 of extra"),
        (lambda f: change(f, lambda m: m.update(model="../model.onnx")), "does not list"),
        (lambda f: change(f, lambda m: m.update(version="0" * 16)), "does not match its files"),
    ],
)
def test_a_bundle_that_contradicts_its_manifest_is_rejected(tmp_path: Path, spoil: Any, said: str) -> None:
    folder = write_bundle(tmp_path / "b", make_graph())
    spoil(folder)
    with pytest.raises(UserError, match=said) as caught:
        Bundle.open(folder)
    assert "\n" not in str(caught.value)


def test_a_flipped_byte_is_detected_in_every_file(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "b", make_graph())
    for name in ("model.onnx", "tokenizer.json", "templates.json"):
        kept = (folder / name).read_bytes()
        (folder / name).write_bytes(kept[:100] + bytes([kept[100] ^ 1]) + kept[101:])
        with pytest.raises(UserError, match=rf"{name} differs from the manifest next to it"):
            Bundle.open(folder)
        (folder / name).write_bytes(kept)
    Bundle.open(folder)


@pytest.mark.parametrize("name", ["/etc/hostname", "../secret", "inner/../../secret"])
def test_a_file_outside_the_bundle_is_never_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_text("x")
    folder = write_bundle(tmp_path / "b", make_graph())
    change(folder, lambda m: m["files"].update({name: {"bytes": 1, "sha256": files.sha256(tmp_path / "secret")}}))
    with pytest.raises(UserError, match="points outside"):
        Bundle.open(folder)


@pytest.mark.parametrize("name", ["model.onnx", "templates.json", "bundle.json"])
def test_a_link_to_outside_the_bundle_is_not_followed(tmp_path: Path, name: str) -> None:
    folder = write_bundle(tmp_path / "b", make_graph())
    (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    with pytest.raises(UserError, match=r"outside|link"):
        Bundle.open(folder)


GIANT = TensorProto(name="table", data_type=TensorProto.FLOAT, dims=[2**40, 7], raw_data=b"1234")
LIST = TensorProto(name="table", data_type=TensorProto.FLOAT, dims=[2**40, 7], float_data=[1.0])


@pytest.mark.parametrize(
    ("weight", "said"),
    [
        (external("/etc/passwd"), "points outside"),
        (external("../secret"), "points outside"),
        (external("link"), "points outside|link"),
        (external("beside"), "none of the bundle's files"),
        (external(""), "none of the bundle's files"),
        (external("tokenizer.json", offset=549_000), "claims 549,000"),
        (external("tokenizer.json", offset=-4), "claims -4"),
        (external("tokenizer.json", length=10**12), "needs 1,400 bytes"),
        (external("tokenizer.json", offset="x"), "is not a number"),
        (GIANT, "its shape needs"),
        (LIST, "too few values"),
        (TensorProto(name="table", data_type=TensorProto.FLOAT, dims=[-1, 7]), "no dimension may be negative"),
    ],
)
def test_a_hostile_weight_is_rejected(tmp_path: Path, weight: TensorProto, said: str) -> None:
    (tmp_path / "secret").write_bytes(bytes(1400))
    folder = write_bundle(tmp_path / "b", make_graph(weight))
    (folder / "beside").write_bytes(bytes(1400))
    (folder / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match=said) as caught:
        Bundle.open(folder)
    assert "\n" not in str(caught.value)


def test_a_hostile_weight_inside_a_node_is_rejected(tmp_path: Path) -> None:
    model = make_graph()
    model.graph.node.append(helper.make_node("Constant", [], ["y"], value=external("/etc/passwd")))
    inner = helper.make_graph([helper.make_node("Constant", [], ["z"], value=external("../x"))], "inner", [], [])
    with_if = make_graph()
    with_if.graph.node.append(helper.make_node("If", ["c"], [], then_branch=inner, else_branch=inner))
    for i, hostile in enumerate((model, with_if)):
        with pytest.raises(UserError, match="points outside"):
            Bundle.open(write_bundle(tmp_path / f"b{i}", hostile))


def test_operators_outside_the_onnx_standard_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"outside the ONNX standard \(com.example\)"):
        Bundle.open(write_bundle(tmp_path / "b", make_graph(domain="com.example")))


def test_a_file_that_is_not_an_onnx_model_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not an ONNX model"):
        Bundle.open(write_bundle(tmp_path / "b", b"\xff" * 100))


def test_a_file_above_the_onnx_size_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with path.open("wb") as file:
        file.truncate(2**31 + 1)  # a sparse file, which takes no disk space
    with pytest.raises(UserError, match="an ONNX file has at most"):
        onnx_check.load_graph(path)


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    """A pickle instead of the model is rejected and never executed."""
    import pickle

    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "sprung",))

    with pytest.raises(UserError, match="is not an ONNX model"):
        Bundle.open(write_bundle(tmp_path / "b", pickle.dumps(Trap())))
    assert not (tmp_path / "sprung").exists()


def closure(names: set[str]) -> set[str]:
    """Return these distributions and all of their requirements."""
    found, waiting = set[str](), set(names)
    while waiting:
        name = canonicalize_name(waiting.pop())
        found.add(name)
        every = (Requirement(line) for line in importlib.metadata.requires(name) or [])
        needs = (need for need in every if not need.marker or need.marker.evaluate({"extra": ""}))
        waiting |= {canonicalize_name(need.name) for need in needs} - found
    return found


def test_requirements_serve_covers_every_import_of_suggest(tmp_path: Path) -> None:
    """Every import belongs to a listed distribution or to a requirement of one."""
    folder = write_bundle(tmp_path / "b", make_graph())
    code = f"""
import sys
from jaxtempl.commands import suggest
suggest.main(["--bundle={folder}", "--json", "examples/case.json"])
print(sorted({{name.split(".")[0] for name in sys.modules}}), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    owners = importlib.metadata.packages_distributions()
    imported = {name for name in ast.literal_eval(done.stderr) if name in owners and not name.startswith("_")}
    serving = lines("requirements-serve.txt")
    installed = closure({Requirement(line).name for line in serving})
    assert not {name for name in imported if not {canonicalize_name(owner) for owner in owners[name]} & installed}
    assert {"onnxruntime", "tokenizers", "onnx"} <= imported
    assert serving <= lines("requirements.txt")


def lines(name: str) -> set[str]:
    every = (line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    return {line for line in every if line}


def test_an_engine_without_its_gpu_is_rejected(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "b", make_graph())
    (folder / "bundle.json").unlink()
    (folder / "model.onnx").rename(folder / "model.plan")
    bundle.write_manifest(folder, FACTS | {"model": "model.plan"})
    with pytest.raises(UserError, match="run it on the machine with the GPU"):
        bundle_suggester(Bundle.open(folder))


TRAINING = {"jax", "flax", "optax", "orbax", "grain", "torch", "transformers", "tensorflow_datasets", "onnx_ir"}


def test_suggesting_from_a_bundle_needs_no_training_library(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "b", make_graph())
    code = f"""
import sys
class Missing:
    def find_spec(self, name, *_):
        if name.split(".")[0] in {TRAINING!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
from jaxtempl.commands import suggest
suggest.main(["--bundle={folder}", "examples/case.json"])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("%") == 5
    assert "jax" in without(TRAINING, ["jaxtempl.evaluation.predict"]).stderr

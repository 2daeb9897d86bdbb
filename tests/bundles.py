"""Small bundles that tests write to disk."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from exported import TEMPLATES
from onnx import TensorProto, helper
from tiny import ASSETS

from jaxtempl import files
from jaxtempl.bundle import bundle

FACTS: dict[str, Any] = {
    "model": "model.onnx",
    "head": "template",
    "dtype": "fp32",
    "window": 8,
    "role_tags": False,
    "special_tokens": 0,
    "temperature": 1.0,
    "slots": 7,
    "buckets": [8],
    "run": {},
    "verify": {},
}


def make_graph(weight: TensorProto | None = None, domain: str = "") -> onnx.ModelProto:
    """Return a graph that gathers rows of a table: a minimal network."""
    table = weight or onnx.numpy_helper.from_array(np.ones((8192, 7), np.float32), "table")
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["each"]),
        helper.make_node("ReduceSum", ["each", "axes"], ["logits"], keepdims=0, domain=domain),
    ]
    axes = onnx.numpy_helper.from_array(np.array([1]), "axes")
    inputs = [helper.make_tensor_value_info("input_ids", TensorProto.INT32, ["batch", "length"])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 7])]
    graph = helper.make_graph(nodes, "test", inputs, outputs, [table, axes])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


def write_bundle(folder: Path, model: onnx.ModelProto | bytes, **facts: Any) -> Path:
    """Write a bundle with a model, and FACTS updated by `facts` in its manifest."""
    folder.mkdir()
    raw = model if isinstance(model, bytes) else model.SerializeToString()
    (folder / "model.onnx").write_bytes(raw)
    (folder / "tokenizer.json").write_text((ASSETS / "nano" / "tokenizer.json").read_text())
    entries = [
        {"slot": t.slot, "id": t.id, "text": t.text, "active": t.active, "observed": False, "count": 1}
        for t in TEMPLATES
    ]
    files.write_json(folder / "templates.json", entries)
    bundle.write_manifest(folder, FACTS | facts)
    return folder


def rewrite(folder: Path, name: str, change: Callable[[str], str]) -> Path:
    """Change a file of a bundle, and its manifest accordingly, which gives another version."""
    manifest = files.read_json(folder / bundle.MANIFEST)
    (folder / bundle.MANIFEST).unlink()
    (folder / name).write_text(change((folder / name).read_text()))
    left_out = ("files", "version", "kind", "format")
    bundle.write_manifest(folder, {key: value for key, value in manifest.items() if key not in left_out})
    return folder


def write_serving_bundle(folder: Path, **facts: Any) -> Path:
    """Write a bundle with a window of 512 tokens; its graph only fits the fake backend."""
    return write_bundle(folder, make_graph(), **{"window": 512, "buckets": [64, 128, 256, 512], **facts})

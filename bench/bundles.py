"""Bundles of a published size with random weights, for benchmarks of serving alone."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

from bench import common
from jaxtempl import files
from jaxtempl.bundle import bundle
from jaxtempl.config import sizes
from jaxtempl.text import window
from jaxtempl.text.cases import Template

TEMPLATES = 640  # the paper's number
SEED = 0


def write(folder: Path, size: str, dtype: str) -> Path:
    """Write a bundle in a separate process, because it needs JAX and memory.

    Args:
        folder: to write.
        size: one of configs/sizes/.
        dtype: fp32 or int8.
    """
    common.output_of("bench.bundles", str(folder), size, dtype)
    return folder


def _made(folder: Path, size: str, dtype: str) -> None:
    import onnx_ir as ir

    from bench import steps
    from converters.onnx import graph as onnx_graph
    from converters.onnx.layers import GraphOptions
    from converters.quantize import dynamic_int8
    from jaxtempl.models import factory

    a = steps.architecture(size)
    folder.mkdir(parents=True)
    graph = onnx_graph.build(factory.random_params(a, TEMPLATES, SEED), a, GraphOptions("template", form="chunked"))
    ir.save(graph, folder / bundle.ONNX)
    if dtype == "int8":
        (folder / bundle.ONNX).rename(folder / "float.onnx")
        dynamic_int8.quantize(folder / "float.onnx", folder / bundle.ONNX)
        (folder / "float.onnx").unlink()
    (folder / "tokenizer.json").write_text(sizes.tokenizer_path(size).read_text())
    templates = [Template(i, f"T{i}", f"Reply number {i}", True, False, 1) for i in range(TEMPLATES)]
    files.write_json(folder / "templates.json", [dataclasses.asdict(template) for template in templates])
    bundle.write_manifest(folder, _facts(size, dtype))


def _facts(size: str, dtype: str) -> dict[str, Any]:
    return {
        "model": bundle.ONNX,
        "head": "template",
        "dtype": dtype,
        "window": window.WINDOW,
        "role_tags": False,
        "special_tokens": 0,
        "temperature": 1.0,
        "slots": TEMPLATES,
        "buckets": list(window.buckets(window.WINDOW)),
        "run": {"size": size},
        "verify": {},
    }


if __name__ == "__main__":
    _made(Path(sys.argv[1]), *sys.argv[2:])

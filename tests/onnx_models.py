"""Small models of unusual shapes, and their ONNX graphs in ONNX Runtime."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnx
import onnx_ir as ir

from converters.onnx import graph
from converters.onnx.layers import GraphOptions
from jaxtempl.models import factory
from jaxtempl.serve.inference.backends import OnnxRuntime
from jaxtempl.specs.architecture import Architecture, BertArchitecture, NeoXArchitecture

SHAPE: dict[str, Any] = {
    "layers": 3, "hidden": 48, "heads": 4, "feed_forward": 72, "vocabulary": 120, "positions": 64
}  # fmt: skip
NEOX = NeoXArchitecture(**SHAPE, rotary_fraction=0.5)
BERT = BertArchitecture(**SHAPE)
SLOTS = 7
IDS = np.random.default_rng(0).integers(2, 120, (5, 40)).astype(np.int32)
LENGTHS = np.array([1, 40, 33, 2, 17], np.int32)


def noisy_params(a: Architecture, outputs: int | None, noise: float) -> dict[str, Any]:
    """Draw parameters with noise on all of them, so that a missing bias or norm is detected."""
    random = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: np.asarray(leaf) + noise * random.standard_normal(leaf.shape, np.float32),
        factory.random_params(a, outputs, 0),
    )


def onnx_runtime(params: dict[str, Any], a: Architecture, options: GraphOptions, path: Path) -> OnnxRuntime:
    """Write the graph to `path`, check it and open it in ONNX Runtime."""
    ir.save(graph.build(params, a, options), path)
    onnx.checker.check_model(path, full_check=True)
    return OnnxRuntime(path, threads=1)

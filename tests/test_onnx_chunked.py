"""The chunked form of the ONNX graph, for CPUs, gives the logits of Flax at any length."""

from collections import Counter
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from flax import nnx

from converters.onnx import graph as onnx_graph
from converters.onnx.attention import CHUNKS
from converters.onnx.layers import GraphOptions
from jaxtempl.huggingface.mapping import Head
from jaxtempl.models import factory
from jaxtempl.specs.architecture import NeoXArchitecture

ARCHITECTURE = NeoXArchitecture(layers=3, hidden=64, heads=4, feed_forward=96, vocabulary=120, positions=64)
OUTPUTS = 7
LENGTHS = (1, 2, 3, 4, 5, 7, 8, 41)  # fewer tokens than chunks, equally many, and chunks of unequal length


def save_graph(path: Path, head: Head) -> dict[str, Any]:
    """Write the graph of a random model and return its parameters."""
    params = factory.random_params(ARCHITECTURE, OUTPUTS, 0)
    ir.save(onnx_graph.build(params, ARCHITECTURE, GraphOptions(head, form="chunked")), path)
    onnx.checker.check_model(path, full_check=True)
    return params


@pytest.mark.parametrize("head", ["template", "lm"])
def test_logits_equal_those_of_flax_at_any_length(tmp_path: Path, head: Head) -> None:
    """One call of Flax covers all lengths, because no position sees later ones."""
    params, graphdef = save_graph(tmp_path / "model.onnx", head), factory.make_graphdef(ARCHITECTURE, OUTPUTS)
    ids = np.random.default_rng(0).integers(0, 120, (2, max(LENGTHS))).astype(np.int32)
    expected = np.asarray(jax.jit(lambda p, tokens: nnx.merge(graphdef, p)(tokens))(params, ids))  # [B L O]
    session = ort.InferenceSession(tmp_path / "model.onnx")
    for length in LENGTHS:
        feeds, rows = {"input_ids": ids[:, :length]}, expected[:, :length]
        if head == "template":
            ends = np.array([length, (length + 1) // 2], np.int32)
            feeds, rows = {**feeds, "lengths": ends[:, None]}, expected[[0, 1], ends - 1]
        actual = np.asarray(session.run(None, feeds)[0])
        np.testing.assert_allclose(actual, rows, rtol=0, atol=2e-6 * np.abs(expected).max())


def test_each_chunk_has_one_attention(tmp_path: Path) -> None:
    """The last block has one query per row, so it has one chunk."""
    save_graph(tmp_path / "model.onnx", "template")
    graph = onnx.load(tmp_path / "model.onnx").graph
    kinds = Counter(node.op_type for node in graph.node)
    layers = ARCHITECTURE.layers
    assert {node.domain for node in graph.node} == {""}
    assert kinds["Attention"] == CHUNKS * (layers - 1) + 1
    assert (kinds["RotaryEmbedding"], kinds["Gelu"], kinds["LayerNormalization"]) == (
        2 * layers,
        layers,
        2 * layers + 1,
    )

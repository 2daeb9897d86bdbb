"""BERT's ONNX graph matches the logits of Flax in ONNX Runtime, for both heads and for all forms and dtypes."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnx_ir as ir
import pytest
from flax import nnx
from onnx_models import BERT, IDS, LENGTHS, SLOTS, noisy_params, onnx_runtime

from converters.onnx import export, graph
from converters.onnx.layers import UNUSED_LOGIT, GraphOptions
from converters.verify import localize
from converters.verify.flax_network import FlaxNetwork
from converters.verify.verify import real_positions
from jaxtempl.bundle import onnx_check
from jaxtempl.errors import UsageError
from jaxtempl.models import factory
from jaxtempl.models.bert import Bert
from jaxtempl.serve.inference.backends import OnnxRuntime
from jaxtempl.specs.architecture import BertArchitecture

MEAN = dataclasses.replace(BERT, pooling="mean")


def bert_params(head: str, a: BertArchitecture = BERT) -> dict[str, Any]:
    return noisy_params(a, SLOTS if head == "template" else None, 0.2)


@functools.cache
def flax_model(head: str, a: BertArchitecture = BERT) -> Callable[..., jax.Array]:
    """Compile the model once for all tests: (params, ids, lengths) -> logits."""
    graphdef = factory.make_graphdef(a, SLOTS if head == "template" else None)

    def logits(params: dict[str, Any], ids: jax.Array, lengths: jax.Array) -> jax.Array:
        model: Bert = nnx.merge(graphdef, params)
        return model.classify(ids, lengths) if head == "template" else model(ids, lengths)

    return jax.jit(logits)


def flax_logits(params: dict[str, Any], head: str, a: BertArchitecture = BERT) -> np.ndarray:
    return real_positions(np.asarray(flax_model(head, a)(params, IDS, LENGTHS)), LENGTHS)


def bert_runtime(params: dict[str, Any], options: GraphOptions, path: Path, a: BertArchitecture = BERT) -> OnnxRuntime:
    return onnx_runtime(params, a, options, path)


@pytest.mark.parametrize(("head", "a"), [("template", BERT), ("template", MEAN), ("lm", BERT)])
@pytest.mark.parametrize("form", ["fused", "plain"])
def test_logits_match_flax_in_a_batch_and_alone(tmp_path: Path, head: Any, a: BertArchitecture, form: Any) -> None:
    params = bert_params(head, a)
    expected = flax_logits(params, head, a)
    for dtype, wide, share in (("fp32", False, 5e-6), ("fp16", False, 2e-2), ("fp16", True, 2e-2)):
        network = bert_runtime(params, GraphOptions(head, dtype, wide, form), tmp_path / "model.onnx", a)
        assert onnx_check.embedding_rows(onnx_check.load_graph(tmp_path / "model.onnx")) == BERT.vocabulary
        bound = share * np.abs(expected).max()
        together = real_positions(network(IDS, LENGTHS), LENGTHS)
        rows = ((row[None, :length], np.array([length], np.int32)) for row, length in zip(IDS, LENGTHS, strict=True))
        alone = np.concatenate([real_positions(network(*row), row[1]) for row in rows])
        assert together.dtype == np.float32
        assert np.abs(together - expected).max() <= bound
        assert np.abs(alone - expected).max() <= bound


def test_padding_does_not_change_the_logits(tmp_path: Path) -> None:
    network = bert_runtime(bert_params("template"), GraphOptions("template"), tmp_path / "model.onnx")
    other = np.where(np.arange(40) < LENGTHS[:, None], IDS, 1).astype(np.int32)
    assert np.array_equal(network(IDS, LENGTHS), network(other, LENGTHS))


@pytest.mark.parametrize("a", [BERT, MEAN])
def test_a_warm_up_with_length_0_gives_finite_logits(a: BertArchitecture, tmp_path: Path) -> None:
    network = bert_runtime(bert_params("template", a), GraphOptions("template", "fp16"), tmp_path / "model.onnx", a)
    assert np.isfinite(network(IDS, np.zeros(5, np.int32))).all()


def test_spare_slots_get_the_unused_logit_and_other_slots_match_flax(tmp_path: Path) -> None:
    params = bert_params("template")
    actual = bert_runtime(params, GraphOptions("template", slots=10), tmp_path / "model.onnx")(IDS, LENGTHS)
    assert np.abs(actual[:, :SLOTS] - flax_logits(params, "template")).max() < 1e-4
    assert (actual[:, SLOTS:] == UNUSED_LOGIT).all()


def test_the_chunked_form_is_rejected() -> None:
    with pytest.raises(UsageError, match=r"form=chunked needs causal attention.*choose --form=fused or plain"):
        graph.build(bert_params("template"), BERT, GraphOptions("template", form="chunked"))


@pytest.mark.parametrize("broken", [0, 2])
def test_the_first_diverging_layer_is_named(tmp_path: Path, broken: int) -> None:
    params = bert_params("template")
    network = FlaxNetwork(bert_params("template"), BERT, "template")
    ids = IDS[1:2]
    export.save(graph.build(params, BERT, GraphOptions("template")), tmp_path)
    first = localize.first_diverging_layer(
        tmp_path / "model.onnx", ids[0].tolist(), network.residuals(ids), "fp32", network.head_position
    )
    assert first == "the head"
    scales = np.array(params["blocks"]["mlp_norm"]["scale"])
    scales[broken] *= 1.5
    params["blocks"]["mlp_norm"]["scale"] = scales
    export.save(graph.build(params, BERT, GraphOptions("template")), tmp_path)
    found = localize.first_diverging_layer(
        tmp_path / "model.onnx", ids[0].tolist(), network.residuals(ids), "fp32", network.head_position
    )
    assert found.startswith(f"block_{broken} ")


def test_only_the_standard_operators_are_used() -> None:
    model = ir.to_proto(graph.build(bert_params("template"), BERT, GraphOptions("template")))
    assert {node.domain for node in onnx_check.nodes(model.graph)} == {""}

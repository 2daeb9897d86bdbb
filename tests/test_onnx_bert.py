"""BERT's ONNX graph gives Flax's logits in ONNX Runtime, with both heads, in its forms and types."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from flax import nnx

from converters.onnx import export, graph
from converters.onnx.layers import UNUSED_LOGIT, GraphOptions
from converters.verify import localize
from converters.verify.flax_network import FlaxNetwork
from converters.verify.verify import places
from jaxtempl.bundle import onnx_check
from jaxtempl.errors import UsageError
from jaxtempl.models import factory
from jaxtempl.models.bert import Bert
from jaxtempl.serve.inference.backends import OnnxRuntime
from jaxtempl.specs.architecture import BertArchitecture

ODD = BertArchitecture(layers=3, hidden=48, heads=4, feed_forward=72, vocabulary=120, positions=64)
SLOTS = 7
IDS = np.random.default_rng(0).integers(2, 120, (5, 40)).astype(np.int32)
LENGTHS = np.array([1, 40, 33, 2, 17], np.int32)


def params_of(head: str) -> dict[str, Any]:
    """Random everywhere, biases and norms too, so that none is left out unseen."""
    drawn = factory.random_params(ODD, SLOTS if head == "template" else None, 0)
    leaves, tree = jax.tree.flatten(drawn)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return jax.tree.unflatten(
        tree, [leaf + 0.2 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    )


def flax_logits(params: dict[str, Any], head: str) -> np.ndarray:
    model: Bert = nnx.merge(factory.make_graphdef(ODD, SLOTS if head == "template" else None), params)
    ids, lengths = jnp.asarray(IDS), jnp.asarray(LENGTHS)
    return places(np.asarray(model.classify(ids, lengths) if head == "template" else model(ids, lengths)), LENGTHS)


def exported(params: dict[str, Any], options: GraphOptions, path: Path) -> OnnxRuntime:
    ir.save(graph.build(params, ODD, options), path)
    onnx.checker.check_model(path, full_check=True)
    return OnnxRuntime(path, threads=1)


@pytest.mark.parametrize("head", ["template", "lm"])
@pytest.mark.parametrize("form", ["fused", "plain"])
def test_logits_are_flaxs_batched_and_alone(tmp_path: Path, head: Any, form: Any) -> None:
    params = params_of(head)
    wanted = flax_logits(params, head)
    for dtype, wide, share in (("fp32", False, 5e-6), ("fp16", False, 2e-2), ("fp16", True, 2e-2)):
        network = exported(params, GraphOptions(head, dtype, wide, form), tmp_path / "model.onnx")
        bound = share * np.abs(wanted).max()
        together = places(network(IDS, LENGTHS), LENGTHS)
        rows = ((row[None, :length], np.array([length], np.int32)) for row, length in zip(IDS, LENGTHS, strict=True))
        alone = np.concatenate([places(network(*row), row[1]) for row in rows])
        assert together.dtype == np.float32
        assert np.abs(together - wanted).max() <= bound
        assert np.abs(alone - wanted).max() <= bound


def test_padding_is_not_seen(tmp_path: Path) -> None:
    network = exported(params_of("template"), GraphOptions("template"), tmp_path / "model.onnx")
    other = np.where(np.arange(40) < LENGTHS[:, None], IDS, 1).astype(np.int32)
    assert np.array_equal(network(IDS, LENGTHS), network(other, LENGTHS))


def test_a_warm_up_of_length_0_has_numbers(tmp_path: Path) -> None:
    network = exported(params_of("template"), GraphOptions("template", "fp16"), tmp_path / "model.onnx")
    assert np.isfinite(network(IDS, np.zeros(5, np.int32))).all()


def test_spare_slots_are_unlikely_and_the_others_the_same(tmp_path: Path) -> None:
    params = params_of("template")
    got = exported(params, GraphOptions("template", slots=10), tmp_path / "model.onnx")(IDS, LENGTHS)
    assert np.abs(got[:, :SLOTS] - flax_logits(params, "template")).max() < 1e-4
    assert (got[:, SLOTS:] == UNUSED_LOGIT).all()


def test_the_form_of_causal_attention_is_refused() -> None:
    with pytest.raises(UsageError, match=r"form=chunked needs causal attention.*choose --form=fused or plain"):
        graph.build(params_of("template"), ODD, GraphOptions("template", form="chunked"))


@pytest.mark.parametrize("broken", [0, 2])
def test_the_layer_where_a_graph_parts_is_named(tmp_path: Path, broken: int) -> None:
    params = params_of("template")
    network = FlaxNetwork(params_of("template"), ODD, "template")
    ids = IDS[1:2]
    export.save(graph.build(params, ODD, GraphOptions("template")), tmp_path)
    first = localize.first_layer(
        tmp_path / "model.onnx", ids[0].tolist(), network.residuals(ids), "fp32", network.place
    )
    assert first == "the head"
    scales = np.array(params["blocks"]["mlp_norm"]["scale"])
    scales[broken] *= 1.5
    params["blocks"]["mlp_norm"]["scale"] = scales
    export.save(graph.build(params, ODD, GraphOptions("template")), tmp_path)
    found = localize.first_layer(
        tmp_path / "model.onnx", ids[0].tolist(), network.residuals(ids), "fp32", network.place
    )
    assert found.startswith(f"block_{broken} ")


def test_only_the_standard_operators_are_used() -> None:
    model = ir.to_proto(graph.build(params_of("template"), ODD, GraphOptions("template")))
    assert {node.domain for node in onnx_check.nodes(model.graph)} == {""}

"""The ONNX graph gives Flax's logits in ONNX Runtime, in every form, and is made of standard operators alone."""

import itertools
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
from converters.onnx.layers import GraphOptions
from converters.verify.verify import places
from jaxtempl.bundle import onnx_check
from jaxtempl.config import sizes
from jaxtempl.models import factory
from jaxtempl.models.neox import NeoX
from jaxtempl.serve.inference.backends import OnnxRuntime
from jaxtempl.specs.architecture import NeoXArchitecture

ODD = NeoXArchitecture(layers=3, hidden=48, heads=4, feed_forward=72, vocabulary=120, positions=64, rotary_fraction=0.5)
SLOTS = 7
IDS = np.random.default_rng(0).integers(2, 120, (5, 40)).astype(np.int32)
LENGTHS = np.array([1, 40, 33, 2, 17], np.int32)


def params_of(a: NeoXArchitecture, outputs: int) -> dict[str, Any]:
    """Random everywhere, biases and norms too, so that none is left out unseen."""
    drawn = factory.random_params(a, outputs, 0)
    leaves, tree = jax.tree.flatten(drawn)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return jax.tree.unflatten(
        tree, [leaf + 0.1 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    )


def flax_logits(params: dict[str, Any], a: NeoXArchitecture, options: GraphOptions, lengths: np.ndarray) -> np.ndarray:
    model: NeoX = nnx.merge(factory.make_graphdef(a, params["head"]["kernel"].shape[1]), params)
    if options.head == "template":
        return np.asarray(model.classify(jnp.asarray(IDS), jnp.asarray(lengths)))
    return places(np.asarray(model(jnp.asarray(IDS))), lengths)


def exported(params: dict[str, Any], a: NeoXArchitecture, options: GraphOptions, path: Path) -> OnnxRuntime:
    ir.save(graph.build(params, a, options), path)
    onnx.checker.check_model(path, full_check=True)
    return OnnxRuntime(path, threads=1)


def assert_close(got: np.ndarray, wanted: np.ndarray, share: float) -> None:
    assert got.shape == wanted.shape
    assert np.abs(got - wanted).max() <= share * np.abs(wanted).max()


@pytest.mark.parametrize("head", ["template", "lm"])
@pytest.mark.parametrize("form", ["fused", "plain"])
@pytest.mark.parametrize("parallel", [True, False])
def test_logits_are_flaxs(tmp_path: Path, head: Any, form: Any, parallel: bool) -> None:
    a = NeoXArchitecture(**{**vars(ODD), "parallel_residual": parallel})
    params = params_of(a, SLOTS if head == "template" else a.vocabulary)
    for dtype, wide, share in (("fp32", False, 5e-6), ("fp16", False, 2e-2), ("fp16", True, 2e-2)):
        options = GraphOptions(head, dtype, wide, form)
        wanted = flax_logits(params, a, options, LENGTHS)
        network = exported(params, a, options, tmp_path / "model.onnx")
        assert_close(places(network(IDS, LENGTHS), LENGTHS), wanted, share)
        for row, length in zip(IDS, LENGTHS, strict=True):
            alone = network(row[None, :length], np.array([length], np.int32))
            assert alone.dtype == np.float32
            assert np.isfinite(alone).all()


@pytest.mark.parametrize("form", ["fused", "plain"])
def test_without_rotation_and_with_all_of_it(tmp_path: Path, form: Any) -> None:
    for fraction in (0.0, 1.0):
        a = NeoXArchitecture(**{**vars(ODD), "rotary_fraction": fraction})
        params, options = params_of(a, SLOTS), GraphOptions("template", form=form)
        network = exported(params, a, options, tmp_path / "model.onnx")
        assert_close(network(IDS, LENGTHS), flax_logits(params, a, options, LENGTHS), 5e-6)


def test_no_length_reads_outside_of_its_row(tmp_path: Path) -> None:
    """A server's warm-up sends zeros, and a hostile client anything."""
    params, options = params_of(ODD, SLOTS), GraphOptions("template")
    network = exported(params, ODD, options, tmp_path / "model.onnx")
    wanted = flax_logits(params, ODD, options, np.array([1, 40, 1, 40, 40], np.int32))
    assert_close(network(IDS, np.array([0, 41, -7, 2**31 - 1, 10**6], np.int32)), wanted, 5e-6)


def test_spare_slots_come_last_and_are_never_first(tmp_path: Path) -> None:
    params = params_of(ODD, SLOTS)
    network = exported(params, ODD, GraphOptions("template", slots=16), tmp_path / "model.onnx")
    got = network(IDS, LENGTHS)
    assert_close(got[:, :SLOTS], flax_logits(params, ODD, GraphOptions("template"), LENGTHS), 5e-6)
    assert got.shape == (5, 16)
    assert (got[:, SLOTS:] < got[:, :SLOTS].min() - 1000).all()


def test_the_last_block_works_on_one_token(tmp_path: Path) -> None:
    """An exact saving: its query, output and MLP are of the last token alone."""
    path = tmp_path / "model.onnx"
    exported(params_of(ODD, SLOTS), ODD, GraphOptions("template"), path)
    told = onnx.load(path)
    names = [f"block_{layer}/residual" for layer in range(ODD.layers)]
    told.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    onnx.save(told, path)
    shapes = [value.shape for value in OnnxRuntime(path).run(names, IDS, LENGTHS)]
    assert shapes == [(5, 40, 48), (5, 40, 48), (5, 1, 48)]


@pytest.mark.parametrize(("form", "opset"), [("fused", 23), ("plain", 20)])
def test_standard_operators_of_the_opset_alone(tmp_path: Path, form: Any, opset: int) -> None:
    path = tmp_path / "model.onnx"
    exported(params_of(ODD, SLOTS), ODD, GraphOptions("template", form=form), path)
    model = onnx.load(path)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
    kinds = {node.op_type for node in onnx_check.nodes(model.graph)}
    assert {node.domain for node in onnx_check.nodes(model.graph)} == {""}
    assert ({"Attention", "RotaryEmbedding"} <= kinds) == (form == "fused")
    assert len({node.name for node in model.graph.node}) == len(model.graph.node)
    assert {"LayerNormalization", "Gelu"} <= kinds


def test_fp16_weights_are_halves_but_for_the_head(tmp_path: Path) -> None:
    for wide, others in ((False, {"head", "norm/scale", "norm/bias"}), (True, None)):
        model = graph.build(params_of(ODD, SLOTS), ODD, GraphOptions("template", "fp16", wide))
        floats = {n for n, v in model.graph.initializers.items() if v.dtype == ir.DataType.FLOAT}
        halves = {n for n, v in model.graph.initializers.items() if v.dtype == ir.DataType.FLOAT16}
        assert others is None or floats == others
        assert any("up/kernel" in name for name in halves)


def broadcast_params(a: NeoXArchitecture, outputs: int) -> dict[str, Any]:
    """Of any size, and of no memory."""
    return jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0.01), leaf.shape), factory.abstract_params(a, outputs))


def spans(model: onnx.ModelProto) -> list[tuple[int, int]]:
    """First and last byte of each tensor in the external file."""
    places_ = [{entry.key: entry.value for entry in t.external_data} for t in model.graph.initializer]
    return sorted((int(p["offset"]), int(p["offset"]) + int(p["length"])) for p in places_ if p)


def test_weights_above_the_limit_lie_beside_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "INLINE_BYTES", 10_000)
    params = params_of(ODD, SLOTS)
    export.save(graph.build(params, ODD, GraphOptions("template")), tmp_path)
    size = (tmp_path / "model.onnx.data").stat().st_size
    onnx_check.check_onnx(tmp_path / "model.onnx", {"model.onnx": 0, "model.onnx.data": size})
    got = OnnxRuntime(tmp_path / "model.onnx")(IDS, LENGTHS)
    assert_close(got, flax_logits(params, ODD, GraphOptions("template"), LENGTHS), 5e-6)


@pytest.mark.slow
def test_external_data_at_the_shape_of_2_8b(tmp_path: Path) -> None:
    """5.5 GB of float16: every tensor lies in the file, none over another, as its shape needs."""
    a = NeoXArchitecture(**sizes.read_size("2.8b")["architecture"])
    export.save(graph.build(broadcast_params(a, 300), a, GraphOptions("template", "fp16")), tmp_path)
    data = tmp_path / "model.onnx.data"
    onnx_check.check_onnx(tmp_path / "model.onnx", {"model.onnx.data": data.stat().st_size})
    found = spans(onnx_check.load_graph(tmp_path / "model.onnx"))
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(found))
    weights = 2 * (2_775_208_960 - 2 * a.vocabulary * a.hidden)  # published count less both embeddings, halves
    assert found[-1][1] <= data.stat().st_size < weights + 4 * a.vocabulary * a.hidden
    assert (tmp_path / "model.onnx").stat().st_size < 10**7
    embed = next(t for t in onnx_check.load_graph(tmp_path / "model.onnx").graph.initializer if t.name == "embed")
    stored = onnx.numpy_helper.to_array(embed, str(tmp_path))
    assert (stored[:: a.vocabulary // 7] == np.float16(0.01)).all()
    data.unlink()

"""The ONNX graph gives the logits of Flax in every form, and consists of standard operators."""

import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from flax import nnx
from onnx_models import IDS, LENGTHS, NEOX, SLOTS, noisy_params, onnx_runtime

from converters.onnx import export, graph
from converters.onnx.layers import GraphOptions
from converters.verify.verify import real_positions
from jaxtempl.bundle import onnx_check
from jaxtempl.config import sizes
from jaxtempl.models import factory
from jaxtempl.models.neox import NeoX
from jaxtempl.serve.inference.backends import OnnxRuntime
from jaxtempl.specs.architecture import NeoXArchitecture


def neox_params(a: NeoXArchitecture, outputs: int) -> dict[str, Any]:
    return noisy_params(a, outputs, 0.1)


@functools.cache
def flax_model(a: NeoXArchitecture, outputs: int, head: str) -> Callable[..., jax.Array]:
    """Compile the model once for all tests: (params, ids, lengths) -> logits."""
    graphdef = factory.make_graphdef(a, outputs)

    def logits(params: dict[str, Any], ids: jax.Array, lengths: jax.Array) -> jax.Array:
        model: NeoX = nnx.merge(graphdef, params)
        return model.classify(ids, lengths) if head == "template" else model(ids)

    return jax.jit(logits)


def flax_logits(params: dict[str, Any], a: NeoXArchitecture, options: GraphOptions, lengths: np.ndarray) -> np.ndarray:
    call = flax_model(a, params["head"]["kernel"].shape[1], options.head)
    return real_positions(np.asarray(call(params, IDS, lengths)), lengths)


def assert_close(actual: np.ndarray, expected: np.ndarray, share: float) -> None:
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= share * np.abs(expected).max()


@pytest.mark.parametrize("head", ["template", "lm"])
@pytest.mark.parametrize("form", ["fused", "plain"])
@pytest.mark.parametrize("parallel", [True, False])
def test_logits_equal_those_of_flax(tmp_path: Path, head: Any, form: Any, parallel: bool) -> None:
    a = NeoXArchitecture(**{**vars(NEOX), "parallel_residual": parallel})
    params = neox_params(a, SLOTS if head == "template" else a.vocabulary)
    for dtype, wide, share in (("fp32", False, 5e-6), ("fp16", False, 2e-2), ("fp16", True, 2e-2)):
        options = GraphOptions(head, dtype, wide, form)
        expected = flax_logits(params, a, options, LENGTHS)
        network = onnx_runtime(params, a, options, tmp_path / "model.onnx")
        assert_close(real_positions(network(IDS, LENGTHS), LENGTHS), expected, share)
        for row, length in zip(IDS, LENGTHS, strict=True):
            alone = network(row[None, :length], np.array([length], np.int32))
            assert alone.dtype == np.float32
            assert np.isfinite(alone).all()


@pytest.mark.parametrize("form", ["fused", "plain"])
def test_logits_equal_those_of_flax_without_and_with_full_rotation(tmp_path: Path, form: Any) -> None:
    for fraction in (0.0, 1.0):
        a = NeoXArchitecture(**{**vars(NEOX), "rotary_fraction": fraction, "layers": 2})
        params, options = neox_params(a, SLOTS), GraphOptions("template", form=form)
        network = onnx_runtime(params, a, options, tmp_path / "model.onnx")
        assert_close(network(IDS, LENGTHS), flax_logits(params, a, options, LENGTHS), 5e-6)


def test_no_length_reads_outside_its_row(tmp_path: Path) -> None:
    """A server's warm-up sends zeros, and a hostile client may send any number."""
    params, options = neox_params(NEOX, SLOTS), GraphOptions("template")
    network = onnx_runtime(params, NEOX, options, tmp_path / "model.onnx")
    expected = flax_logits(params, NEOX, options, np.array([1, 40, 1, 40, 40], np.int32))
    assert_close(network(IDS, np.array([0, 41, -7, 2**31 - 1, 10**6], np.int32)), expected, 5e-6)


def test_spare_slots_come_last_with_the_lowest_logits(tmp_path: Path) -> None:
    params = neox_params(NEOX, SLOTS)
    network = onnx_runtime(params, NEOX, GraphOptions("template", slots=16), tmp_path / "model.onnx")
    actual = network(IDS, LENGTHS)
    assert_close(actual[:, :SLOTS], flax_logits(params, NEOX, GraphOptions("template"), LENGTHS), 5e-6)
    assert actual.shape == (5, 16)
    assert (actual[:, SLOTS:] < actual[:, :SLOTS].min() - 1000).all()


def test_the_last_block_computes_one_token_per_row(tmp_path: Path) -> None:
    """The logits need the query, the output and the MLP of the last token only, so the saving is exact."""
    path = tmp_path / "model.onnx"
    onnx_runtime(neox_params(NEOX, SLOTS), NEOX, GraphOptions("template"), path)
    model = onnx.load(path)
    names = [f"block_{layer}/residual" for layer in range(NEOX.layers)]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    onnx.save(model, path)
    shapes = [value.shape for value in OnnxRuntime(path).run(names, IDS, LENGTHS)]
    assert shapes == [(5, 40, 48), (5, 40, 48), (5, 1, 48)]


@pytest.mark.parametrize(("form", "opset"), [("fused", 23), ("plain", 20)])
def test_the_graph_uses_only_standard_operators_of_its_opset(tmp_path: Path, form: Any, opset: int) -> None:
    path = tmp_path / "model.onnx"
    onnx_runtime(neox_params(NEOX, SLOTS), NEOX, GraphOptions("template", form=form), path)
    model = onnx.load(path)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
    # ONNX Runtime 1.17, the first with opset 20, reads nothing newer.
    assert form == "fused" or model.ir_version == onnx.helper.find_min_ir_version_for(model.opset_import) == 9
    kinds = {node.op_type for node in onnx_check.nodes(model.graph)}
    assert {node.domain for node in onnx_check.nodes(model.graph)} == {""}
    assert ({"Attention", "RotaryEmbedding"} <= kinds) == (form == "fused")
    assert len({node.name for node in model.graph.node}) == len(model.graph.node)
    assert {"LayerNormalization", "Gelu"} <= kinds


def test_fp16_weights_are_float16_except_the_head(tmp_path: Path) -> None:
    for wide, others in ((False, {"head", "norm/scale", "norm/bias"}), (True, None)):
        model = graph.build(neox_params(NEOX, SLOTS), NEOX, GraphOptions("template", "fp16", wide))
        floats = {n for n, v in model.graph.initializers.items() if v.dtype == ir.DataType.FLOAT}
        halves = {n for n, v in model.graph.initializers.items() if v.dtype == ir.DataType.FLOAT16}
        assert others is None or floats == others
        assert any("up/kernel" in name for name in halves)


def broadcast_params(a: NeoXArchitecture, outputs: int) -> dict[str, Any]:
    """Return constant parameters of any size that take no memory."""
    return jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0.01), leaf.shape), factory.abstract_params(a, outputs))


def spans(model: onnx.ModelProto) -> list[tuple[int, int]]:
    """Return the first and the end byte of each tensor in the external file, sorted."""
    places_ = [{entry.key: entry.value for entry in t.external_data} for t in model.graph.initializer]
    return sorted((int(p["offset"]), int(p["offset"]) + int(p["length"])) for p in places_ if p)


def test_weights_above_the_size_limit_are_external_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "INLINE_BYTES", 10_000)
    params = neox_params(NEOX, SLOTS)
    export.save(graph.build(params, NEOX, GraphOptions("template")), tmp_path)
    size = (tmp_path / "model.onnx.data").stat().st_size
    onnx_check.check_onnx(tmp_path / "model.onnx", {"model.onnx": 0, "model.onnx.data": size})
    actual = OnnxRuntime(tmp_path / "model.onnx")(IDS, LENGTHS)
    assert_close(actual, flax_logits(params, NEOX, GraphOptions("template"), LENGTHS), 5e-6)


@pytest.mark.slow
def test_external_data_of_the_2_8b_shape_is_complete(tmp_path: Path) -> None:
    """The file has 5.5 GB of float16, and its tensors neither overlap nor exceed it."""
    a = NeoXArchitecture(**sizes.read_size("2.8b")["architecture"])
    export.save(graph.build(broadcast_params(a, 300), a, GraphOptions("template", "fp16")), tmp_path)
    data = tmp_path / "model.onnx.data"
    onnx_check.check_onnx(tmp_path / "model.onnx", {"model.onnx.data": data.stat().st_size})
    found = spans(onnx_check.load_graph(tmp_path / "model.onnx"))
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(found))
    weights = 2 * (
        2_775_208_960 - 2 * a.vocabulary * a.hidden
    )  # 2 bytes per parameter of the published count, without embeddings
    assert found[-1][1] <= data.stat().st_size < weights + 4 * a.vocabulary * a.hidden
    assert (tmp_path / "model.onnx").stat().st_size < 10**7
    embed = next(t for t in onnx_check.load_graph(tmp_path / "model.onnx").graph.initializer if t.name == "embed")
    stored = onnx.numpy_helper.to_array(embed, str(tmp_path))
    assert (stored[:: a.vocabulary // 7] == np.float16(0.01)).all()
    data.unlink()

"""Hugging Face folders round-trip bit for bit, every fault is reported, and only safetensors are read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from folders import SMALL, assert_same, edit_config, random_params, saved
from safetensors.numpy import load_file, save_file

from jaxtempl.errors import UserError
from jaxtempl.huggingface import checks, config, layout, load, mapping
from jaxtempl.parallel import mesh, rules
from jaxtempl.parallel.mesh import MeshShape
from jaxtempl.specs.architecture import BertArchitecture, NeoXArchitecture

Tensors = dict[str, np.ndarray]


def rewrite(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    save_file(change(load_file(folder / layout.SINGLE)), folder / layout.SINGLE)


@pytest.mark.parametrize("head", ["lm", "template"])
def test_round_trip_is_bit_equal(tmp_path: Path, head: config.Head) -> None:
    params = saved(tmp_path, head)
    read = load.read(tmp_path, SMALL)
    assert (read.architecture, read.head) == (SMALL, head)
    assert_same(read.params, params)


def test_rules_and_parameters_correspond_one_to_one() -> None:
    rows = [row for row in mapping.NEOX.rules if row.stored != "score.weight"]
    leaves = jax.tree_util.tree_flatten_with_path(random_params(17))[0]
    assert sorted(row.path for row in rows) == sorted("/".join(k.key for k in path) for path, _ in leaves)


def test_sharded_weights_equal_unsharded_ones(tmp_path: Path) -> None:
    params = saved(tmp_path, shard_bytes=2000)
    index = json.loads((tmp_path / layout.INDEX).read_text())
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2
    assert {p.name for p in shards} == set(index["weight_map"].values())
    assert index["metadata"]["total_size"] == 4 * sum(leaf.size for leaf in jax.tree.leaves(params))
    assert_same(load.read(tmp_path).params, params)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_converted_to_float32(tmp_path: Path, dtype: Any) -> None:
    params = saved(tmp_path)
    rewrite(tmp_path, lambda tensors: {name: t.astype(dtype) for name, t in tensors.items()})
    assert_same(load.read(tmp_path).params, jax.tree.map(lambda x: x.astype(dtype).astype(np.float32), params))


def test_base_model_without_prefix_or_head_is_read(tmp_path: Path) -> None:
    params = saved(tmp_path)

    def base(tensors: Tensors) -> Tensors:
        return {k.removeprefix("gpt_neox."): t for k, t in tensors.items() if k != "embed_out.weight"}

    rewrite(tmp_path, base)
    read = load.read(tmp_path)
    assert read.head is None
    assert_same(read.params, {key: tree for key, tree in params.items() if key != "head"})


def test_new_head_names_and_old_buffers_are_accepted(tmp_path: Path) -> None:
    params = saved(tmp_path)
    buffers = {
        "gpt_neox.layers.0.attention.bias": np.ones((1, 1, 8, 8), np.uint8),
        "gpt_neox.layers.1.attention.masked_bias": np.float32([-1e9]),
        "gpt_neox.layers.1.attention.rotary_emb.inv_freq": np.ones(2, np.float32),
    }

    def rename(tensors: Tensors) -> Tensors:
        return {k.replace("embed_out", "lm_head"): t for k, t in tensors.items()} | buffers

    rewrite(tmp_path, rename)
    assert_same(load.read(tmp_path).params, params)


def test_one_error_reports_all_faults(tmp_path: Path) -> None:
    saved(tmp_path)

    def spoil(tensors: Tensors) -> Tensors:
        del tensors["gpt_neox.final_layer_norm.bias"]
        tensors["gpt_neox.layers.2.mlp.dense_h_to_4h.bias"] = np.zeros(20, np.float32)
        tensors["embed_in.weight"] = tensors["gpt_neox.embed_in.weight"]
        tensors["gpt_neox.layers.1.attention.dense.weight"] = np.zeros((12, 11), np.float32)
        tensors["gpt_neox.final_layer_norm.weight"] = np.zeros(12, np.int8)
        tensors["score.weight"] = np.zeros((5, 12), np.float32)
        return tensors

    rewrite(tmp_path, spoil)
    with pytest.raises(UserError) as error:
        load.read(tmp_path)
    for fault in (
        "final_layer_norm.bias is missing",
        "gpt_neox.layers.2.mlp.dense_h_to_4h.bias has no place",
        "embed_in.weight is there 2 times",
        "gpt_neox.layers.1.attention.dense.weight has shape [12, 11], not [12, 12]",
        "gpt_neox.final_layer_norm.weight is I8, not one of F16, BF16, F32",
        "score.weight has no place",
    ):
        assert fault in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.astype(np.float64), r"weight and \d+ others are F64, not one of F16, BF16, F32\. Save .* float32"),
        (lambda t: t.astype(np.int8), r"weight and \d+ others are I8, not one of .*\. Name .* before quantization$"),
        (lambda t: t.astype(ml_dtypes.float8_e4m3fn), r"others are F8_E4M3, not one of .* before quantization$"),
    ],
)
def test_tensors_of_another_type_are_one_fault(tmp_path: Path, change: Callable[[Any], Any], message: str) -> None:
    saved(tmp_path)
    rewrite(tmp_path, lambda tensors: {name: change(tensor) for name, tensor in tensors.items()})
    with pytest.raises(UserError, match=message) as error:
        checks.check(tmp_path)
    assert len(str(error.value)) < 400 + len(str(tmp_path))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_counted(tmp_path: Path, dtype: Any, value: float) -> None:
    saved(tmp_path)

    def spoil(tensors: Tensors) -> Tensors:
        spoilt = {name: tensor.astype(dtype) for name, tensor in tensors.items()}
        spoilt["gpt_neox.layers.1.attention.dense.weight"][0, :2] = value
        return spoilt

    rewrite(tmp_path, spoil)
    with pytest.raises(UserError, match=r"1\.attention\.dense\.weight has 2 of 144 values that are NaN") as error:
        checks.check(tmp_path)
    assert "again" not in str(error.value)


@pytest.mark.parametrize("name", ["module.embed_in.weight", "embed_in.lora_A.weight"])
def test_an_additional_tensor_is_named_with_its_probable_cause(tmp_path: Path, name: str) -> None:
    saved(tmp_path)
    rewrite(tmp_path, lambda tensors: {**tensors, name: np.zeros(3, np.float32)})
    with pytest.raises(UserError, match=rf"{name} has no place in the model\. Name the folder of the whole") as error:
        load.read(tmp_path)
    assert "again" not in str(error.value)


def test_weights_of_another_family_are_named(tmp_path: Path) -> None:
    saved(tmp_path)
    bert = BertArchitecture(2, 16, 2, 20, 17)
    with pytest.raises(UserError, match=f"^{tmp_path} is a GPT-NeoX, and --size names a BERT; leave --size out"):
        checks.check(tmp_path, bert)
    (tmp_path / "config.json").write_text(json.dumps(config.hugging_face_config(bert, "lm")))
    with pytest.raises(UserError, match=f"^{tmp_path} is a BERT, and --size names a GPT-NeoX; leave --size out"):
        checks.check(tmp_path, SMALL)


def test_faults_of_an_index_are_reported(tmp_path: Path) -> None:
    saved(tmp_path, shard_bytes=2000)
    first, second, *_ = sorted(tmp_path.glob("model-*.safetensors"))
    first.unlink()
    tensors = load_file(second)
    lost = next(iter(tensors))
    save_file({name: t for name, t in tensors.items() if name != lost}, second)
    with pytest.raises(UserError) as error:
        load.read(tmp_path)
    assert f"{first.name} is missing or damaged" in str(error.value)
    assert f"{lost} is not in {second.name}, where the index has it" in str(error.value)


def test_an_index_reads_no_file_outside_the_folder(tmp_path: Path) -> None:
    saved(tmp_path, shard_bytes=2000)
    index = json.loads((tmp_path / layout.INDEX).read_text())
    index["weight_map"]["embed_out.weight"] = "../other.safetensors"
    (tmp_path / layout.INDEX).write_text(json.dumps(index))
    with pytest.raises(UserError, match="points outside"):
        load.read(tmp_path)


def test_a_damaged_file_is_an_error(tmp_path: Path) -> None:
    saved(tmp_path)
    whole = (tmp_path / layout.SINGLE).read_bytes()
    (tmp_path / layout.SINGLE).write_bytes(whole[:-40])
    with pytest.raises(UserError, match="damaged"):
        load.read(tmp_path)


def test_a_pickle_is_rejected(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / layout.SINGLE).rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pickle.*save_pretrained"):
        load.read(tmp_path)
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(UserError, match=r"neither model\.safetensors nor"):
        load.read(tmp_path)


def test_weights_of_another_size_are_rejected(tmp_path: Path) -> None:
    saved(tmp_path)
    edit_config(tmp_path, num_hidden_layers=3, rotary_emb_base=500, rope_parameters=None)
    with pytest.raises(UserError, match=r"another size: layers is 3, not 2, rotary_base is 500\.0"):
        load.read(tmp_path, SMALL)


OLD = {
    "model_type": "gpt_neox",
    "num_hidden_layers": 2,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 20,
    "vocab_size": 17,
    "rotary_pct": 0.5,
    "rotary_emb_base": 500,
    "max_position_embeddings": 64,
    "layer_norm_eps": 1e-4,
    "use_parallel_residual": False,
    "hidden_act": "gelu",
    "tie_word_embeddings": False,
}


def test_old_and_new_config_keys_give_the_same_architecture() -> None:
    new = {key: value for key, value in OLD.items() if not key.startswith("rotary")}
    new["rope_parameters"] = {"rope_type": "default", "partial_rotary_factor": 0.5, "rope_theta": 500.0}
    shape = {"layers": 2, "hidden": 16, "heads": 2, "feed_forward": 20, "vocabulary": 17, "positions": 64}
    rest: Any = {"norm_eps": 1e-4, "rotary_fraction": 0.5, "rotary_base": 500.0, "parallel_residual": False}
    expected = NeoXArchitecture(**shape, **rest)
    assert config.architecture_from(OLD) == config.architecture_from(new) == expected


@pytest.mark.parametrize("head", ["lm", "template"])
def test_the_written_config_can_be_read(head: config.Head) -> None:
    expected = config.architecture_from(OLD)
    assert config.architecture_from(config.hugging_face_config(expected, head)) == expected


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"model_type": "llama"}, "model_type is 'llama'"),
        ({"hidden_act": "gelu_new"}, "hidden_act is 'gelu_new'"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is True"),
        ({"attention_bias": False}, "attention_bias is False"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type is 'linear'"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type is 'yarn'"),
        ({"hidden_size": "12"}, "hidden_size is '12'"),
        ({"vocab_size": None}, "vocab_size is None"),
        ({"hidden_size": 15}, "not a multiple"),
        ({"hidden_act": "relu", "attention_bias": False}, "hidden_act is 'relu'.*attention_bias is False"),
    ],
)
def test_other_models_are_rejected(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        config.architecture_from(OLD | keys)


def test_embedded_model_is_read() -> None:
    nano = Path(load.__file__).parent.parent / "assets" / "nano"
    read = load.read(nano)
    assert (read.head, read.architecture.layers) == ("lm", 4)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(read.params))


def test_tensors_are_read_into_their_shards(tmp_path: Path) -> None:
    params = saved(tmp_path, shard_bytes=2000)
    shardings = rules.shardings(mesh.make_mesh(MeshShape(2, 2, 1)), params)
    read = load.read(tmp_path, SMALL, shardings).params
    assert_same(read, params)
    jax.tree.map(check_placed, read, shardings)


def check_placed(leaf: Any, place: Any) -> None:
    assert leaf.sharding == place
    assert {shard.data.shape for shard in leaf.addressable_shards} == {place.shard_shape(leaf.shape)}


def test_only_requested_parts_are_read(tmp_path: Path) -> None:
    params = saved(tmp_path)
    shardings = rules.shardings(mesh.make_mesh(MeshShape(1, 1, 1)), params)
    read = load.read(tmp_path, SMALL, {"embed": shardings["embed"], "norm": shardings["norm"]}).params
    assert_same(read, {"embed": params["embed"], "norm": params["norm"]})
    assert checks.check(tmp_path, SMALL)[:2] == (SMALL, "lm")

"""BERT equals that of transformers in float32 and reads every folder of weights that transformers saves."""

import dataclasses
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import torch
from flax import nnx
from safetensors.numpy import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, BertModel

from jaxtempl.errors import UserError
from jaxtempl.huggingface import checks, config, load, save
from jaxtempl.huggingface.mapping import BERT, Head
from jaxtempl.models import attention, bert, factory
from jaxtempl.specs import flops
from jaxtempl.specs.architecture import BertArchitecture
from jaxtempl.training import objectives

TOLERANCE = 1e-4  # relative to the largest value
SLOTS = 7
LENGTHS = (9, 1, 5, 12)
ODD = BertArchitecture(layers=3, hidden=30, heads=3, feed_forward=50, vocabulary=101, positions=16)
ARCHITECTURES = {
    "odd": ODD,
    "other epsilon, one head": dataclasses.replace(ODD, heads=1, norm_eps=1e-2, layers=2),
    "more types, one layer": dataclasses.replace(ODD, types=3, layers=1),
}
CLASSES: dict[Head, Any] = {"lm": BertForMaskedLM, "template": BertForSequenceClassification}


class Pair(NamedTuple):
    """One model in both libraries."""

    theirs: Any
    ours: Any


def scaled_up(model: torch.nn.Module) -> None:
    """Replace the weights by random ones so large that any wrong detail shows."""
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        scale = 3 * weight.shape[-1] ** -0.5 if weight.ndim == 2 else 0.5
        weight.data = noise * scale + (1.0 if "Norm" in name and name.endswith("weight") else 0.0)


def theirs(a: BertArchitecture, kind: Any, folder: Path, head: Head = "lm") -> Any:
    keys = config.hugging_face_config(a, head) | {"num_labels": SLOTS}
    model = kind(BertConfig(**keys, attn_implementation="eager")).eval()
    scaled_up(model)
    model.save_pretrained(folder)
    return model


def ours(read: load.Weights) -> Any:
    slots = SLOTS if read.head == "template" else None
    return nnx.merge(factory.make_graphdef(read.architecture, slots), jax.tree.map(jnp.asarray, read.params))


def pair(a: BertArchitecture, head: Head, folder: Path) -> Pair:
    model = theirs(a, CLASSES[head], folder, head)
    read = load.read(folder, a)
    assert read.head == head
    params = {part: tree for part, tree in read.params.items() if head == "template" or part != "pooler"}
    return Pair(model, ours(read._replace(params=params)))


def ragged() -> tuple[np.ndarray, np.ndarray]:
    generator, longest = np.random.default_rng(1), max(LENGTHS)
    tokens = np.zeros((len(LENGTHS), longest), np.int32)
    for row, length in zip(tokens, LENGTHS, strict=True):
        row[:length] = generator.integers(1, ODD.vocabulary, length)
    return tokens, np.array(LENGTHS, np.int32)


def torch_inputs(tokens: np.ndarray, lengths: np.ndarray) -> dict[str, torch.Tensor]:
    real = np.arange(tokens.shape[1])[None] < lengths[:, None]
    return {"input_ids": torch.tensor(tokens, dtype=torch.long), "attention_mask": torch.tensor(real.astype(np.int64))}


def assert_close(actual: Any, other: torch.Tensor) -> None:
    expected = other.detach().numpy()
    assert np.abs(np.asarray(actual) - expected).max() <= TOLERANCE * np.abs(expected).max()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_layer_equals_that_of_transformers(name: str, tmp_path: Path) -> None:
    models = pair(ARCHITECTURES[name], "lm", tmp_path)
    tokens, lengths = ragged()
    with torch.no_grad():
        expected = models.theirs(**torch_inputs(tokens, lengths), output_hidden_states=True)
    _, layers = models.ours.residual(jnp.asarray(tokens), attention.padding_mask(tokens.shape[1], jnp.asarray(lengths)))
    logits = tiny.logits(models.ours, jnp.asarray(tokens), jnp.asarray(lengths))
    assert len(expected.hidden_states) == len(layers) + 1
    for row, length in enumerate(LENGTHS):
        assert_close(models.ours.embed(jnp.asarray(tokens))[row, :length], expected.hidden_states[0][row, :length])
        for actual, other in zip(layers, expected.hidden_states[1:], strict=True):
            assert_close(actual[row, :length], other[row, :length])
        assert_close(logits[row, :length], expected.logits[row, :length])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_template_logits_equal_those_of_transformers(name: str, tmp_path: Path) -> None:
    models = pair(ARCHITECTURES[name], "template", tmp_path)
    tokens, lengths = ragged()
    with torch.no_grad():
        expected = models.theirs(**torch_inputs(tokens, lengths)).logits
    assert_close(tiny.template_logits(models.ours, jnp.asarray(tokens), jnp.asarray(lengths)), expected)


def test_mean_pooling_equals_the_mean_of_the_real_states_of_transformers(tmp_path: Path) -> None:
    model = theirs(ODD, CLASSES["template"], tmp_path, "template")
    read, (tokens, lengths) = load.read(tmp_path, ODD), ragged()
    params = {part: tree for part, tree in read.params.items() if part != "pooler"}
    mean = dataclasses.replace(ODD, pooling="mean")
    got = ours(read._replace(params=params, architecture=mean)).classify(jnp.asarray(tokens), jnp.asarray(lengths))
    with torch.no_grad():
        states = model.bert(**torch_inputs(tokens, lengths)).last_hidden_state
        means = torch.stack([row[:length].mean(dim=0) for row, length in zip(states, LENGTHS, strict=True)])
        assert_close(got, model.classifier(means))


def test_tokens_beyond_a_rows_length_do_not_change_its_logits(tmp_path: Path) -> None:
    models = pair(ODD, "template", tmp_path)
    tokens, lengths = ragged()
    other = np.where(np.arange(tokens.shape[1])[None] < lengths[:, None], tokens, 5)
    one, two = (tiny.template_logits(models.ours, jnp.asarray(x), jnp.asarray(lengths)) for x in (tokens, other))
    np.testing.assert_array_equal(one, two)


def test_masked_documents_do_not_attend_to_each_other() -> None:
    segments = jnp.array([[1, 1, 2, 0]])
    apart, together = (np.asarray(bert.attention_mask(segments, mask))[0] for mask in (True, False))
    np.testing.assert_array_equal(together, [[True, True, True, False]])
    np.testing.assert_array_equal(apart[0], [True, True, False, False])
    np.testing.assert_array_equal(apart[2], [False, False, True, False])


@pytest.mark.parametrize("head", ["lm", "template"])
def test_saved_weights_are_read_bit_for_bit_and_load_in_transformers(head: Head, tmp_path: Path) -> None:
    model = theirs(ODD, CLASSES[head], tmp_path / "theirs", head)
    read = load.read(tmp_path / "theirs", ODD)
    (tmp_path / "ours").mkdir()
    save.write(tmp_path / "ours", ODD, read.params, head, {"num_labels": SLOTS})
    again = load.read(tmp_path / "ours", ODD)
    assert jax.tree.structure(again.params) == jax.tree.structure(read.params)
    jax.tree.map(np.testing.assert_array_equal, again.params, read.params)
    loaded, info = CLASSES[head].from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(loaded.state_dict()[name].numpy(), tensor.numpy())


def test_a_base_model_provides_all_parts_except_a_head(tmp_path: Path) -> None:
    theirs(ODD, BertModel, tmp_path)
    found = checks.check(tmp_path, ODD)
    assert (found.head, found.parts) == (None, {"embed", "blocks", "pooler"})


def test_a_masked_language_model_provides_no_pooler(tmp_path: Path) -> None:
    theirs(ODD, BertForMaskedLM, tmp_path)
    found = checks.check(tmp_path, ODD)
    assert (found.head, found.parts) == ("lm", {"embed", "blocks", "head"})


def test_published_files_with_older_names_and_additional_tensors_are_read(tmp_path: Path) -> None:
    """The first published files use the names gamma and beta, and contain a pooler and a next-sentence head."""
    theirs(ODD, BertForMaskedLM, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    older = {re.sub(r"LayerNorm\.weight$", "LayerNorm.gamma", name): x for name, x in stored.items()}
    older = {re.sub(r"LayerNorm\.bias$", "LayerNorm.beta", name): x for name, x in older.items()}
    older["cls.seq_relationship.weight"] = np.zeros((2, ODD.hidden), np.float32)
    older["cls.seq_relationship.bias"] = np.zeros(2, np.float32)
    older["bert.pooler.dense.weight"] = np.ones((ODD.hidden, ODD.hidden), np.float32)
    older["bert.pooler.dense.bias"] = np.ones(ODD.hidden, np.float32)
    before = load.read(tmp_path, ODD).params
    save_file(older, tmp_path / "model.safetensors", metadata={"format": "pt"})
    after = load.read(tmp_path, ODD).params
    np.testing.assert_array_equal(after.pop("pooler")["bias"], np.ones(ODD.hidden))
    jax.tree.map(np.testing.assert_array_equal, before, after)


@pytest.mark.parametrize("missing", [row.stored for row in BERT.rules if row.part not in ("pooler", "head")][::4])
def test_a_missing_tensor_is_named(missing: str, tmp_path: Path) -> None:
    theirs(ODD, BertForMaskedLM, tmp_path)
    stored, name = load_file(tmp_path / "model.safetensors"), "bert." + missing.format(layer=1)
    del stored[name]
    save_file(stored, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=rf"cannot be read as BERT weights: {re.escape(name[5:])} is missing"):
        load.read(tmp_path, ODD)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("position_embedding_type", "relative_key", "relative positions"),
        ("hidden_act", "gelu_new", "another activation"),
        ("is_decoder", True, "causal attention"),
        ("type_vocab_size", 0, "type_vocab_size is 0"),
        ("layer_norm_eps", "small", "layer_norm_eps is 'small'"),
    ],
)
def test_an_unsupported_config_is_rejected(key: str, value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        config.architecture_from(config.hugging_face_config(ODD, "lm") | {key: value})


@pytest.mark.parametrize("head", ["lm", "template"])
def test_a_written_config_is_read_back(head: Head) -> None:
    assert config.architecture_from(config.hugging_face_config(ODD, head)) == ODD


def mtorch_inputs(tokens: np.ndarray, lengths: np.ndarray) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(2)
    positions = np.stack([generator.integers(0, length, 3) for length in lengths]).astype(np.int32)
    targets = generator.integers(1, ODD.vocabulary, positions.shape).astype(np.int32)
    segments = (np.arange(tokens.shape[1])[None] < lengths[:, None]).astype(np.int32)
    weights_ = np.array([[1, 1, 0]] * len(tokens), np.int32)
    return {"tokens": tokens, "segments": segments, "positions": positions, "targets": targets, "weights": weights_}


def test_loss_and_gradient_of_masked_tokens_equal_those_of_transformers(tmp_path: Path) -> None:
    model = theirs(ODD, BertForMaskedLM, tmp_path)
    tokens, lengths = ragged()
    batch = mtorch_inputs(tokens, lengths)
    logits = model(**torch_inputs(tokens, lengths)).logits
    picked = torch.gather(
        logits, 1, torch.tensor(batch["positions"], dtype=torch.long)[..., None].expand(-1, -1, logits.shape[2])
    )
    each = torch.nn.functional.cross_entropy(
        picked.flatten(0, 1), torch.tensor(batch["targets"].reshape(-1), dtype=torch.long), reduction="none"
    )
    expected = (each * torch.tensor(batch["weights"].reshape(-1))).sum()
    expected.backward()
    task = objectives.masked_lm(factory.make_graphdef(ODD))
    params = jax.tree.map(jnp.asarray, load.read(tmp_path, ODD).params)
    (loss, sums), gradient = jax.value_and_grad(task.loss, has_aux=True)(params, jax.tree.map(jnp.asarray, batch))
    assert_close(loss, expected)
    assert float(sums["weight"]) == 2 * len(LENGTHS)
    (tmp_path / "gradient").mkdir()
    save.write(tmp_path / "gradient", ODD, gradient, "lm")
    actual = load_file(tmp_path / "gradient" / "model.safetensors")
    gradients = {name: weight.grad for name, weight in model.named_parameters()}
    assert set(actual) <= set(gradients)
    assert len(actual) > 20
    largest = max(float(grad.abs().max()) for grad in gradients.values())
    for name, array in actual.items():
        assert np.abs(array - gradients[name].numpy()).max() <= TOLERANCE * largest, name


@pytest.mark.parametrize(("size", "total"), [("bert-tiny", 4_416_698), ("bert-base", 109_514_298)])
def test_parameter_counts_equal_those_of_transformers(size: str, total: int) -> None:
    from jaxtempl.config import sizes
    from jaxtempl.models.neox import parameter_count
    from jaxtempl.specs import architecture

    a = architecture.architecture_from(sizes.read_size(size)["architecture"])
    assert isinstance(a, BertArchitecture)
    assert flops.parameter_count(a) == parameter_count(factory.abstract_params(a)) == total

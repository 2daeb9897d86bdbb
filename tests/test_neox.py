"""Tests of the model against transformers' GPT-NeoX in float32, and of the properties that it must have."""

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import torch
from flax import nnx
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, GPTNeoXForSequenceClassification

from jaxtempl.huggingface import config, load, mapping
from jaxtempl.models import attention, factory, neox
from jaxtempl.models.neox import NeoX
from jaxtempl.specs.architecture import NeoXArchitecture
from jaxtempl.text.tokenizer import Tokenizer

NANO = Path(neox.__file__).parent.parent / "assets" / "nano"
TOLERANCE = 1e-4  # as a share of the largest logit
SLOTS = 7
PADDING = 0  # never drawn as a token
ODD = NeoXArchitecture(
    layers=3, hidden=30, heads=3, feed_forward=50, vocabulary=101
)  # 3 heads of 10 dimensions, 2 of them rotated
ARCHITECTURES = {
    "quarter rotary, parallel": ODD,
    "quarter rotary, sequential": dataclasses.replace(ODD, parallel_residual=False),
    "full rotary, parallel": dataclasses.replace(ODD, rotary_fraction=1.0),
    "full rotary, sequential": dataclasses.replace(ODD, rotary_fraction=1.0, parallel_residual=False),
    "other base and epsilon": dataclasses.replace(ODD, hidden=32, heads=2, rotary_base=500.0, norm_eps=1e-2),
}
LENGTHS = (9, 1, 5, 12)

# The opening of Pride and Prejudice (1813, public domain).
TEXT = """It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of
a wife. However little known the feelings or views of such a man may be on his first entering a neighbourhood, this
truth is so well fixed in the minds of the surrounding families, that he is considered the rightful property of some one
or other of their daughters. "My dear Mr. Bennet," said his lady to him one day, "have you heard that Netherfield Park
is let at last?" Mr. Bennet replied that he had not."""


class Pair(NamedTuple):
    """One model in both libraries."""

    theirs: Any
    ours: NeoX


def scaled_up(model: torch.nn.Module, seed: int) -> None:
    """Set random weights so large that any error shows: norms far from 1, biases far from 0."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        scale = 3 * weight.shape[-1] ** -0.5 if weight.ndim == 2 else 0.5
        weight.data = noise * scale + (1.0 if "norm" in name and name.endswith("weight") else 0.0)


def pair(a: NeoXArchitecture, head: config.Head, folder: Path, seed: int = 0) -> Pair:
    """Save a random checkpoint with transformers and load it with `load.read`."""
    kind = {"lm": GPTNeoXForCausalLM, "template": GPTNeoXForSequenceClassification}[head]
    keys = config.hugging_face_config(a, head) | {"num_labels": SLOTS, "pad_token_id": PADDING}
    theirs = kind(GPTNeoXConfig(**keys, attn_implementation="eager")).eval()
    scaled_up(theirs, seed)
    theirs.save_pretrained(folder)
    return Pair(theirs, merged(load.read(folder, a)))


def merged(read: load.Weights) -> NeoX:
    outputs = read.params["head"]["kernel"].shape[1]
    return nnx.merge(factory.make_graphdef(read.architecture, outputs), jax.tree.map(jnp.asarray, read.params))


@pytest.fixture(scope="module", params=ARCHITECTURES)
def language_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return pair(ARCHITECTURES[request.param], "lm", tmp_path_factory.mktemp("lm"))


@pytest.fixture(scope="module")
def odd_model(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return pair(ODD, "lm", tmp_path_factory.mktemp("odd"))


@pytest.fixture(scope="module")
def nano() -> Pair:
    return Pair(GPTNeoXForCausalLM.from_pretrained(NANO, dtype=torch.float32).eval(), merged(load.read(NANO)))


class Batch(NamedTuple):
    """Ragged rows, padded on one side, as the arguments of transformers."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor


def ragged(lengths: tuple[int, ...], vocabulary: int) -> list[np.ndarray]:
    generator = np.random.default_rng(1)
    return [generator.integers(1, vocabulary, n) for n in lengths]


def padded(rows: list[np.ndarray], side: str) -> Batch:
    longest = max(map(len, rows))
    pads = [(0, longest - len(r)) if side == "right" else (longest - len(r), 0) for r in rows]

    def stack(arrays: list[np.ndarray]) -> torch.Tensor:
        return torch.tensor(np.stack([np.pad(x, pad) for x, pad in zip(arrays, pads, strict=True)]))

    return Batch(stack(rows), stack([np.ones_like(r) for r in rows]), stack([np.arange(len(r)) for r in rows]))


def right(rows: list[np.ndarray]) -> jax.Array:
    return jnp.asarray(padded(rows, "right").input_ids.numpy())


def real(values: torch.Tensor | jax.Array, mask: torch.Tensor) -> np.ndarray:
    """Return the values at real tokens, row after row, for padding on either side."""
    return np.asarray(values)[mask.numpy() == 1]


def error(got: np.ndarray, want: np.ndarray) -> float:
    """Return the greatest difference as a share of the greatest value."""
    return float(np.abs(got - want).max() / np.abs(want).max())


@torch.no_grad()
def their_layers(theirs: Any, batch: Batch) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Return the embedding, each block's output except the last, the final norm's output; and the logits."""
    output = theirs(**batch._asdict(), output_hidden_states=True, use_cache=False)
    return list(output.hidden_states), output.logits


@nnx.jit
def our_layers(ours: NeoX, tokens: jax.Array) -> tuple[list[jax.Array], jax.Array]:
    """Return the same layers and logits of our model."""
    last, every = ours.residual(tokens)
    return [ours.embed(tokens), *every[:-1], ours.norm(last)], ours(tokens)


@pytest.mark.parametrize("side", ["right", "left"])
def test_every_layer_equals_transformers(language_model: Pair, side: str) -> None:
    theirs, ours = language_model
    rows = ragged(LENGTHS, ours.architecture.vocabulary)
    batch, plain = padded(rows, side), padded(rows, "right")
    expected, their_logits = their_layers(theirs, batch)
    got, our_logits = our_layers(ours, right(rows))
    assert len(got) == len(expected) == ours.architecture.layers + 1
    for layer, (x, y) in enumerate(zip(got, expected, strict=True)):
        off = error(real(x, plain.attention_mask), real(y, batch.attention_mask))
        assert off < TOLERANCE, f"after block {layer} of {ours.architecture.layers} the residual is off by {off:.1e}"
    assert np.abs(real(their_logits, batch.attention_mask)).max() > 10, "the weights are too small to show a fault"
    assert error(real(our_logits, plain.attention_mask), real(their_logits, batch.attention_mask)) < TOLERANCE


def test_rows_longer_than_a_chunk_of_queries_equal_transformers(odd_model: Pair) -> None:
    rows = ragged((2 * attention.QUERY_CHUNK + 37, attention.QUERY_CHUNK), ODD.vocabulary)
    batch = padded(rows, "right")
    got, expected = tiny.logits(odd_model.ours, right(rows)), their_layers(odd_model.theirs, batch)[1]
    assert error(real(got, batch.attention_mask), real(expected, batch.attention_mask)) < TOLERANCE


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", ["quarter rotary, parallel", "full rotary, sequential"])
def test_template_head_equals_transformers(tmp_path: Path, name: str, side: str) -> None:
    theirs, ours = pair(ARCHITECTURES[name], "template", tmp_path)
    rows = ragged(LENGTHS, ODD.vocabulary)
    with torch.no_grad():
        expected = theirs(**padded(rows, side)._asdict()).logits.numpy()
    got = np.asarray(tiny.template_logits(ours, right(rows), jnp.array(LENGTHS)))
    assert got.shape == (len(LENGTHS), SLOTS)
    assert error(got, expected) < TOLERANCE


def test_template_head_reads_no_padding(odd_model: Pair) -> None:
    tokens, lengths = right(ragged(LENGTHS, ODD.vocabulary)), jnp.array(LENGTHS)
    other = jnp.where(jnp.arange(tokens.shape[1])[None] < lengths[:, None], tokens, 42)
    got, expected = (tiny.template_logits(odd_model.ours, some, lengths) for some in (other, tokens))
    np.testing.assert_array_equal(got, expected)


@partial(jax.jit, static_argnums=0)
def logits_of(graphdef: Any, params: Any, tokens: jax.Array) -> jax.Array:
    return nnx.merge(graphdef, params)(tokens)


def leaf_paths() -> list[str]:
    return [row.path for row in mapping.NEOX.rules if row.stored != "score.weight"]


@pytest.mark.parametrize("path", leaf_paths())
def test_one_wrong_weight_exceeds_the_tolerance(odd_model: Pair, path: str) -> None:
    rows = ragged(LENGTHS, ODD.vocabulary)
    batch = padded(rows, "right")
    expected = real(their_layers(odd_model.theirs, batch)[1], batch.attention_mask)
    graphdef, state = nnx.split(odd_model.ours)
    *parents, leaf = path.split("/")
    params = nnx.to_pure_dict(state)
    node: Any = params
    for key in parents:
        node = node[key]
    first = (rows[0][0], 0) if leaf == "embedding" else (0,) * node[leaf].ndim
    node[leaf] = node[leaf].at[first].add(0.5)
    got = real(logits_of(graphdef, params, right(rows)), batch.attention_mask)
    assert error(got, expected) > TOLERANCE


def test_no_position_depends_on_a_later_one(odd_model: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "QUERY_CHUNK", 4)
    length, positions = 10, jnp.array([0, 3, 4, 7, 8])  # both sides of each chunk's edge
    graphdef, state = nnx.split(odd_model.ours)
    params = nnx.to_pure_dict(state)
    tokens = jnp.arange(length)[None]  # each position has its own embedding row

    def logits(embedding: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, {**params, "embed": {"embedding": embedding}})(tokens)[0, positions, 5]

    seen = jnp.abs(jax.jit(jax.jacrev(logits))(params["embed"]["embedding"])).sum(axis=2)
    np.testing.assert_array_equal(seen[:, :length] > 0, jnp.arange(length)[None] <= positions[:, None])


def test_a_masked_document_is_independent_of_the_others(odd_model: Pair) -> None:
    """A different first document changes no logit of the second, which equal the logits of that document alone."""
    length, first = 2 * attention.QUERY_CHUNK + 5, attention.QUERY_CHUNK - 9
    tokens = jax.random.randint(jax.random.key(0), (2, length), 0, ODD.vocabulary)
    other = tokens.at[:, :first].set((tokens[:, :first] + 1) % ODD.vocabulary)
    documents = jnp.where(jnp.arange(length) < first, 1, 2)[None].repeat(2, axis=0)
    seen = [tiny.logits(odd_model.ours, some, documents) for some in (tokens, other)]
    np.testing.assert_array_equal(seen[0][:, first:], seen[1][:, first:])
    assert (tiny.logits(odd_model.ours, tokens)[:, first:] != tiny.logits(odd_model.ours, other)[:, first:]).any()
    alone = tiny.logits(odd_model.ours, tokens[:, first:])
    np.testing.assert_allclose(seen[0][:, first:], alone, atol=1e-4 * float(jnp.abs(alone).max()))


def test_a_stack_equals_n_single_blocks() -> None:
    keys = jax.random.split(jax.random.key(0), ODD.layers)

    def build(key: jax.Array) -> neox.NeoXBlock:
        return neox.NeoXBlock(ODD, jnp.dtype("float32"), "xla", nnx.Rngs(key))

    stacked = jax.jit(lambda keys: nnx.to_pure_dict(nnx.state(nnx.vmap(build)(keys))))(keys)
    alone = jax.jit(lambda key: nnx.to_pure_dict(nnx.state(build(key))))
    expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[alone(key) for key in keys])
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), stacked, expected)


def test_scan_runs_the_blocks_in_order(odd_model: Pair) -> None:
    ours = odd_model.ours
    tokens = right(ragged(LENGTHS, ODD.vocabulary))
    graphdef, stacked = nnx.split(ours.blocks)
    angles = attention.rotary_angles(ODD.rotary, ODD.rotary_base, tokens.shape[1])
    x = ours.embed(tokens)
    for layer, got in enumerate(ours.residual(tokens)[1]):
        x = nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf[layer], stacked))(x, angles)  # noqa: B023
        np.testing.assert_allclose(got, x, atol=1e-5 * float(jnp.abs(x).max()), err_msg=f"block {layer}")


def test_the_embedded_model_equals_its_reference(nano: Pair) -> None:
    reference = json.loads((NANO / "reference.json").read_text())
    ids = Tokenizer(NANO / "tokenizer.json").encode([reference["text"]])[0]
    assert ids == reference["ids"]
    logits = tiny.logits(nano.ours, jnp.array([ids]))[0]
    np.testing.assert_allclose(logits[-1, :8], reference["last_logits_first_8"], atol=1e-4)
    assert int(logits[-1].argmax()) == reference["argmax"]
    assert abs(next_token_loss(logits, ids) - reference["mean_next_token_loss"]) < 1e-5


def test_the_embedded_model_has_the_loss_of_transformers_on_real_text(nano: Pair) -> None:
    ids = Tokenizer(NANO / "tokenizer.json").encode([TEXT])[0]
    assert len(ids) > 100
    with torch.no_grad():
        expected = nano.theirs(torch.tensor([ids]), labels=torch.tensor([ids])).loss.item()
    assert abs(next_token_loss(tiny.logits(nano.ours, jnp.array([ids]))[0], ids) - expected) < 1e-5


def next_token_loss(logits: jax.Array, ids: list[int]) -> float:
    scores = jax.nn.log_softmax(logits[:-1])
    return float(-jnp.take_along_axis(scores, jnp.array(ids[1:])[:, None], axis=1).mean())


def test_the_template_objective_equals_the_language_model_loss_on_a_class_token() -> None:
    """Paper section 5.1: with the class as a token after the context and all regular tokens masked, the fine-tuning
    objective is the language-modelling objective.

    The class-token model is a language model of V + S tokens; a row is a context and then its class token. Only the
    class token is predicted, and the softmax runs over class tokens alone.
    """
    vocabulary, lengths, slots = ODD.vocabulary, jnp.array(LENGTHS), jnp.array([2, 0, 6, 2])
    wide = dataclasses.replace(ODD, vocabulary=vocabulary + SLOTS)
    graphdef, params = factory.make_graphdef(ODD, SLOTS), random_params(ODD, SLOTS, seed=0)
    wide_graphdef = factory.make_graphdef(wide, wide.vocabulary)
    wide_params = extended(params, random_params(wide, wide.vocabulary, seed=1))
    contexts = right(ragged(LENGTHS, vocabulary))
    regular = jnp.arange(vocabulary + SLOTS) < vocabulary
    at = jnp.arange(contexts.shape[1] + 1)[None]
    rows = jnp.where(at == lengths[:, None], vocabulary + slots[:, None], jnp.pad(contexts, ((0, 0), (0, 1))))

    def template_loss(params: Any) -> jax.Array:
        scores = jax.nn.log_softmax(nnx.merge(graphdef, params).classify(contexts, lengths))
        return -jnp.take_along_axis(scores, slots[:, None], axis=1).mean()

    def class_token_loss(params: Any) -> jax.Array:
        logits = nnx.merge(wide_graphdef, params)(rows)[:, :-1]
        scores = jax.nn.log_softmax(jnp.where(regular[None, None], -jnp.inf, logits))
        targets = rows[:, 1:]
        picked = jnp.take_along_axis(scores, targets[..., None], axis=-1)[..., 0]
        return -jnp.where(targets >= vocabulary, picked, 0).sum() / len(lengths)

    loss, gradient = jax.jit(jax.value_and_grad(template_loss))(params)
    wide_loss, wide_gradient = jax.jit(jax.value_and_grad(class_token_loss))(wide_params)
    np.testing.assert_allclose(loss, wide_loss, rtol=1e-6)
    nothing = jax.tree.map(jnp.zeros_like, wide_params)  # regular outputs and class tokens' embeddings have no gradient
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, wide_gradient, extended(gradient, nothing))


def random_params(a: NeoXArchitecture, outputs: int, seed: int) -> Any:
    generator = np.random.default_rng(seed)
    shapes = factory.abstract_params(a, outputs)
    return jax.tree.map(lambda leaf: jnp.asarray(generator.normal(0, 0.2, leaf.shape).astype(np.float32)), shapes)


def extended(params: Any, wide: Any) -> Any:
    """Return a language model of V + S tokens whose columns of class tokens are a template classifier's head."""
    vocabulary = params["embed"]["embedding"].shape[0]
    embedding = wide["embed"]["embedding"].at[:vocabulary].set(params["embed"]["embedding"])
    kernel = wide["head"]["kernel"].at[:, vocabulary:].set(params["head"]["kernel"])
    return {**params, "embed": {"embedding": embedding}, "head": {"kernel": kernel}}


def test_logits_of_bfloat16_are_summed_in_float32() -> None:
    """A head in bfloat16 would keep 8 bits of each logit, so templates would tie."""
    params = random_params(ODD, SLOTS, seed=0)
    tokens, lengths = jnp.arange(12).reshape(1, 12) % ODD.vocabulary, jnp.array([12])
    half, whole = (
        tiny.template_logits(nnx.merge(factory.make_graphdef(ODD, SLOTS, dtype), params), tokens, lengths)
        for dtype in (jnp.bfloat16, jnp.float32)
    )
    assert half.dtype == jnp.float32
    assert (half != half.astype(jnp.bfloat16).astype(jnp.float32)).any()
    np.testing.assert_allclose(half, whole, atol=0.05 * float(jnp.abs(whole).max()))

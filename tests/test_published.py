"""Real checkpoints give their published values; JAXTEMPL_PYTHIA is a folder of pythia-70m and pythia-410m-deduped.

Each entry of golden/pythia_values.json states its source. The tolerances follow from the source's float16 arithmetic
or its printed digits.
"""

import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxtempl.config import paths
from jaxtempl.huggingface import load
from jaxtempl.models import factory
from jaxtempl.models.neox import NeoX
from jaxtempl.text.tokenizer import Tokenizer

VALUES = json.loads((Path(__file__).parent / "golden" / "pythia_values.json").read_text())
TOKENIZER = paths.ASSETS / "tokenizers" / "pythia.json"


def checkpoint(name: str) -> NeoX:
    folder = Path(os.environ.get("JAXTEMPL_PYTHIA", "/nonexistent")) / name
    if not folder.is_dir():
        pytest.skip(f"JAXTEMPL_PYTHIA names no folder with {name}/")
    read = load.read(folder)
    graphdef = factory.make_graphdef(read.architecture, read.architecture.vocabulary)
    return nnx.merge(graphdef, jax.tree.map(jnp.asarray, read.params))


@pytest.fixture(scope="module")
def pythia_70m() -> NeoX:
    return checkpoint("pythia-70m")


def last_logits(model: NeoX, ids: list[int]) -> np.ndarray:
    return np.asarray(model(jnp.array([ids]))[0, -1])


@pytest.mark.parametrize("name", [n for n, v in VALUES.items() if "input_ids" in v and "text" in v])
def test_the_tokenizer_gives_the_published_ids(name: str) -> None:
    entry = VALUES[name]
    ids = Tokenizer(TOKENIZER).encode([entry["text"]])[0]
    assert ids[: len(entry["input_ids"])] == entry["input_ids"]


@pytest.mark.parametrize(("name", "tolerance"), [("minhub_fp32", 0.05), ("hf_transformers_fp16", 2.0)])
def test_last_logits_of_70m_equal_the_published_ones(pythia_70m: NeoX, name: str, tolerance: float) -> None:
    """The tolerance is 5e-5 of a logit of 1,050 in fp32, and two units in the last place at 1,024 in fp16."""
    entry = VALUES[f"pythia-70m/{name}"]
    got = last_logits(pythia_70m, entry["input_ids"])[: len(entry["logits"])]
    np.testing.assert_allclose(got, entry["logits"], rtol=0, atol=tolerance)


def test_residual_stream_of_70m_equals_the_published_one(pythia_70m: NeoX) -> None:
    entry: dict[str, Any] = VALUES["pythia-70m/Pythia_hand_fp32"]
    tokens = jnp.array([entry["input_ids"]])
    last, every = pythia_70m.residual(tokens)
    embedded = pythia_70m.embed(tokens)[0]
    np.testing.assert_allclose(jnp.linalg.norm(embedded, axis=-1), entry["embed_norms"], atol=6e-4)
    first = jnp.linalg.norm(every[0, 0], axis=-1).mean()
    np.testing.assert_allclose(first, entry["mean_residual_norm_after_layer0"], rtol=1e-3)
    greatest = [float(jnp.abs(x).max()) for x in (embedded, *every[:-1], pythia_70m.norm(last))]
    np.testing.assert_allclose(greatest, list(entry["hf_hidden_states_max_abs"].values()), rtol=1e-3, atol=6e-3)
    logits = last_logits(pythia_70m, entry["input_ids"])
    texts, scores, _ = zip(*entry["top5_next"], strict=True)
    best = np.argsort(-logits)[:5]
    assert [Tokenizer(TOKENIZER).decode([int(i)]) for i in best] == list(texts)
    np.testing.assert_allclose(logits[best], scores, atol=0.05)


def test_greedy_continuation_of_410m_equals_the_published_one() -> None:
    entry = VALUES["pythia-410m-deduped/hf_greedy"]
    model, tokenizer = checkpoint("pythia-410m-deduped"), Tokenizer(TOKENIZER)
    ids = list(entry["prompt_ids"])
    assert tokenizer.encode([entry["prompt"]])[0] == ids
    step = nnx.jit(lambda model, tokens, last: model(tokens)[0, last].argmax())
    end = len(ids) + entry["max_new_tokens"]
    while len(ids) < end:  # right padding to one length does not change causal logits
        ids.append(int(step(model, jnp.array([ids + [0] * (end - len(ids))]), len(ids) - 1)))
    assert tokenizer.decode(ids) == entry["expected"]

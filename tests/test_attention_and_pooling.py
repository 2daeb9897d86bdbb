"""Causal or full attention and last, mean or first pooling give the logits of transformers."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import torch
from flax import nnx
from transformers import GPTNeoXConfig, GPTNeoXModel

from converters.__main__ import main as convert
from jaxtempl import cli, files
from jaxtempl.__main__ import command
from jaxtempl.errors import UserError
from jaxtempl.huggingface import save
from jaxtempl.huggingface.config import hugging_face_config
from jaxtempl.models import factory
from jaxtempl.runs import run
from jaxtempl.specs import flops
from jaxtempl.specs.architecture import AttentionKind, NeoXArchitecture, Pooling

SMALL = NeoXArchitecture(layers=3, hidden=32, heads=4, feed_forward=48, vocabulary=96, positions=32)
LENGTHS = np.array([12, 1, 7])
REAL = np.arange(12) < LENGTHS[:, None]
READINGS = [(a, p) for a in ("causal", "full") for p in ("last", "mean", "first")]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[GPTNeoXModel, dict[str, Any]]:
    """One trunk in both libraries, with weights large enough to expose any difference."""
    params = factory.random_params(SMALL, None, 0)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    params = jax.tree.unflatten(
        tree, [leaf + 0.2 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    )
    folder = tmp_path_factory.mktemp("trunk")
    save.write(folder, SMALL, params, "lm")
    keys_of = hugging_face_config(SMALL, "lm")
    config = GPTNeoXConfig(**{k: v for k, v in keys_of.items() if k != "architectures"}, attn_implementation="eager")
    return GPTNeoXModel.from_pretrained(folder, config=config).eval(), params


def hidden(theirs: GPTNeoXModel, ids: np.ndarray, attention: str) -> np.ndarray:
    """Return the last hidden states of transformers, with an explicit mask [B 1 L L]."""
    length = ids.shape[1]
    allowed = np.broadcast_to(REAL[:, None, None], (len(ids), 1, length, length))
    if attention == "causal":
        allowed = allowed & np.tril(np.ones((length, length), bool))
    mask = torch.tensor(np.where(allowed, 0, np.finfo(np.float32).min), dtype=torch.float32)
    with torch.no_grad():
        return theirs(input_ids=torch.tensor(ids), attention_mask=mask).last_hidden_state.numpy()


def pooled(states: np.ndarray, pooling: str) -> np.ndarray:
    if pooling == "mean":
        return np.stack([row[:length].mean(axis=0) for row, length in zip(states, LENGTHS, strict=True)])
    at = LENGTHS - 1 if pooling == "last" else np.zeros(len(LENGTHS), int)
    return states[np.arange(len(states)), at]


@pytest.mark.parametrize(("attention", "pooling"), READINGS)
def test_logits_equal_those_of_transformers(pair: Any, attention: AttentionKind, pooling: Pooling) -> None:
    theirs, params = pair
    ids = np.where(REAL, np.random.default_rng(0).integers(2, 96, (3, 12)), 1)
    head = np.random.default_rng(1).standard_normal((32, 7), np.float32)
    a = dataclasses.replace(SMALL, attention=attention, pooling=pooling)
    model: Any = nnx.merge(factory.make_graphdef(a, 7), {**params, "head": {"kernel": jnp.asarray(head)}})
    got = np.asarray(tiny.template_logits(model, jnp.asarray(ids), jnp.asarray(LENGTHS)))
    wanted = pooled(hidden(theirs, ids, attention), pooling) @ head
    assert np.abs(got - wanted).max() < 1e-5 * np.abs(wanted).max()


def test_mean_pooling_counts_the_whole_last_layer() -> None:
    mean = dataclasses.replace(SMALL, pooling="mean")
    spared = flops.per_context(mean, 12, 7) - flops.per_context(SMALL, 12, 7)
    assert spared == 3 * (12 - 1) * (2 * 32 * 32 + 4 * 32 * 48 + 4 * 12 * 32)


def test_a_run_records_attention_and_pooling_and_cannot_be_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tiny.dataset(tmp_path / "made").folder
    begun = tiny.make_run(tmp_path / "base", [])
    files.write_json(begun.folder / "manifest.json", {**begun.manifest, "size": "nano"})
    given = (
        f"--from={begun.folder}",
        f"--data={data}",
        "--length=32",
        "--batch_size=4",
        "--gradient_accumulation_steps=1",
        "--steps=1",
    )
    flags = ("--attention=full", "--pooling=mean", "--learning_rate=1e-3", f"--out={tmp_path}/run")
    assert cli.run(command("finetune"), (*given, *flags)) == 0
    found, _ = run.resolve(f"{tmp_path}/run")
    assert isinstance(found.architecture, NeoXArchitecture)
    assert (found.architecture.attention, found.architecture.pooling) == ("full", "mean")
    for kind in ("huggingface", "onnx"):
        with pytest.raises(UserError, match=r"--attention=full --pooling=mean, which is measured but not exported"):
            convert([kind, f"--run={tmp_path}/run", f"--out={tmp_path}/{kind}"])
        assert not (tmp_path / kind).exists()


@pytest.mark.parametrize("flag", ["--pooling=last", "--attention=causal"])
def test_bert_rejects_what_only_gpt_neox_has(flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tiny.dataset(tmp_path / "made").folder
    given = ("--size=bert-tiny", "--weights=random", f"--data={data}", flag, f"--out={tmp_path}/run")
    assert cli.run(command("finetune"), given) == 1
    assert f"{flag} needs a Pythia" in capsys.readouterr().err

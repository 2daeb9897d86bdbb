"""`convert huggingface` and `convert onnx` of BERT runs: transformers and ONNX Runtime match the runs' logits."""

import contextlib
import dataclasses
import io
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import torch
import trained
from flax import nnx
from serving import PATIENT, served
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

from converters.__main__ import main
from converters.huggingface import export
from jaxtempl.bundle.bundle import Bundle
from jaxtempl.commands import suggest
from jaxtempl.config.data import PrepareConfig
from jaxtempl.config.sizes import tokenizer_path
from jaxtempl.errors import UserError
from jaxtempl.huggingface import load
from jaxtempl.prepare import pipeline
from jaxtempl.runs.run import Run
from jaxtempl.serve.inference.suggester import bundle_suggester
from jaxtempl.text.cases import Message

TOLERANCE = 1e-5  # of the largest logit
MESSAGES = [
    Message("advocate", "Hello, how can I help?", None),
    Message("customer", "My [MASK] has not come", None),
    Message("advocate", "When was it sent?", None),
    Message("customer", "Two weeks ago", None),
]


def train(folder: Path) -> None:
    """Train bert-tiny with the real commands."""
    tiny.dataset(folder / "made")
    splits = {split: (str(folder / "made" / f"{split}.jsonl"),) for split in ("train", "validation", "test")}
    pipeline.run(PrepareConfig(**splits, size="bert-tiny", length=32, out=folder / "data"))
    trained.train(folder, folder / "data", "bert-tiny", length=24, weights="random")


@pytest.fixture(scope="module")
def runs() -> dict[str, Run]:
    return trained.runs("bert", train)


@pytest.fixture(scope="module")
def converted() -> dict[str, Path]:
    return trained.converted("bert", train)


def batch() -> tuple[np.ndarray, np.ndarray]:
    lengths = np.array([20, 3, 11])
    ids = np.random.default_rng(0).integers(200, 30_000, (3, 20))
    ids[:, 0] = 101
    return np.where(np.arange(20) < lengths[:, None], ids, 0), lengths


@pytest.mark.parametrize("phase", trained.PHASES)
def test_transformers_matches_the_runs_logits(runs: dict[str, Run], converted: dict[str, Path], phase: str) -> None:
    kind = AutoModelForMaskedLM if phase == "adapt" else AutoModelForSequenceClassification
    reference, (ids, lengths) = kind.from_pretrained(converted[phase]).eval(), batch()
    mask = np.arange(20) < lengths[:, None]
    with torch.no_grad():
        actual = reference(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask)).logits.numpy()
    graphdef = runs[phase].graphdef()

    def logits(params: Any) -> jax.Array:
        model: Any = nnx.merge(graphdef, params)
        return (model if phase == "adapt" else model.classify)(jnp.asarray(ids), jnp.asarray(lengths))

    temperature = runs[phase].temperature(2) if phase == "finetune" else 1
    expected = np.asarray(jax.jit(logits)(runs[phase].params(2))) / np.float32(temperature)
    difference = np.abs(actual - expected)
    assert (difference[mask] if phase == "adapt" else difference).max() <= TOLERANCE * np.abs(expected).max()


@pytest.mark.parametrize("phase", trained.PHASES)
def test_a_round_trip_preserves_every_bit(runs: dict[str, Run], converted: dict[str, Path], phase: str) -> None:
    read = load.read(converted[phase], runs[phase].architecture)
    assert read.head == runs[phase].head
    expected = runs[phase].params(2)
    if phase == "finetune":
        divisor = np.float32(runs[phase].temperature(2))
        expected = {**expected, "head": jax.tree.map(lambda leaf: leaf / divisor, expected["head"])}
    jax.tree.map(np.testing.assert_array_equal, read.params, expected)


def code(folder: Path) -> tuple[str, dict[str, Any]]:
    """Run the card's code; return its output and its variables."""
    (found,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    output, variables = io.StringIO(), dict[str, Any]()
    with contextlib.redirect_stdout(output):
        exec(found.replace("THIS_FOLDER", str(folder)), variables)
    return output.getvalue(), variables


def test_the_cards_code_matches_the_runs_suggestions(runs: dict[str, Run], converted: dict[str, Path]) -> None:
    source = runs["finetune"]
    plain = [Message(message.role, message.text.replace("[MASK]", "card"), None) for message in MESSAGES]
    expected = suggest.run_suggester(source, 2).suggest(plain, 4)
    printed, variables = code(converted["finetune"])
    assert len(variables["ids"]) == expected.tokens <= 24
    assert (variables["ids"][0], variables["ids"][-1]) == (101, 102)
    actual = [line.split() for line in printed.splitlines()]
    assert [name for name, _ in actual] == [suggestion.template for suggestion in expected.suggestions]
    assert [float(p) for _, p in actual] == pytest.approx([s.probability for s in expected.suggestions], abs=1e-4)


def test_the_cards_code_fills_in_a_word(converted: dict[str, Path]) -> None:
    printed, variables = code(converted["adapt"])
    assert int(variables["masked"].sum()) == 1
    assert len(printed.split()) == 1


def test_the_card_describes_bert(runs: dict[str, Run], converted: dict[str, Path]) -> None:
    for phase, task in (("adapt", "fill-mask"), ("finetune", "text-classification")):
        card = (converted[phase] / "README.md").read_text()
        held = sum(leaf.size for leaf in jax.tree.leaves(runs[phase].params(2)))
        assert f"pipeline_tag: {task}" in card
        assert f"BERT with 2 layers, hidden 128, 2 heads: {held:,} parameters" in card
        assert "NeoX" not in card


def test_the_tokenizer_matches_ours_and_text_yields_no_special_token(converted: dict[str, Path]) -> None:
    reference = AutoTokenizer.from_pretrained(converted["finetune"])
    texts = ["Hello,  where is my order?\n", "a [MASK] typed by hand, and [SEP]", "naïve café, 你好"]
    from jaxtempl.text.tokenizer import Tokenizer

    ours = Tokenizer(tokenizer_path("bert-tiny"))
    assert reference(texts, add_special_tokens=False)["input_ids"] == ours.encode(texts)
    named = (reference.cls_token_id, reference.sep_token_id, reference.pad_token_id, reference.mask_token_id)
    assert named == (101, 102, 0, 103)


def test_mean_pooling_is_no_class_of_transformers(runs: dict[str, Run], tmp_path: Path) -> None:
    made = Run(runs["finetune"].folder)
    made.architecture = dataclasses.replace(made.architecture, pooling="mean")
    with pytest.raises(UserError, match=r"--pooling=mean.*convert it with bin/convert onnx"):
        export.convert(made, made.checkpoints.steps()[-1], tmp_path / "converted")
    assert not (tmp_path / "converted").exists()


@pytest.mark.parametrize("flags", [(), ("--dtype=fp16",), ("--form=plain", "--slots=9")])
def test_a_bundle_matches_the_runs_suggestions(runs: dict[str, Run], tmp_path: Path, flags: tuple[str, ...]) -> None:
    source = runs["finetune"]
    main(["onnx", f"--run={source.folder}@2", f"--out={tmp_path / 'bundle'}", "--verify_contexts=24", *flags])
    bundle = Bundle.open(tmp_path / "bundle")
    assert bundle.manifest["special_tokens"] == 2
    assert bundle.manifest["verify"]["top1_outside_ties"] == 1
    expected, actual = (
        suggest.run_suggester(source, 2).suggest(MESSAGES, 4),
        bundle_suggester(bundle).suggest(MESSAGES, 4),
    )
    assert (actual.tokens, actual.dropped_messages) == (expected.tokens, expected.dropped_messages)
    assert {s.template: s.probability for s in actual.suggestions} == pytest.approx(
        {s.template: s.probability for s in expected.suggestions}, abs=2e-3 if "--dtype=fp16" in flags else 1e-5
    )


def test_a_language_models_bundle_is_verified(runs: dict[str, Run], tmp_path: Path) -> None:
    main(["onnx", f"--run={runs['adapt'].folder}@2", f"--out={tmp_path / 'bundle'}", "--verify_contexts=8"])
    assert Bundle.open(tmp_path / "bundle").manifest["verify"]["top1_outside_ties"] == 1


def test_a_bundle_is_served(runs: dict[str, Run], tmp_path: Path) -> None:
    source = runs["finetune"]
    main(["onnx", f"--run={source.folder}@2", f"--out={tmp_path / 'bundle'}", "--verify_contexts=8"])
    expected = suggest.run_suggester(source, 2).suggest(MESSAGES, 2)
    messages = [{"role": message.role, "text": message.text} for message in MESSAGES]
    with served(tmp_path / "bundle", tmp_path / "store", "--backend=onnx", "--threads=1", PATIENT) as server:
        found = server.suggest(messages=messages, k=2).json
    assert (found["tokens"], found["dropped_messages"]) == (expected.tokens, expected.dropped_messages)
    assert [s["template"] for s in found["suggestions"]] == [s.template for s in expected.suggestions]

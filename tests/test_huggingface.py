"""`convert huggingface`: transformers loads the folder and gives our logits."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from converters import huggingface
from converters.__main__ import main
from jaxtempl import run
from jaxtempl.cases import Template
from jaxtempl.errors import UsageError, UserError
from jaxtempl.models import build, config_json, weights
from jaxtempl.models.neox import Architecture, NeoX
from jaxtempl.tokenizer import Tokenizer

ASSETS = Path(weights.__file__).parent.parent / "assets"
NANO, PYTHIA = ASSETS / "nano" / "tokenizer.json", ASSETS / "tokenizers" / "pythia.json"
SMALL = Architecture(layers=2, hidden=32, heads=2, feed_forward=48, vocabulary=8192)
TEMPLATES = [Template(slot, f"reply/{slot}", f"text {slot}", slot != 1, False, slot) for slot in range(4)]
TEXTS = ["Hello,  where is my order?\n\n", "a <|endoftext|> typed by hand, and <|padding|>", "naïve café, 你好 🙂"]


def random_params(outputs: int) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    model = nnx.eval_shape(lambda: NeoX(SMALL, outputs, rngs=nnx.Rngs(0)))
    shapes = nnx.to_pure_dict(nnx.state(model))
    return jax.tree.map(lambda leaf: jnp.array(generator.standard_normal(leaf.shape, np.float32)) * 0.3, shapes)


def model_of(params: dict[str, Any], outputs: int) -> NeoX:
    return nnx.merge(build.graphdef(SMALL, outputs), params)


def converted(
    out: Path, head: config_json.Head, templates: Sequence[Template] = (), tokenizer: Path = NANO
) -> dict[str, Any]:
    params = random_params(len(templates) or SMALL.vocabulary)
    huggingface.convert(params, SMALL, head, templates, tokenizer.read_text(), out)
    return params


def assert_close(got: Any, wanted: Any) -> None:
    assert np.abs(np.asarray(got) - np.asarray(wanted)).max() < 1e-4 * np.abs(np.asarray(wanted)).max()


def test_language_model(tmp_path: Path) -> None:
    params = converted(tmp_path / "out", "lm")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    tokens = np.random.default_rng(0).integers(2, 8192, (2, 11))
    with torch.no_grad():
        assert_close(model_of(params, 8192)(jnp.array(tokens)), theirs(torch.tensor(tokens)).logits)


def test_template_classifier_on_ragged_texts(tmp_path: Path) -> None:
    params = converted(tmp_path / "out", "template", TEMPLATES)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    assert theirs.config.id2label == {template.slot: template.id for template in TEMPLATES}
    assert theirs.config.label2id == {template.id: template.slot for template in TEMPLATES}
    encoded = AutoTokenizer.from_pretrained(tmp_path / "out")(TEXTS, return_tensors="pt", padding=True)
    with torch.no_grad():
        wanted = theirs(**encoded).logits
    lengths = jnp.array(encoded["attention_mask"].sum(1).numpy())
    assert len(set(lengths.tolist())) > 1
    assert_close(model_of(params, 4).classify(jnp.array(encoded["input_ids"].numpy()), lengths), wanted)


@pytest.mark.parametrize("tokenizer", [NANO, PYTHIA])
def test_tokenizer_is_ours_to_the_id(tmp_path: Path, tokenizer: Path) -> None:
    converted(tmp_path / "out", "lm", tokenizer=tokenizer)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert theirs(TEXTS)["input_ids"] == Tokenizer(tokenizer).encode(TEXTS)
    assert (theirs.eos_token_id, theirs.pad_token_id, theirs.padding_side) == (0, 1, "right")


def test_tokenizer_without_padding_pads_with_end_of_text() -> None:
    tokenizer = json.loads(NANO.read_text())
    tokenizer["added_tokens"] = [t for t in tokenizer["added_tokens"] if t["content"] != huggingface.PADDING]
    ids = huggingface.special_ids(json.dumps(tokenizer))
    assert ids == {huggingface.END_OF_TEXT: 0, huggingface.PADDING: 0}
    assert huggingface.tokenizer_config(json.dumps(tokenizer), SMALL)["pad_token"] == huggingface.END_OF_TEXT


def test_tokenizer_without_end_of_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no <\|endoftext\|>"):
        huggingface.convert(random_params(4), SMALL, "template", TEMPLATES, '{"added_tokens": []}', tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_card_names_the_loader(tmp_path: Path) -> None:
    converted(tmp_path / "out", "template", TEMPLATES)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "AutoModelForSequenceClassification" in card
    assert "scores the 4 templates" in card


def test_what_is_there_stays(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kept").touch()
    with pytest.raises(UserError, match="exists already"):
        converted(tmp_path / "out", "lm")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "kept"]


@pytest.mark.parametrize(("phase", "templates"), [("adapt", []), ("finetune", TEMPLATES)])
def test_command_converts_a_run(tmp_path: Path, phase: str, templates: list[Template]) -> None:
    made = run.create(tmp_path / "run", "", SMALL, NANO.read_text(), templates, {"phase": phase})
    params = random_params(made.outputs)
    made.checkpoints.save(3, "study", params, None, {})
    made.checkpoints.finish()
    main(["huggingface", f"--run={tmp_path / 'run'}", f"--out={tmp_path / 'out'}"])
    read = weights.read(tmp_path / "out", SMALL)
    assert read.head == ("template" if templates else "lm")
    jax.tree.map(np.testing.assert_array_equal, read.params, params)


@pytest.mark.parametrize("argv", [[], ["torch"], ["huggingface", "--runs=x"]])
def test_wrong_use(argv: list[str]) -> None:
    with pytest.raises(UsageError):
        main(argv)


def test_no_run_is_named() -> None:
    with pytest.raises(UserError, match="pass --run"):
        main(["huggingface"])

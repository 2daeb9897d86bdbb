"""`convert huggingface`: transformers gives a real run's logits from the folder, and a round trip is bit-equal."""

import contextlib
import dataclasses
import functools
import io
import json
import re
import shutil
import signal
import subprocess
import sys
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
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from converters.__main__ import main
from converters.huggingface import export, special_tokens
from jaxtempl import files
from jaxtempl.commands import suggest
from jaxtempl.config import sizes
from jaxtempl.config.evaluation import EvaluateConfig
from jaxtempl.config.paths import ASSETS, ROOT
from jaxtempl.errors import UsageError, UserError
from jaxtempl.evaluation import evaluate
from jaxtempl.huggingface import checks, layout, load, save
from jaxtempl.models import factory
from jaxtempl.runs import run
from jaxtempl.runs.run import Run
from jaxtempl.specs.architecture import NeoXArchitecture
from jaxtempl.text import formats
from jaxtempl.text.cases import Message
from jaxtempl.text.tokenizer import Tokenizer

NANO, PYTHIA = ASSETS / "nano" / "tokenizer.json", ASSETS / "tokenizers" / "pythia.json"
TEXTS = ["Hello,  where is my order?\n\n", "a <|endoftext|> typed by hand, and <|padding|>", "naïve café, 你好 🙂"]
TEMPLATES = [tiny.template(slot, name, active=name != "card") for slot, name in enumerate(tiny.REPLIES)]
TOLERANCE = 1e-5  # relative to the largest logit
END = 0  # id of the end-of-text token


def train(folder: Path) -> None:
    """Train and evaluate the embedded model by the real commands, and retire a template."""
    data = tiny.dataset(folder / "made").folder
    tuned = trained.train(folder, data, "nano", length=32)
    evaluate.evaluate(EvaluateConfig(run=str(tuned.folder), data=str(data), batch_size=4))
    templates = [
        {**entry, "active": entry["id"] != "card"} for entry in files.read_json(tuned.folder / "templates.json")
    ]
    files.write_json(tuned.folder / "templates.json", templates)


@pytest.fixture(scope="module")
def runs() -> dict[str, Run]:
    return trained.runs("huggingface", train)


@pytest.fixture(scope="module")
def converted() -> dict[str, Path]:
    return trained.converted("huggingface", train)


Rows = tuple[tuple[int, ...], ...]


@functools.cache
def ours(folder: Path, rows: Rows) -> np.ndarray:
    """Return the run's logits: of each row's tokens, or of its classes."""
    source, lengths = Run(folder), [len(row) for row in rows]
    graphdef, params = source.graphdef(), source.params(2)
    tokens = jnp.array([[*row, *[END] * (max(lengths) - len(row))] for row in rows])
    if source.phase == "finetune":
        classify = jax.jit(lambda params, at: nnx.merge(graphdef, params).classify(tokens, at))
        return np.asarray(classify(params, jnp.array(lengths)))
    logits = np.asarray(jax.jit(lambda params: nnx.merge(graphdef, params)(tokens))(params))
    return np.concatenate([row[:length] for row, length in zip(logits, lengths, strict=True)])


def error(actual: Any, expected: Any) -> float:
    return float(np.abs(np.asarray(actual) - np.asarray(expected)).max() / np.abs(np.asarray(expected)).max())


def calibrated(source: Run, leaf: Any) -> np.ndarray:
    """Return the columns of the active templates, divided by the temperature."""
    assert source.temperature(2) != 1
    active = [template.slot for template in source.templates if template.active]
    assert active == [0, 1, 3]
    return np.asarray(leaf)[..., active] / np.float32(source.temperature(2))


def rows() -> Rows:
    """Ragged rows with an end-of-text token inside, at the end, at the start, and alone."""
    random = np.random.default_rng(0)
    drawn = [random.integers(2, 8192, count).tolist() for count in (300, 7, 23, 12)]
    drawn[0][11], drawn[1][-1], drawn[2][0] = END, END, END
    return (*map(tuple, drawn), (END,))


def padded(rows: Rows, side: str, id: int, positions: bool) -> dict[str, torch.Tensor]:
    """Return a padded batch for transformers; optional position ids count from each row's first token."""
    spare = [max(map(len, rows)) - len(row) for row in rows]
    pads = [(0, n) if side == "right" else (n, 0) for n in spare]
    ids = [np.pad(row, pad, constant_values=id) for row, pad in zip(rows, pads, strict=True)]
    mask = [np.pad(np.ones(len(row), np.int64), pad) for row, pad in zip(rows, pads, strict=True)]
    batch = {"input_ids": torch.tensor(np.stack(ids)), "attention_mask": torch.tensor(np.stack(mask))}
    counted = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    return {**batch, "position_ids": counted} if positions else batch


CASES = [("right", False), ("left", False), ("left", True)]


@pytest.mark.parametrize(("side", "positions"), CASES)
def test_language_model_gives_the_runs_logits(
    runs: dict[str, Run], converted: dict[str, Path], side: str, positions: bool
) -> None:
    reference = AutoModelForCausalLM.from_pretrained(converted["adapt"]).eval()
    assert type(reference).__name__ == "GPTNeoXForCausalLM"
    batch = padded(rows(), side, reference.config.pad_token_id, positions)
    with torch.no_grad():
        actual = reference(**batch).logits[batch["attention_mask"] == 1]
    assert error(actual, ours(runs["adapt"].folder, rows())) < TOLERANCE


@pytest.mark.parametrize(("side", "positions"), CASES)
def test_classifier_gives_the_runs_logits(
    runs: dict[str, Run], converted: dict[str, Path], side: str, positions: bool
) -> None:
    reference = AutoModelForSequenceClassification.from_pretrained(converted["finetune"]).eval()
    assert type(reference).__name__ == "GPTNeoXForSequenceClassification"
    with torch.no_grad():
        actual = reference(**padded(rows(), side, reference.config.pad_token_id, positions)).logits
    expected = calibrated(runs["finetune"], ours(runs["finetune"].folder, rows()))
    assert error(actual, expected) < TOLERANCE


def test_class_names_equal_the_runs_active_templates(runs: dict[str, Run], converted: dict[str, Path]) -> None:
    found = AutoModelForSequenceClassification.from_pretrained(converted["finetune"]).config
    slots = files.read_json(converted["finetune"] / "manifest.json")["slots"]
    active = {template.slot: template.id for template in runs["finetune"].templates if template.active}
    assert {slots[label]: name for label, name in found.id2label.items()} == active
    assert {name: slots[label] for name, label in found.label2id.items()} == {name: s for s, name in active.items()}
    assert "slots" not in files.read_json(converted["adapt"] / "manifest.json")


@pytest.mark.parametrize("side", ["right", "left"])
def test_texts_in_the_exported_tokenizer_give_the_runs_logits(
    runs: dict[str, Run], converted: dict[str, Path], side: str
) -> None:
    """Both tokenizers read the special tokens typed in `TEXTS` as text."""
    tokenizer = AutoTokenizer.from_pretrained(converted["finetune"])
    reference = AutoModelForSequenceClassification.from_pretrained(converted["finetune"]).eval()
    with torch.no_grad():
        actual = reference(**tokenizer(TEXTS, return_tensors="pt", padding=True, padding_side=side)).logits
    ids = tuple(map(tuple, runs["finetune"].tokenizer.encode(TEXTS)))
    assert error(actual, calibrated(runs["finetune"], ours(runs["finetune"].folder, ids))) < TOLERANCE


@pytest.mark.parametrize("tokenizer", [NANO, PYTHIA])
def test_exported_tokenizer_gives_the_projects_ids(tmp_path: Path, tokenizer: Path) -> None:
    architecture = dataclasses.replace(tiny.ARCHITECTURE, vocabulary=50304)  # Pythia's, which has a row for every id
    source = run.create(tmp_path / "run", "", architecture, tokenizer.read_text(), [], {"phase": "adapt"})
    special = special_tokens.read_special_tokens(source.tokenizer.json)
    files.write_json(tmp_path / "tokenizer_config.json", export.tokenizer_config(source, special))
    shutil.copy(tokenizer, tmp_path / "tokenizer.json")
    reference = AutoTokenizer.from_pretrained(tmp_path)
    assert reference(TEXTS)["input_ids"] == Tokenizer(tokenizer).encode(TEXTS)
    assert (reference.eos_token_id, reference.pad_token_id, reference.padding_side) == (0, 1, "right")


def test_tokenizer_without_padding_pads_with_end_of_text() -> None:
    tokenizer = json.loads(NANO.read_text())
    tokenizer["added_tokens"] = [t for t in tokenizer["added_tokens"] if t["content"] != special_tokens.PADDING]
    assert special_tokens.read_special_tokens(json.dumps(tokenizer)).config_entries == {
        f"{role}_token_id": 0 for role in ("bos", "eos", "pad")
    }


def test_tokenizer_without_end_of_text_is_rejected() -> None:
    with pytest.raises(UserError, match=r"no <\|endoftext\|>"):
        special_tokens.read_special_tokens('{"added_tokens": []}')


@pytest.mark.parametrize("phase", trained.PHASES)
@pytest.mark.parametrize("shard_bytes", [save.SHARD_BYTES, 10**6])
def test_round_trip_is_bit_equal(runs: dict[str, Run], tmp_path: Path, phase: str, shard_bytes: int) -> None:
    source = runs[phase]
    export.convert(source, 2, tmp_path / "out", shard_bytes)
    assert (tmp_path / "out" / layout.INDEX).exists() == (shard_bytes == 10**6)
    read = load.read(tmp_path / "out", source.architecture)
    assert read.head == ("template" if phase == "finetune" else "lm")
    expected = source.params(2)
    if phase == "finetune":
        expected = {**expected, "head": {"kernel": calibrated(source, expected["head"]["kernel"])}}
    jax.tree.map(np.testing.assert_array_equal, read.params, expected)


@pytest.mark.parametrize("phase", trained.PHASES)
def test_transformers_loads_shards(
    runs: dict[str, Run], converted: dict[str, Path], tmp_path: Path, phase: str
) -> None:
    export.convert(runs[phase], 2, tmp_path / "out", shard_bytes=10**6)
    assert len(list((tmp_path / "out").glob("model-0*.safetensors"))) > 3
    kind = {"adapt": AutoModelForCausalLM, "finetune": AutoModelForSequenceClassification}[phase]
    one, many = (kind.from_pretrained(folder).state_dict() for folder in (converted[phase], tmp_path / "out"))
    assert one.keys() == many.keys()
    assert all(torch.equal(one[name], many[name]) for name in one)


@pytest.mark.parametrize(("size", "shards"), [("410m", 1), ("1.4b", 2), ("2.8b", 3)])
def test_weights_above_five_gigabytes_are_sharded(size: str, shards: int) -> None:
    """Check the command's plan for the shapes of the sizes, without arrays of that size."""
    architecture = NeoXArchitecture(**sizes.read_size(size)["architecture"])
    slots = layout.stored_tensors(architecture, "lm", None)
    planned = save._plan(slots, save.SHARD_BYTES)
    held = [sum(4 * np.prod(slots[name].shape, dtype=np.int64) for name in names) for names in planned.values()]
    assert len(held) == shards
    assert max(held) <= 5 * 10**9
    total = 4 * sum(
        leaf.size for leaf in jax.tree.leaves(factory.abstract_params(architecture, architecture.vocabulary))
    )
    assert sum(held) == total
    assert save._index(slots, planned, str)["metadata"]["total_size"] == total
    assert (layout.SINGLE in planned) == (shards == 1)


def code(folder: Path) -> tuple[str, dict[str, Any]]:
    """Run the card's code; return its output and its variables."""
    variables: dict[str, Any] = {}
    (block,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(block.replace("THIS_FOLDER", str(folder)), variables)
    return output.getvalue(), variables


@pytest.mark.parametrize("role_tags", [False, True])
def test_the_cards_code_gives_the_runs_suggestions(tmp_path: Path, role_tags: bool) -> None:
    """The three newest messages fill the window to the last token. The retired template is not suggested."""
    conversation = [("advocate", "Hello, how can I help?"), ("customer", "My card has not come")]
    conversation += [("advocate", "When was it sent?"), ("customer", "Two weeks ago")]
    messages = [Message(role, text, None) for role, text in conversation]
    encoded = Tokenizer(NANO).encode(formats.classifier_texts(messages, role_tags))
    length = sum(map(len, encoded[1:]))
    source = tiny.make_run(tmp_path / "run", TEMPLATES, length=length, role_tags=role_tags)
    files.write_json(source.folder / "calibration.json", {"steps": {"3": {"temperature": 2.5}}})
    export.convert(source, 3, tmp_path / "out")
    expected = suggest.run_suggester(source, 3).suggest(messages, 5)
    assert (expected.tokens, expected.dropped_messages) == (length, 1)
    printed, variables = code(tmp_path / "out")
    assert variables["ids"] == [token for ids in encoded[1:] for token in ids]
    actual = [line.split() for line in printed.splitlines()]
    assert [name for name, _ in actual] == [suggestion.template for suggestion in expected.suggestions]
    assert [float(p) for _, p in actual] == pytest.approx([s.probability for s in expected.suggestions], abs=1e-4)


def test_the_cards_code_generates_text(converted: dict[str, Path]) -> None:
    assert code(converted["adapt"])[0].startswith("<CUSTOMER>: Where is my card?\n<ADVOCATE>:")


def test_the_hub_reads_the_cards_metadata(runs: dict[str, Run], converted: dict[str, Path]) -> None:
    card = ModelCard.load(converted["finetune"] / "README.md")
    assert (card.data["library_name"], card.data["pipeline_tag"]) == ("transformers", "text-classification")
    report = files.read_json(runs["finetune"].folder / "evaluate-test" / "report.json")
    (top1,) = [found for found in card.data["eval_results"] if found.metric_name == "top-1"]
    assert (top1.metric_type, top1.metric_value) == ("accuracy", report["metrics"]["top1"]["value"])
    assert (top1.dataset_split, top1.dataset_revision) == ("test", report["dataset"]["fingerprint"])
    assert "eval_results" not in ModelCard.load(converted["adapt"] / "README.md").data.to_dict()


def test_the_card_reports_data_metrics_and_limits(runs: dict[str, Run], converted: dict[str, Path]) -> None:
    card = (converted["finetune"] / "README.md").read_text()
    manifest = runs["finetune"].manifest
    (fingerprint,) = manifest["datasets"].values()
    read = f"2 steps on `data` (fingerprint `{fingerprint[:12]}`): 20 training cases, "
    assert "It was initialized with the weights `nano` and trained on" in card
    assert f"- language modelling (adapt), {read}" in card
    assert f"- template classification (finetune), {read}60 labels, 4 templates" in card
    validation = [line["validation_loss"] for line in runs["finetune"].metrics() if "validation_loss" in line]
    assert f"validation loss at the last step {validation[-1]:.3f}" in card
    report = files.read_json(runs["finetune"].folder / "evaluate-test" / "report.json")
    for row, found in {"this model": report, **report["baselines"]}.items():
        value, low, high = (found["metrics"]["top3"][key] for key in ("value", "low", "high"))
        assert re.search(
            rf"\| {row.replace('_', ' ').replace('ngrams', 'n-grams')} \|.* {value:.3f} \[{low:.3f}, {high:.3f}\]", card
        )
    assert f"divided by {report['temperature']:.4f}" in card
    for limit in ("fit in 32 tokens", "It reads no roles", "Retired templates have no class (1)", "not tested"):
        assert limit in card.partition("## Limits")[2]


def test_the_card_reports_unknown_data_and_runs(tmp_path: Path) -> None:
    """A missing dataset and an overwritten run are reported as unknown."""
    datasets = {f"{tmp_path}/secret/gone": "0" * 64}
    older = tiny.make_run(tmp_path / "secret" / "older", [], steps=(7,)).folder
    init = {"run": str(older), "step": 7, "weights_sha256": {"manifest.json": "0" * 64}}
    source = tiny.make_run(tmp_path / "run", TEMPLATES, datasets=datasets, start=init)
    files.write_json(source.folder / "evaluate-test" / "report.json", {"kind": "evaluation", "step": 2})
    files.write_json(source.folder / "calibration.json", {"steps": {"2": {"temperature": 2.5}}})
    export.convert(source, 3, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    for fact in (
        "step 7 of the run `older`, which no longer exists",
        "on `gone` (fingerprint `000000000000`): its counts are unknown",
        "It was not evaluated on a test split",
        "No temperature was fitted",
    ):
        assert fact in card
    assert "secret" not in card


def test_the_card_names_published_weights_as_the_base_model(tmp_path: Path) -> None:
    init = {"weights": "EleutherAI/pythia-410m", "revision": "main"}
    source = tiny.make_run(tmp_path / "run", [], size="410m", start=init)
    export.convert(source, 3, tmp_path / "out")
    assert ModelCard.load(tmp_path / "out" / "README.md").data["base_model"] == "EleutherAI/pythia-410m"


@pytest.mark.parametrize("weights", ["{}/secret/mine", "{}/secret/mine/", "../secret/mine", "random", "assets/nano"])
def test_the_card_names_no_other_weights_as_the_base_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: str
) -> None:
    """A size that a user adds may name any weights: a folder's name at most is published."""
    named = weights.format(tmp_path)
    monkeypatch.setattr(sizes, "read_size", lambda _: {"weights": named})
    source = tiny.make_run(tmp_path / "run", [], size="410m", start={"weights": named, "revision": None})
    export.convert(source, 3, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "base_model" not in card
    assert "secret" not in card
    assert "the weights `mine`" in card or weights in ("random", "assets/nano")


def test_the_card_states_licence_and_languages(
    runs: dict[str, Run], converted: dict[str, Path], tmp_path: Path
) -> None:
    card = ModelCard.load(converted["finetune"] / "README.md").data
    assert (card["license"], card["language"]) == ("unknown", ["en"])
    flags = [f"--run={runs['adapt'].folder}", f"--out={tmp_path / 'out'}", "--license=apache-2.0", "--language=de,no"]
    main(["huggingface", *flags])
    card = ModelCard.load(tmp_path / "out" / "README.md").data
    assert (card["license"], card["language"]) == ("apache-2.0", ["de", "no"])


def test_all_files_have_one_mode(runs: dict[str, Run], tmp_path: Path) -> None:
    for name, shard_bytes in (("one", save.SHARD_BYTES), ("many", 10**6)):
        export.convert(runs["finetune"], 2, tmp_path / name, shard_bytes)
        (tmp_path / name / "new").touch()
        assert len({path.stat().st_mode for path in (tmp_path / name).iterdir()}) == 1


def test_the_folder_contains_no_text_of_the_data(converted: dict[str, Path]) -> None:
    texts = {m["text"] for n in range(20) for m in tiny.case(n, ("refund", "card")[n % 2])["messages"]}
    for folder in converted.values():
        small = [path for path in folder.iterdir() if path.suffix in (".json", ".md") and path.name != "tokenizer.json"]
        assert len(small) == 4
        written = "".join(path.read_text() for path in small)
        assert not [line for line in texts if len(line) > 6 and line != tiny.REPLIES["greet"] and line in written]


def test_an_existing_folder_is_not_overwritten(tmp_path: Path) -> None:
    source = tiny.make_run(tmp_path / "run", [])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kept").touch()
    with pytest.raises(UserError, match="exists already"):
        export.convert(source, 3, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["kept"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]


KILLED = """
import sys, time
from jaxtempl.huggingface import save as weights
save = weights.save_file
def slow(tensors, path, metadata):
    save(tensors, path, metadata=metadata)
    print("writing", flush=True)
    time.sleep(60)
weights.save_file = slow
from converters.__main__ import main
main(sys.argv[1:])
"""


def test_a_kill_during_the_write_leaves_no_folder_of_that_name(tmp_path: Path) -> None:
    """A real process receives a real SIGKILL. It waits mid-write, so the signal always arrives there."""
    tiny.make_run(tmp_path / "run", TEMPLATES)
    flags = ["huggingface", f"--run={tmp_path / 'run'}", f"--out={tmp_path / 'out'}"]
    command = [sys.executable, "-c", KILLED, *flags]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "writing\n" in iter(process.stdout.readline, "")
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    (left,) = tmp_path.glob(".out.*.partial")
    assert (left / layout.SINGLE).exists()
    assert not (tmp_path / "out").exists()
    main(flags)
    assert checks.check(tmp_path / "out")[:2] == (tiny.ARCHITECTURE, "template")


@pytest.mark.parametrize("argv", [[], ["torch"], ["huggingface", "--runs=x"]])
def test_invalid_flags_are_usage_errors(argv: list[str]) -> None:
    with pytest.raises(UsageError):
        main(argv)


def test_a_missing_run_is_an_error() -> None:
    with pytest.raises(UserError, match="pass --run"):
        main(["huggingface"])

"""Every reader of a BERT window includes the special tokens, and gets the same ids from a run and its bundle."""

import json
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny

from converters.onnx import export
from converters.quantize import gate
from converters.tensorrt import convert
from converters.verify import dataset_samples
from jaxtempl.bundle.bundle import Bundle
from jaxtempl.commands import suggest
from jaxtempl.config import sizes
from jaxtempl.config.converting import ConvertOnnxConfig, ConvertTensorrtConfig
from jaxtempl.config.evaluation import EvaluateConfig
from jaxtempl.config.paths import ROOT
from jaxtempl.data import loader
from jaxtempl.data.dataset import Dataset
from jaxtempl.data.examples import LabelledContexts
from jaxtempl.evaluation import scores
from jaxtempl.evaluation.subject import Subject
from jaxtempl.models import factory
from jaxtempl.runs import run
from jaxtempl.runs.run import Run
from jaxtempl.serve.inference.backends import FakeNetwork
from jaxtempl.serve.inference.model import ServedModel
from jaxtempl.serve.inference.suggester import bundle_suggester
from jaxtempl.specs.architecture import BertArchitecture
from jaxtempl.text.cases import Message
from jaxtempl.text.tokenizer import Tokenizer
from jaxtempl.text.window import Window

LIMIT = 16  # tokens; contexts of the tiny dataset are shorter and longer
TOKENIZER = sizes.tokenizer_path("bert-tiny")
ARCHITECTURE = BertArchitecture(layers=1, hidden=8, heads=2, feed_forward=16, vocabulary=30522, positions=32)
TEMPLATES = [tiny.template(slot, name) for slot, name in enumerate(tiny.REPLIES)]

Windows = list[list[int]]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny.dataset(tmp_path_factory.mktemp("readers") / "made")


@pytest.fixture(scope="module")
def bert(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Run:
    facts = {"phase": "finetune", "size": "bert-tiny", "seed": 0, "length": LIMIT, "role_tags": False, "labels": 0}
    facts |= {"datasets": {str(dataset.folder): dataset.fingerprint}, "start": {"weights": "random"}}
    tokenizer = TOKENIZER.read_text()
    created = run.create(
        tmp_path_factory.mktemp("bert") / "run", "size: bert-tiny\n", ARCHITECTURE, tokenizer, TEMPLATES, facts
    )
    params = factory.random_params(ARCHITECTURE, len(TEMPLATES), 0)
    created.checkpoints.save(1, "study", params, None, {"step": 1})
    created.checkpoints.wait()
    return created


@pytest.fixture(scope="module")
def bundle(bert: Run, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("bert") / "bundle"
    export.main(ConvertOnnxConfig(run=str(bert.folder), out=out, verify_contexts=4))
    return Bundle.open(out)


@pytest.fixture(scope="module")
def contexts(dataset: Dataset) -> list[tuple[Message, ...]]:
    """The messages of the test split's labelled contexts, in order."""
    labels, cases = dataset.labels("test"), dataset.cases("test")
    return [cases[int(c)].messages[:m] for c, m in zip(labels.case, labels.message, strict=True)]


@pytest.fixture(scope="module")
def expected(contexts: list[tuple[Message, ...]]) -> Windows:
    """The newest whole messages that fit between [CLS] and [SEP], written with the tokenizer alone."""
    tokenizer, windows = Tokenizer(TOKENIZER), Windows()
    for messages in contexts:
        encoded = tokenizer.encode([message.text for message in messages])  # BERT ignores a leading space
        fitting = next(n for n in range(len(encoded)) if sum(map(len, encoded[n:])) <= LIMIT - 2)
        windows.append([101, *(token for ids in encoded[fitting:] for token in ids), 102])
    assert min(map(len, windows)) < LIMIT - 4
    assert any(len(tokenizer.encode([" ".join(m.text for m in messages)])[0]) > LIMIT for messages in contexts)
    return windows


def unique(windows: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    return sorted({tuple(map(int, ids)) for ids in windows})


def rows_of(microbatch: Any) -> Windows:
    pairs = zip(microbatch["tokens"], microbatch["lengths"], microbatch["weights"], strict=True)
    return [row[:length].tolist() for row, length, weight in pairs if weight]


def test_training_reads_the_expected_windows(dataset: Dataset, bert: Run, expected: Windows) -> None:
    labelled = LabelledContexts.read(dataset, "test", Window(bert.tokenizer, LIMIT))
    batches = loader.labelled_batches(labelled.known(), 8, 1, seed=0)
    known = unique([labelled[i].tokens for i in range(len(labelled)) if labelled.slot[i] >= 0])
    drawn = [row for step in range(6) for microbatch in batches[step] for row in rows_of(microbatch)]
    assert unique(drawn) == known
    assert [labelled[i].tokens for i in range(len(labelled))] == expected


def test_evaluation_reads_the_expected_windows(dataset: Dataset, bert: Run, expected: Windows) -> None:
    subject = Subject(EvaluateConfig(run=str(bert.folder), data=str(dataset.folder)), bert, 1, dataset, False, {})
    evaluated = scores.contexts(subject, "test")
    assert [evaluated[i].tokens for i in range(len(evaluated))] == expected


def test_conversion_is_verified_on_the_expected_windows(dataset: Dataset, bert: Run, expected: Windows) -> None:
    windows = dataset_samples.labelled_windows(dataset, bert.window)
    assert unique([next(windows) for _ in expected]) == unique(expected)
    assert set(unique(gate.read_gate_contexts(bert, dataset, 10**6).rows)) <= set(unique(expected))


def test_serving_reads_the_expected_windows(
    bundle: Bundle, contexts: list[tuple[Message, ...]], expected: Windows
) -> None:
    served = ServedModel(bundle, FakeNetwork(len(TEMPLATES)), "fake")
    assert bundle.manifest["special_tokens"] == 2
    assert [served.window.encode(messages).ids for messages in contexts] == expected
    assert served.window.encode(contexts[2]).dropped_messages > 0


def test_suggest_reads_the_expected_windows(
    bert: Run, bundle: Bundle, contexts: list[tuple[Message, ...]], expected: Windows
) -> None:
    for suggester in (suggest.run_suggester(bert, 1), bundle_suggester(bundle)):
        tokens = [suggester.suggest(messages, 1).tokens for messages in contexts]
        assert tokens == list(map(len, expected))


def write_cases(folder: Path, contexts: Sequence[Sequence[Message]]) -> Path:
    lines = [json.dumps({"messages": [{"role": m.role, "text": m.text} for m in messages]}) for messages in contexts]
    (folder / "cases.jsonl").write_text("\n".join(lines))
    return folder / "cases.jsonl"


def test_an_engine_is_verified_on_the_expected_windows(
    bundle: Bundle, tmp_path: Path, contexts: list[tuple[Message, ...]], expected: Windows
) -> None:
    config = ConvertTensorrtConfig(cases=str(write_cases(tmp_path, contexts)), verify_contexts=len(contexts))
    chosen = convert.contexts(bundle, config)
    assert chosen.rows[: len(expected)] == expected
    assert sum(chosen.made.values()) == len(chosen.rows) - len(expected), "the others hold the missing ids"


def test_the_example_reads_the_expected_windows(
    bundle: Bundle,
    tmp_path: Path,
    contexts: list[tuple[Message, ...]],
    expected: Windows,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for messages, window in list(zip(contexts, expected, strict=True))[:6]:
        case = tmp_path / "case.json"
        case.write_text(json.dumps({"messages": [{"role": m.role, "text": m.text} for m in messages]}))
        monkeypatch.setattr(sys, "argv", ["suggest_onnx.py", str(bundle.folder), str(case)])
        known = runpy.run_path(str(ROOT / "examples" / "suggest_onnx.py"))
        assert known["window"] == window
        best = bundle_suggester(bundle).suggest(messages, 1).suggestions[0]
        assert best.template in capsys.readouterr().out.splitlines()[0]
        assert known["probability"].max() == pytest.approx(best.probability, rel=1e-4)

"""Tests of BERT through the commands: adapt, finetune by epochs, and evaluate."""

from pathlib import Path

import numpy as np
import pytest
import tiny

from jaxtempl import cli, files
from jaxtempl.__main__ import command
from jaxtempl.config.data import PrepareConfig
from jaxtempl.config.sizes import tokenizer_path
from jaxtempl.data.dataset import Dataset
from jaxtempl.data.examples import LabelledContexts
from jaxtempl.prepare import pipeline
from jaxtempl.runs import run
from jaxtempl.text import formats
from jaxtempl.text.tokenizer import Tokenizer
from jaxtempl.text.window import Window

FLAGS = ("--batch_size=4", "--gradient_accumulation_steps=1", *tiny.ONE_DEVICE)


def call(name: str, *flags: str) -> int:
    return cli.run(command(name), flags)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("bert")
    tiny.dataset(folder / "cases")
    given = {split: (str(folder / "cases" / f"{split}.jsonl"),) for split in ("train", "validation", "test")}
    pipeline.run(PrepareConfig(**given, size="bert-tiny", length=32, out=folder / "data"))
    return Dataset(folder / "data")


@pytest.fixture(scope="module")
def adapted(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("adapted") / "run"
    given = ("--size=bert-tiny", "--weights=random", f"--data={data.folder}", "--learning_rate=1e-3", *FLAGS)
    assert call("adapt", *given, "--steps=4", "--save_every=2", f"--out={out}") == 0
    return out


def test_masked_language_modelling_reduces_the_held_out_loss(adapted: Path, data: Dataset) -> None:
    losses = {}
    for step in (0, 4):
        out = adapted.parent / f"report-{step}"
        assert call("evaluate", f"--run={adapted}@{step}", f"--data={data.folder}", f"--out={out}") == 0
        report = files.read_json(out / "report.json")
        assert set(report["metrics"]) == {"loss"}
        assert 0.1 < report["counts"]["predicted"] / report["counts"]["tokens"] < 0.2
        losses[step] = report["metrics"]["loss"]["value"]
    assert losses[0] == pytest.approx(np.log(30522), rel=0.1)
    assert losses[4] < losses[0] - 0.5


def test_task_adaptive_pretraining_runs_on_the_labelled_contexts(adapted: Path, data: Dataset, tmp_path: Path) -> None:
    given = (f"--from={adapted}", f"--data={data.folder}", "--task_adaptive", "--steps=1", *FLAGS)
    assert call("adapt", *given, f"--out={tmp_path}/run") == 0
    assert run.Run(tmp_path / "run").manifest["task_adaptive"]


@pytest.mark.parametrize("select", ["validation", "test"])
def test_the_best_epoch_is_selected_and_a_report_on_the_selection_split_states_it(
    adapted: Path, data: Dataset, tmp_path: Path, select: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = (
        f"--from={adapted}",
        f"--data={data.folder}",
        "--length=32",
        "--epochs=3",
        "--batch_size=16",
        "--learning_rate=3e-3",
        *tiny.ONE_DEVICE,
    )
    assert (
        call("finetune", *given, "--gradient_accumulation_steps=1", f"--select={select}", f"--out={tmp_path}/run") == 0
    )
    found, step = run.resolve(str(tmp_path / "run"))
    measured = {m["step"]: m["validation_loss"] for m in found.metrics() if "validation_loss" in m}
    assert len(found.checkpoints.steps()) >= 3
    assert measured[step] == min(measured.values())
    assert run.resolve(f"{tmp_path}/run@last")[1] == found.checkpoints.steps()[-1]
    given = (f"--run={tmp_path}/run", f"--data={data.folder}", "--baselines=false", f"--out={tmp_path}/report")
    assert call("evaluate", *given) == 0
    assert files.read_json(tmp_path / "report" / "report.json")["chosen_here"] is (select == "test")
    told = "chosen on these same labels"
    assert (told in capsys.readouterr().err) is (select == "test")
    assert (told in (tmp_path / "report" / "index.html").read_text()) is (select == "test")


def test_a_window_is_enclosed_by_special_tokens_and_within_the_limit(data: Dataset) -> None:
    tokenizer = Tokenizer(tokenizer_path("bert-tiny"))
    contexts = LabelledContexts.read(data, "train", Window(tokenizer, 16))
    for index in range(len(contexts)):
        tokens = contexts[index].tokens
        assert len(tokens) <= 16
        assert (tokens[0], tokens[-1]) == (101, 102)
        assert not set(tokens[1:-1]) & tokenizer.special
    messages = data.cases("train")[0].messages
    whole = [i for ids in tokenizer.encode(formats.classifier_texts(messages)) for i in ids]
    assert Window(tokenizer, 64).encode(messages).ids == [101, *whole, 102]


def test_rows_longer_than_the_positions_of_bert_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.dataset(tmp_path / "made")
    given = {split: (str(tmp_path / "made" / f"{split}.jsonl"),) for split in ("train", "validation", "test")}
    pipeline.run(PrepareConfig(**given, size="bert-tiny", length=513, out=tmp_path / "data"))
    given = (
        "--size=bert-tiny",
        "--weights=random",
        f"--data={tmp_path}/data",
        f"--out={tmp_path}/run",
        "--batch_size=1",
    )
    assert call("adapt", *given) == 1
    assert "at most the model's 512 positions" in capsys.readouterr().err

"""`bin/evaluate` compares a run with the strongest baseline and with the runs of `--compare`."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from jaxtempl import cli
from jaxtempl.commands.evaluate import main
from jaxtempl.config.evaluation import EvaluateConfig
from jaxtempl.data.dataset import Dataset
from jaxtempl.data.examples import LabelledContexts
from jaxtempl.evaluation import comparison, evaluate, paired, table
from jaxtempl.evaluation.paired import PairedDifference
from jaxtempl.runs.run import Run

TEMPLATES = [tiny.template(0, "card"), tiny.template(1, "bye"), tiny.template(2, "greet")]
FEWER = 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("comparison")


@pytest.fixture(scope="module")
def data(folder: Path) -> Dataset:
    return tiny.dataset(folder / "made")


@pytest.fixture(scope="module")
def made(folder: Path, data: Dataset) -> Run:
    return tiny.make_run(folder / "all", TEMPLATES, steps=(5,), datasets={"data": data.fingerprint})


@pytest.fixture(scope="module")
def fewer(folder: Path, data: Dataset) -> Run:
    return tiny.make_run(folder / "fewer", TEMPLATES, steps=(4,), datasets={"data": data.fingerprint}, labels=FEWER)


@pytest.fixture(scope="module")
def found(folder: Path, data: Dataset, made: Run, fewer: Run) -> dict[str, Any]:
    """Compare a run with one of fewer labels, one of other weights, and one that was trained on another dataset."""
    weights, datasets = {"weights_sha256": {"model": "1"}}, {"data": data.fingerprint}
    runs = [
        fewer,
        tiny.make_run(folder / "weights", TEMPLATES, datasets=datasets, labels=7, start=weights),
        tiny.make_run(folder / "dataset", TEMPLATES, datasets={"other": "0" * 64}, labels=7),
    ]
    names = tuple(str(run.folder) for run in runs)
    return evaluate.evaluate(EvaluateConfig(run=str(made.folder), data=str(data.folder), compare=names))


@pytest.fixture(scope="module")
def without_baselines(data: Dataset, made: Run, fewer: Run, found: dict[str, Any]) -> dict[str, Any]:
    """Compare the two runs the other way round."""
    return evaluate.evaluate(
        EvaluateConfig(run=str(fewer.folder), data=str(data.folder), baselines=False, compare=(str(made.folder),))
    )


def test_the_verdict_names_the_strongest_baseline_and_each_run(found: dict[str, Any]) -> None:
    assert found["strongest"]["top1"] == "ngrams"
    assert found["verdict"][0].startswith("This run is worse than the n-grams in top-1 (-")
    for name, sentence in zip(found["compared"], found["verdict"][1:], strict=True):
        assert f"{name} in top-5" in sentence
    assert "\n".join(found["verdict"]) in table.format_table(found)


def test_runs_are_compared_on_the_same_contexts(
    made: Run, fewer: Run, found: dict[str, Any], without_baselines: dict[str, Any]
) -> None:
    compared = found["compared"][f"{fewer.folder}@4"]
    assert compared["labels"] == FEWER
    assert compared["metrics"]["top3"] == without_baselines["metrics"]["top3"]
    files = [run.folder / "evaluate-test" / "predictions.jsonl" for run in (made, fewer)]
    expected = paired.compare_predictions(*files)
    assert {top: PairedDifference.from_json(d) for top, d in compared["difference"].items()} == expected
    reverse = without_baselines["compared"][f"{made.folder}@5"]["difference"]["top1"]
    assert reverse["value"] == -expected["top1"].value
    html = (made.folder / "evaluate-test" / "index.html").read_text()
    assert all(text in html for text in (found["verdict"][0], str(fewer.folder), str(expected["top3"])))


def test_the_learning_curve_holds_runs_that_differ_in_labels_alone(
    data: Dataset, made: Run, found: dict[str, Any]
) -> None:
    curve, total = found["learning_curve"]["top1"], len(data.labels("train").slot)
    assert [point["labels"] for point in curve["points"]] == [FEWER, total]
    assert curve["points"][1]["difference"] == found["baselines"]["ngrams"]["difference"]["top1"]
    assert curve["limit"] == 8 * total
    assert "by its learning curve" in found["verdict"][0]
    assert "by its learning curve" not in found["verdict"][1]
    assert "Learning curve" in (made.folder / "evaluate-test" / "index.html").read_text()


def test_without_baselines_there_is_no_strongest_one(without_baselines: dict[str, Any]) -> None:
    assert (without_baselines["strongest"], without_baselines["learning_curve"]) == ({}, {})
    assert len(without_baselines["verdict"]) == 1


def test_the_strongest_baseline_is_chosen_on_validation(data: Dataset, made: Run) -> None:
    """In a tie, or without validation contexts, the more complex baseline is chosen."""
    contexts = LabelledContexts.read(data, "validation", made.window)
    right, wrong = np.eye(len(data.templates))[contexts.slot], np.zeros((len(contexts), len(data.templates)))
    scores = {"run": [wrong, right], "majority": [wrong, right], "ngrams": [right, wrong]}
    assert comparison.strongest(scores, contexts)["top1"] == "majority"
    assert set(comparison.strongest({**scores, "ngrams": [wrong, right]}, contexts).values()) == {"ngrams"}
    none = {name: [right, right[:0]] for name in scores}
    assert set(comparison.strongest(none, contexts.take(slice(0))).values()) == {"ngrams"}
    assert comparison.strongest({"run": [right, right]}, contexts) == {}


def test_only_classifiers_are_compared(data: Dataset, made: Run, folder: Path, capsys: Any) -> None:
    adapted = tiny.make_run(folder / "adapted", [])
    for run, compare in ((made, adapted), (adapted, made)):
        flags = [f"--run={run.folder}", f"--compare={compare.folder}", f"--data={data.folder}"]
        assert cli.run(main, flags) == 2
        assert f"--compare: {adapted.folder} is an adapt run; only finetune runs" in capsys.readouterr().err


def test_the_report_on_disk_has_the_comparison(made: Run, found: dict[str, Any]) -> None:
    stored = json.loads((made.folder / "evaluate-test" / "report.json").read_text())
    for key in ("strongest", "compared", "learning_curve", "verdict"):
        assert stored[key] == found[key]

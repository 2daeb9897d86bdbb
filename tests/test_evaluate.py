"""The `evaluate` command scores runs as direct computations do, and reports what it measured."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import optax
import pytest
import tiny

from jaxtempl import cli, files
from jaxtempl.commands.evaluate import main
from jaxtempl.config.evaluation import EvaluateConfig
from jaxtempl.data.dataset import Dataset
from jaxtempl.data.examples import LabelledContexts
from jaxtempl.errors import UserError
from jaxtempl.evaluation import classifier, evaluate
from jaxtempl.evaluation.predict import Predictor
from jaxtempl.evaluation.token_losses import TokenLosses
from jaxtempl.runs.run import Run
from jaxtempl.text import formats, window
from jaxtempl.text.cases import Case, Message

# The slots of the dataset are greet 0, bye 1, card 2, refund 3; the run numbers them differently, without `refund`.
TEMPLATES = [tiny.template(0, "card"), tiny.template(1, "never"), tiny.template(2, "bye"), tiny.template(3, "greet")]
GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny.dataset(tmp_path_factory.mktemp("evaluate") / "made")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, data: Dataset) -> Run:
    folder = tmp_path_factory.mktemp("evaluate") / "run"
    return tiny.make_run(folder, TEMPLATES, steps=(3, 5), datasets={"data": data.fingerprint})


@pytest.fixture(scope="module")
def report(data: Dataset, made: Run) -> dict[str, Any]:
    return evaluate.evaluate(EvaluateConfig(run=f"{made.folder}@5", data=str(data.folder), batch_size=4))


def labels(data: Dataset) -> list[str]:
    found = data.labels("test")
    return [str(data.cases("test")[c].messages[m].template) for c, m in zip(found.case, found.message, strict=True)]


@pytest.fixture(scope="module")
def direct(data: Dataset, made: Run) -> np.ndarray:
    """Return the logits of each test context at step 5, computed one by one without padding."""
    contexts, model = LabelledContexts.read(data, "test", made.window), tiny.language_model(made, 5)
    return np.stack([model(contexts[i].tokens)[-1] for i in range(len(contexts))])


def test_logits_keep_the_order_of_the_contexts_across_buckets(
    data: Dataset, made: Run, direct: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(window, "LENGTHS", (4, 16))
    contexts = LabelledContexts.read(data, "test", made.window)
    lengths = [len(contexts[i].tokens) for i in range(len(contexts))]
    assert min(lengths) <= 4 < max(lengths) > 16
    np.testing.assert_allclose(Predictor(made, 5).all(contexts, rows=8), direct, atol=1e-4)


def test_labels_are_matched_to_the_runs_slots_by_id(data: Dataset, direct: np.ndarray, report: dict[str, Any]) -> None:
    """The expected top-1 compares ids, not slots; `refund` and `rare` are not classes of the run."""
    ids = [TEMPLATES[slot].id for slot in direct.argmax(axis=1)]
    named = labels(data)
    expected = np.mean([a == b for a, b in zip(ids, named, strict=True)])
    assert report["metrics"]["top1"]["value"] == pytest.approx(expected)
    assert report["counts"]["no_class"] == sum(name in ("refund", "rare") for name in named) > 1
    assert report["metrics"]["top5"]["value"] == pytest.approx(1 - report["counts"]["no_class"] / len(named))


def test_cross_entropy_covers_labels_that_the_run_has(
    data: Dataset, direct: np.ndarray, report: dict[str, Any]
) -> None:
    slots = {template.id: template.slot for template in TEMPLATES}
    known = [i for i, name in enumerate(labels(data)) if name in slots]
    chosen = np.array([slots[labels(data)[i]] for i in known])
    expected = optax.softmax_cross_entropy_with_integer_labels(direct[known], chosen).mean()
    assert report["metrics"]["cross_entropy"]["value"] == pytest.approx(float(expected), rel=1e-4)


def test_the_report_states_what_was_measured(data: Dataset, made: Run, report: dict[str, Any]) -> None:
    out = made.folder / "evaluate-test"
    stored = json.loads((out / "report.json").read_text())
    assert stored == {"format": 1, **report}
    assert (stored["kind"], stored["step"], stored["phase"], stored["split"]) == ("evaluation", 5, "finetune", "test")
    assert stored["dataset"]["fingerprint"] == data.fingerprint
    assert stored["counts"]["cases"] == 6
    assert set(stored["baselines"]) == {"majority", "previous_template", "ngrams"}
    assert set(stored["seconds"]) == {"run", "baselines"}
    for found in (stored, *stored["baselines"].values()):
        assert set(found["metrics"]) == set(stored["metrics"])
        assert all(set(value) == {"value", "low", "high"} for value in found["metrics"].values())
    for found in stored["baselines"].values():
        assert set(found["difference"]) == {"top1", "top3", "top5"}
        gain = stored["metrics"]["top3"]["value"] - found["metrics"]["top3"]["value"]
        assert found["difference"]["top3"]["value"] == pytest.approx(gain)
    assert sorted(path.name for path in out.iterdir()) == ["index.html", "predictions.jsonl", "report.json"]


def test_the_ngram_baseline_learns_the_tiny_cases(report: dict[str, Any]) -> None:
    top1 = {name: found["metrics"]["top1"]["value"] for name, found in report["baselines"].items()}
    assert top1["ngrams"] > top1["majority"]
    assert top1["ngrams"] == pytest.approx(report["metrics"]["top5"]["value"])  # every label that is a class of the run


def test_predictions_have_one_line_per_context(
    data: Dataset, made: Run, direct: np.ndarray, report: dict[str, Any]
) -> None:
    lines = [
        json.loads(line) for line in (made.folder / "evaluate-test" / "predictions.jsonl").read_text().splitlines()
    ]
    assert [line["label"] for line in lines] == labels(data)
    assert [(line["case_id"], line["message"]) for line in lines[:3]] == [("case-200", m) for m in (1, 3, 5)]
    assert [line["top"][0] for line in lines] == [TEMPLATES[slot].id for slot in direct.argmax(axis=1)]
    assert all(sum(line["probability"]) == pytest.approx(1, abs=1e-5) for line in lines)
    assert [line["loss"] is None for line in lines] == [name in ("refund", "rare") for name in labels(data)]


def test_the_predictions_file_equals_the_golden_file(tmp_path: Path, made: Run) -> None:
    """Other programs read these names and formats; the numbers follow from fixed logits."""
    said = [("customer", None), ("advocate", "greet"), ("customer", None), ("advocate", "refund")]
    case = Case("case-1", tuple(Message(role, "text", name) for role, name in said))
    columns = (np.array([0, 0]), np.array([1, 3]), np.array([3, -1]))
    logits = np.array([[1, 0, 0.5, 2], [0, 3, 1, 2]], np.float32)
    classifier.write_predictions(
        tmp_path / "found.jsonl", logits, LabelledContexts(made.window, {"greet": 3}, [case], *columns), made
    )
    assert (tmp_path / "found.jsonl").read_text() == (GOLDEN / "predictions.jsonl").read_text()


def test_the_temperature_is_saved_with_its_step(data: Dataset, made: Run, report: dict[str, Any]) -> None:
    kept = files.read_json(made.folder / "calibration.json")
    known = [
        i for i in range(6) if i % 2
    ]  # indices of the `card` cases: 3 labels each; a `refund` case has 2 known labels
    fitted = {
        "temperature": report["temperature"],
        "count": 3 * len(known) + 2 * (6 - len(known)),
        "dataset": data.fingerprint,
    }
    assert kept == {"format": 1, "steps": {"5": fitted}}
    assert report["metrics"]["calibrated_cross_entropy"] != report["metrics"]["cross_entropy"]
    out = f"{made.folder}/evaluate-3"
    evaluate.evaluate(EvaluateConfig(run=f"{made.folder}@3", data=str(data.folder), baselines=False, out=out))
    both = files.read_json(made.folder / "calibration.json")["steps"]
    assert (both["5"], set(both)) == (fitted, {"3", "5"})


def test_no_temperature_is_saved_from_a_dataset_that_the_run_was_not_trained_on(
    data: Dataset, tmp_path: Path, capsys: Any
) -> None:
    other = tiny.make_run(tmp_path / "run", TEMPLATES, datasets={"other": "0" * 64})
    found = evaluate.evaluate(EvaluateConfig(run=str(other.folder), data=str(data.folder)))
    assert not found["dataset"]["trained_on"]
    assert not (other.folder / "calibration.json").exists()
    said = capsys.readouterr().err
    assert "the baselines are fitted on as many labels of this one" in said
    assert "the temperature fitted here is not saved" in said


def test_logits_that_are_not_finite_are_an_error(data: Dataset, tmp_path: Path) -> None:
    broken = tiny.make_run(tmp_path / "run", TEMPLATES)
    params = broken.params(3)
    nan = {**params, "norm": {**params["norm"], "scale": params["norm"]["scale"] * np.nan}}
    broken.checkpoints.save(4, "study", nan, None, {"step": 4})
    broken.checkpoints.wait()
    with pytest.raises(UserError, match="@4 gives logits that are not finite"):
        evaluate.evaluate(EvaluateConfig(run=f"{broken.folder}@4", data=str(data.folder)))


def test_baselines_are_fitted_on_the_labels_of_the_runs_training(data: Dataset, tmp_path: Path) -> None:
    few = tiny.make_run(tmp_path / "run", TEMPLATES, labels=4)
    found = evaluate.evaluate(EvaluateConfig(run=str(few.folder), data=str(data.folder)))
    assert 0 < sum(entry["training"] for entry in found["templates"]) <= 4


def test_the_temperature_stays_1_with_a_warning_where_there_is_no_validation(tmp_path: Path, capsys: Any) -> None:
    made, data = tiny.make_run(tmp_path / "run", TEMPLATES), tiny.dataset(tmp_path / "data", validation=0)
    assert not len(data.labels("validation").slot)
    found = evaluate.evaluate(EvaluateConfig(run=str(made.folder), data=str(data.folder), baselines=False))
    assert "temperature stays 1" in capsys.readouterr().err
    assert (found["temperature"], found["counts"]["validation"], found["baselines"]) == (1.0, 0, {})
    assert not (made.folder / "calibration.json").exists()


def test_the_page_shows_the_table_the_figures_and_the_confused_pairs(made: Run, report: dict[str, Any]) -> None:
    html = (made.folder / "evaluate-test" / "index.html").read_text()
    assert html.count("<svg") == 3
    assert all(name in html for name in ("n-grams", "Most confused", "training examples"))
    assert report["dataset"]["fingerprint"][:12] in html


def test_the_command_prints_the_table_and_the_path_of_the_page(
    data: Dataset, made: Run, tmp_path: Path, capsys: Any
) -> None:
    flags = [f"--run={made.folder}@best", f"--data={data.folder}", f"--out={tmp_path / 'out'}", "--baselines=false"]
    assert cli.run(main, flags) == 0
    out = capsys.readouterr().out
    assert "@5 on test: 6 cases, 18 contexts" in out
    assert out.rstrip().endswith(str(tmp_path / "out" / "index.html"))


def test_the_loss_of_an_adapt_run_equals_a_direct_computation(data: Dataset, tmp_path: Path) -> None:
    """The cases are joined by end-of-text and cut into rows of 32; each row predicts 31 tokens."""
    made = tiny.make_run(tmp_path / "run", [])
    found = evaluate.evaluate(EvaluateConfig(run=str(made.folder), data=str(data.folder)))
    cases = data.cases("test")
    documents = [formats.document(cases[i].messages) for i in range(len(cases))]
    stream = [i for ids in made.tokenizer.encode(documents) for i in [*ids, made.tokenizer.end_of_text]]
    model = tiny.language_model(made, 3)
    rows = [stream[start : start + 32] for start in range(0, len(stream), 32)]
    losses = np.concatenate([row_losses(model(row), row) for row in rows])
    assert found["counts"]["tokens"] == len(stream)
    assert found["counts"]["predicted"] == len(losses)
    assert found["metrics"]["loss"]["value"] == pytest.approx(np.mean(losses), rel=1e-4)
    size = sum(len(document.encode()) for document in documents)
    bits = np.mean(losses) / np.log(2) * len(stream) / size
    assert found["metrics"]["bits_a_byte"]["value"] == pytest.approx(bits, rel=1e-4)
    assert "Held-out loss" in (made.folder / "evaluate-test" / "index.html").read_text()


def test_an_adapt_run_is_evaluated_on_the_mesh_of_its_training(data: Dataset, tmp_path: Path) -> None:
    reports = []
    for name, mesh in (("one", {"data": 1, "fsdp": 1, "tensor": 1}), ("eight", {"data": 2, "fsdp": 2, "tensor": 2})):
        made = tiny.make_run(tmp_path / name, [], mesh=mesh)
        losses = TokenLosses(made, 3)
        assert losses.mesh.size == np.prod(list(mesh.values()))
        reports.append(evaluate.evaluate(EvaluateConfig(run=str(made.folder), data=str(data.folder), zero_shot=4)))
    one, eight = reports
    assert one["counts"] == eight["counts"]
    for key in ("value", "low", "high"):
        assert eight["metrics"]["loss"][key] == pytest.approx(one["metrics"]["loss"][key], rel=1e-5)
        for scores in ("likeliest", "gained"):
            pair = [report["zero_shot"][scores]["cross_entropy"][key] for report in reports]
            assert pair[1] == pytest.approx(pair[0], rel=1e-4)


def test_a_mesh_of_more_devices_than_available_is_replaced(tmp_path: Path) -> None:
    made = tiny.make_run(tmp_path / "run", [], mesh={"data": 64, "fsdp": 1, "tensor": 1})
    assert TokenLosses(made, 3).mesh.size == 8


def row_losses(logits: np.ndarray, row: list[int]) -> np.ndarray:
    return np.asarray(optax.softmax_cross_entropy_with_integer_labels(logits[:-1], np.array(row[1:])))


def test_the_dataset_is_the_runs_own_unless_another_is_named(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = tiny.make_run(tmp_path / "run", [], datasets={"/gone": "x", str(data.folder): data.fingerprint})
    report = evaluate.evaluate(EvaluateConfig(run="run"))
    assert report["dataset"]["folder"] == str(data.folder)
    assert report["dataset"]["trained_on"]
    lost = tiny.make_run(tmp_path / "lost", [], datasets={"/gone": "x"})
    with pytest.raises(UserError, match=r"the dataset of .*lost \(/gone\) is missing, .*; pass --data=DIR"):
        evaluate.evaluate(EvaluateConfig(run=str(lost.folder)))
    assert made.dataset_folder("other", "") == Path("other")


def test_an_evaluation_that_cannot_run_is_reported_in_one_line(
    data: Dataset, made: Run, tmp_path: Path, capsys: Any
) -> None:
    other = tmp_path / "mine"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    files.write_json(other / "report.json", {"kind": "evaluation"})
    for flags, code, said in [
        ([], 2, "which run?"),
        ([f"--run={tmp_path}", f"--data={data.folder}"], 1, "is not a run"),
        ([f"--run={made.folder}@4", f"--data={data.folder}"], 1, "is not a checkpoint"),
        ([f"--run={made.folder}", f"--data={tmp_path}"], 1, "is not a dataset"),
        ([f"--run={made.folder}", f"--data={data.folder}", f"--out={other}"], 1, "is no report"),
        ([f"--run={made.folder}", f"--data={data.folder}", "--split=dev"], 2, "allowed: train, validation, test"),
    ]:
        assert cli.run(main, flags) == code
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    assert (other / "thesis.txt").exists()

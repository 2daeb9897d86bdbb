"""The zero-shot exam, held to likelihoods that are added up token by token; and the loss on rows of other text."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny

from jaxtempl import files
from jaxtempl.config.data import PrepareConfig
from jaxtempl.config.evaluation import EvaluateConfig
from jaxtempl.data.dataset import Dataset
from jaxtempl.errors import UserError
from jaxtempl.evaluation import evaluate, table, zero_shot
from jaxtempl.prepare import pipeline
from jaxtempl.runs.run import Run
from jaxtempl.text import formats


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny.dataset(tmp_path_factory.mktemp("exam") / "made")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return tiny.make_run(tmp_path_factory.mktemp("exam") / "run", [], mask_documents=False)


def likelihood(run: Run, before: str, said: str) -> float:
    """Of a text after a prompt, from the logits of one whole row."""
    prompt, reply = run.tokenizer.encode([before, f" {said}\n"])
    row = [*prompt, *reply][-32:]
    logits = tiny.language_model(run, 3)(row).astype(np.float64)
    chances = logits - np.log(np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1, keepdims=True))
    chances -= logits.max(axis=1, keepdims=True)
    return sum(chances[len(row) - len(reply) + i - 1, token] for i, token in enumerate(reply))


def test_scores_are_likelihoods_added_up(run: Run, data: Dataset) -> None:
    answers = zero_shot.score_templates(run, run.params(3), data, "test", 7, 0, progress=False)
    texts = list(dict.fromkeys(template.text for template in data.templates))
    assert answers.scores.shape == (7, len(texts))
    cases = {case.case_id: case for case in data.cases("test")}
    found = set()
    for case in cases.values():
        for i, message in enumerate(case.messages):
            if message.template in tiny.REPLIES:
                before = formats.document(case.messages[:i]) + "\n<ADVOCATE>:"
                wanted = [likelihood(run, before, said) for said in texts]
                near = np.abs(answers.scores - np.array(wanted)[None]).max(axis=1) < 1e-3
                found |= set(np.flatnonzero(near & (answers.right == texts.index(tiny.REPLIES[message.template]))))
    assert found == set(range(7))
    assert answers.before == pytest.approx([likelihood(run, "<ADVOCATE>:", said) for said in texts], abs=1e-3)


def test_the_draw_is_seeded_and_nested(run: Run, data: Dataset) -> None:
    few, many, other = (
        zero_shot.score_templates(run, run.params(3), data, "test", n, seed, False)
        for n, seed in ((4, 0), (9, 0), (4, 1))
    )
    rows = {tuple(row) for row in many.scores.round(3)}
    assert {tuple(row) for row in few.scores.round(3)} <= rows
    assert few.scores.tolist() != other.scores.tolist()


def test_templates_of_one_text_are_one_answer(run: Run, data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    twin = [tiny.template(t.slot, t.id, text="Same." if t.id in ("greet", "bye") else t.text) for t in data.templates]
    monkeypatch.setattr(data, "templates", twin)
    answers = zero_shot.score_templates(run, run.params(3), data, "test", 100, 0, progress=False)
    assert answers.scores.shape[1] == len(twin) - 1


def test_the_exam_is_in_the_report_and_on_the_page(run: Run, data: Dataset, tmp_path: Path) -> None:
    asked = EvaluateConfig(run=str(run.folder), data=data.folder, zero_shot=5, out=str(tmp_path / "out"))
    report = evaluate.evaluate(asked)
    assert report["exam"]["contexts"] == 5
    for name in ("likeliest", "gained"):
        assert set(report["exam"][name]) == {"top1", "top3", "top5", "cross_entropy"}
    assert "After 5 contexts" in (tmp_path / "out" / "index.html").read_text()
    assert "exam of 5 contexts, " in table.format_table(report)
    assert "exam" not in evaluate.evaluate(
        EvaluateConfig(run=str(run.folder), data=data.folder, out=str(tmp_path / "out"))
    )


def test_what_has_no_text_cannot_be_asked_for(run: Run, data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "templates", [tiny.template(t.slot, t.id, text="") for t in data.templates])
    with pytest.raises(UserError, match="no labelled test contexts whose templates have texts; leave --zero_shot out"):
        zero_shot.score_templates(run, run.params(3), data, "test", 5, 0, progress=False)


def test_loss_on_rows_of_other_text(run: Run, tmp_path: Path) -> None:
    lines = [{"id": f"d{i}", "text": f"An article, number {i}, about cards and refunds. " * 4} for i in range(300)]
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "data"
    pipeline.run(PrepareConfig(documents=(str(tmp_path / "docs.jsonl"),), size="nano", length=32, out=out))
    asked = EvaluateConfig(run=str(run.folder), data=out, split="validation", out=str(tmp_path / "out"))
    report = evaluate.evaluate(asked)
    rows = Dataset(out).rows(run.tokenizer, "validation")
    logits = tiny.language_model(run, 3)
    total = count = 0
    for row in rows:
        real = row["tokens"][row["segments"] > 0].astype(int).tolist()
        values = logits(real).astype(np.float64)[:-1]
        total += float(
            sum(np.logaddexp.reduce(value) - value[token] for value, token in zip(values, real[1:], strict=True))
        )
        count += len(real) - 1
    assert report["counts"]["rows"] == len(rows) > 1
    assert report["metrics"]["loss"]["value"] == pytest.approx(total / count, rel=1e-5)
    counted = files.read_json(out / "manifest.json")["counts"]
    assert report["counts"]["bytes"] == pytest.approx(counted["text_bytes"]["validation"], rel=1e-6, abs=1)
    assert "rows of other text" in (tmp_path / "out" / "index.html").read_text()
    with pytest.raises(UserError, match="has no test cases"):
        evaluate.evaluate(EvaluateConfig(run=str(run.folder), data=out, out=str(tmp_path / "other")))

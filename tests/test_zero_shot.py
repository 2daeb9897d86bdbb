"""Zero-shot scores and the loss on rows of other text equal log-likelihoods that are summed token by token."""

import json
from collections.abc import Callable
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
from jaxtempl.evaluation.token_losses import TokenLosses
from jaxtempl.prepare import pipeline
from jaxtempl.runs.run import Run
from jaxtempl.text import formats

LENGTH = 32  # tokens per row of the run
LanguageModel = Callable[[list[int]], np.ndarray]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny.dataset(tmp_path_factory.mktemp("zero_shot") / "transcripts")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return tiny.make_run(tmp_path_factory.mktemp("zero_shot") / "run", [], mask_documents=False)


@pytest.fixture(scope="module")
def losses(run: Run) -> TokenLosses:
    return TokenLosses(run, 3)


@pytest.fixture(scope="module")
def log_probabilities(run: Run) -> LanguageModel:
    """Return a function for the next token's log-probabilities at each position; padding keeps one compiled shape."""
    model = tiny.language_model(run, 3)

    def evaluate(row: list[int]) -> np.ndarray:
        logits = model([*row, *[0] * (LENGTH - len(row))])[: len(row)].astype(np.float64)
        return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)

    return evaluate


def log_likelihood(run: Run, log_probabilities: LanguageModel, before: str, text: str) -> float:
    """Return the log-likelihood of a text after a prompt, summed token by token over one whole row."""
    prompt, reply = run.tokenizer.encode([before, f" {text}\n"])
    row = [*prompt, *reply][-LENGTH:]
    by_token = log_probabilities(row)
    return sum(by_token[len(row) - len(reply) + i - 1, token] for i, token in enumerate(reply))


def test_scores_equal_summed_log_likelihoods(
    run: Run, losses: TokenLosses, log_probabilities: LanguageModel, data: Dataset
) -> None:
    answers = zero_shot.score_templates(losses, data, "test", 7, 0, progress=False)
    texts = list(dict.fromkeys(template.text for template in data.templates))
    assert answers.scores.shape == (7, len(texts))
    matched = set()
    for case in data.cases("test"):
        for i, message in enumerate(case.messages):
            if message.template in tiny.REPLIES:
                before = formats.document(case.messages[:i]) + "\n<ADVOCATE>:"
                expected = [log_likelihood(run, log_probabilities, before, text) for text in texts]
                near = np.abs(answers.scores - np.array(expected)[None]).max(axis=1) < 1e-3
                matched |= set(np.flatnonzero(near & (answers.right == texts.index(tiny.REPLIES[message.template]))))
    assert matched == set(range(7))
    after_tag = [log_likelihood(run, log_probabilities, "<ADVOCATE>:", text) for text in texts]
    assert answers.before == pytest.approx(after_tag, abs=1e-3)


def test_the_sample_of_contexts_is_seeded_and_nested(losses: TokenLosses, data: Dataset) -> None:
    few, many, other = (
        zero_shot.score_templates(losses, data, "test", n, seed, False) for n, seed in ((4, 0), (9, 0), (4, 1))
    )
    rows = {tuple(row) for row in many.scores.round(3)}
    assert {tuple(row) for row in few.scores.round(3)} <= rows
    assert few.scores.tolist() != other.scores.tolist()


def test_templates_with_equal_texts_are_one_answer(
    losses: TokenLosses, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    twin = [tiny.template(t.slot, t.id, text="Same." if t.id in ("greet", "bye") else t.text) for t in data.templates]
    monkeypatch.setattr(data, "templates", twin)
    answers = zero_shot.score_templates(losses, data, "test", 100, 0, progress=False)
    assert answers.scores.shape[1] == len(twin) - 1


def test_scores_are_in_the_report_and_on_the_page(run: Run, data: Dataset, tmp_path: Path) -> None:
    config = EvaluateConfig(run=str(run.folder), data=str(data.folder), zero_shot=5, out=str(tmp_path / "out"))
    report = evaluate.evaluate(config)
    assert report["zero_shot"]["contexts"] == 5
    for name in ("likeliest", "gained"):
        assert set(report["zero_shot"][name]) == {"top1", "top3", "top5", "cross_entropy"}
    assert "After 5 contexts" in (tmp_path / "out" / "index.html").read_text()
    assert "zero-shot, 5 contexts, " in table.format_table(report)
    assert "zero_shot" not in evaluate.evaluate(
        EvaluateConfig(run=str(run.folder), data=str(data.folder), out=str(tmp_path / "out"))
    )


def test_templates_without_text_are_rejected(
    losses: TokenLosses, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "templates", [tiny.template(t.slot, t.id, text="") for t in data.templates])
    with pytest.raises(UserError, match="no labelled test contexts whose templates have texts; leave --zero_shot out"):
        zero_shot.score_templates(losses, data, "test", 5, 0, progress=False)


def test_the_loss_on_rows_of_other_text_equals_a_sum_token_by_token(
    run: Run, log_probabilities: LanguageModel, tmp_path: Path
) -> None:
    lines = [{"id": f"d{i}", "text": f"An article, number {i}, about cards and refunds. " * 4} for i in range(300)]
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "data"
    pipeline.run(PrepareConfig(documents=(str(tmp_path / "docs.jsonl"),), size="nano", length=32, out=out))
    config = EvaluateConfig(run=str(run.folder), data=str(out), split="validation", out=str(tmp_path / "out"))
    report = evaluate.evaluate(config)
    rows = Dataset(out).rows(run.tokenizer, "validation")
    total = count = 0
    for row in rows:
        real = row["tokens"][row["segments"] > 0].astype(int).tolist()
        total -= float(log_probabilities(real)[np.arange(len(real) - 1), real[1:]].sum())
        count += len(real) - 1
    assert report["counts"]["rows"] == len(rows) > 1
    assert report["metrics"]["loss"]["value"] == pytest.approx(total / count, rel=1e-5)
    counted = files.read_json(out / "manifest.json")["counts"]
    assert report["counts"]["bytes"] == pytest.approx(counted["text_bytes"]["validation"], rel=1e-6, abs=1)
    assert "rows of other text" in (tmp_path / "out" / "index.html").read_text()
    with pytest.raises(UserError, match="has no test cases"):
        evaluate.evaluate(EvaluateConfig(run=str(run.folder), data=str(out), out=str(tmp_path / "other")))

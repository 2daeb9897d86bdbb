"""Analysis, figures, equivalent tokens and advice on rows that known laws generated."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scaled import SIZES, STEPS, domain_loss, loss, row, study_rows, use_fast_fits, write

from jaxtempl import files
from jaxtempl.commands import scaling
from jaxtempl.config.scaling import ScalingAdviseConfig
from jaxtempl.errors import UsageError, UserError
from jaxtempl.reports import html
from jaxtempl.scaling import equivalents, figures, report
from jaxtempl.scaling.advice import Constraints
from jaxtempl.scaling.advise import Adviser
from jaxtempl.scaling.columns import ResultRow
from jaxtempl.scaling.laws import analysis, catalog, fitting, hypotheses, selection, summaries
from jaxtempl.scaling.laws.analysis import Analysis, LawResult
from jaxtempl.scaling.laws.forecast import Forecaster, Scenario
from jaxtempl.scaling.study import architecture_of
from jaxtempl.specs import flops
from jaxtempl.specs.accelerators import ACCELERATORS


@pytest.fixture(autouse=True, scope="module")
def fast_fits() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        use_fast_fits(patch)
        yield


@pytest.fixture(scope="module")
def rows() -> list[ResultRow]:
    return study_rows()


@pytest.fixture(scope="module")
def analysed(rows: list[ResultRow]) -> Analysis:
    return analysis.analyse(rows)


def pooled_law(analysed: Analysis, law: str, quantity: str) -> LawResult:
    """Return the result of a law over all sizes."""
    (result,) = [r for r in analysed.laws if (r.law, r.quantity) == (law, quantity) and "nano" not in r.subset]
    return result


def test_the_generating_laws_hold_and_others_are_rejected(analysed: Analysis) -> None:
    path, chinchilla = (
        pooled_law(analysed, "law of the whole path", "loss"),
        pooled_law(analysed, "Chinchilla's law", "domain_loss"),
    )
    assert not path.rejection
    assert not chinchilla.rejection
    assert path.parameters["f"].low <= 0.35 <= path.parameters["f"].high
    assert chinchilla.parameters["a"].low <= 0.35 <= chinchilla.parameters["a"].high
    assert chinchilla.heldout_error < 0.01
    assert "with twice the tokens" in chinchilla.summary
    compute = pooled_law(analysed, "power law in operations", "domain_loss")
    assert compute.rejection
    assert compute.summary.startswith("The law does not hold: ")
    assert set(analysed.common_curves) == {"domain_loss", "loss"}
    assert analysed.common_curves["domain_loss"].p < 1e-6


def test_every_law_of_the_issue_is_fitted(analysed: Analysis) -> None:
    names = {law.law for law in analysed.laws}
    assert names >= {
        "power law in operations",
        "power law in labels",
        "power law in tokens",
        "rectified law of labels",
        "log law of top-k in tokens",
        "bounded law of top-k in tokens",
        "data-constrained law",
        "D-CPT law",
    }
    assert {trend.corpus for trend in analysed.trends} == {"domain", "half", "other"}
    assert all(trend.directions["loss"] == "falls" for trend in analysed.trends if trend.corpus == "domain")
    (half, domain) = sorted(analysed.efficiency, key=lambda corpus: corpus.special != "half")
    assert (half.special, domain.special, domain.general) == ("half", "domain", "other")
    assert domain.ratio.by_size
    assert all(one.value > 1 for one in domain.ratio.by_size.values())
    assert analysed.forgetting["nano-1.3m, domain"].slope.value > 0
    general = next(law for law in analysed.laws if law.quantity == "general_loss")
    assert set(analysed.critical_shares) == (set() if general.rejection else set(SIZES))


def test_a_corpus_of_neither_kind_of_text_is_excluded_from_mixtures() -> None:
    aligned = [row("nano-0.6m", 75, alignment=0.8), row("nano-0.6m", 75, corpus="other", alignment=0.1)]
    unrelated = row("nano-0.6m", 75, corpus="half", alignment=0.1, domain_weight=1.0)
    assert hypotheses.domain_and_general([*aligned, unrelated]) == aligned


def test_the_critical_share_holds_the_general_loss_within_its_limit(rows: list[ResultRow]) -> None:
    theta = np.array([2.9, -20.0, 1.0, -20.0, 0.1, 1.0, np.log(0.2), 1.0])  # 2.9 + 0.2 / (share + 0.01)
    law = hypotheses.GENERAL_MIXTURE
    fit = fitting.Fit(law, selection.observations(law, rows, "general_loss"), theta, np.stack([theta] * 2))
    given = LawResult(law.name, "", "", "general_loss", "", 9, {}, 1.0, 0.0, "", "", fit)
    shares = analysis.critical_shares(rows, [given])
    bases = {row["size"]: row["general_loss"] for row in rows if row["start"] == "base"}
    assert shares == pytest.approx({size: 1.01 - 0.2 / (1.1 * base - 2.9) for size, base in bases.items()}, abs=1e-3)
    assert analysis.critical_shares(rows, []) == {}


def test_language_model_losses_are_counted_once_per_model() -> None:
    rows = [row("nano-0.6m", 75), row("nano-0.6m", 75, seed=1), row("nano-0.6m", 0)]
    language, cells = (selection.observations(catalog.IN_TOKENS, rows, name) for name in ("domain_loss", "loss"))
    assert (len(language.y), len(cells.y)) == (1, 2)
    assert cells.x[:, 0].tolist() == [614_400, 614_400]


def test_an_untrained_size_is_predicted(rows: list[ResultRow]) -> None:
    forecaster = Forecaster([row for row in rows if row["size"] != "nano-1.9m"])
    n = flops.parameter_count(architecture_of("nano-1.9m"), embeddings=False)
    predicted = forecaster.predict(Scenario(n, 600 * 8192, 4000))
    assert predicted["loss"].value == pytest.approx(loss(n, 600 * 8192, 4000), rel=0.01)
    assert predicted["loss"].low <= loss(n, 600 * 8192, 4000) <= predicted["loss"].high
    assert predicted["domain_loss"].value == pytest.approx(domain_loss(n, 600 * 8192, 1.0), rel=0.01)
    assert 0 < predicted["top1"].low < predicted["top1"].value < predicted["top1"].high < predicted["top5"].high < 1
    ratio = forecaster.predict_ratio("loss", Scenario(n, 4e6, 4000), Scenario(n, 4e6, 8000))
    assert ratio
    assert ratio.low < ratio.value < ratio.high < 1
    cells = forecaster.influential_cells("loss", Scenario(n, 4e6, 64_000))
    assert cells[0][0].split("_")[2] in ("64000", "32000")
    assert sum(share for _, share in cells) == pytest.approx(1)


def constraints(**changes: Any) -> Constraints:
    default = Constraints(2e6, 16_000.0, 24.0, 100.0, ACCELERATORS["a10"], 0.4, 0.5, 1.0, 4.0)
    return default._replace(**changes)


def test_advice_is_the_best_configuration_within_the_constraints(rows: list[ResultRow]) -> None:
    best = Adviser(rows, constraints()).advise()
    assert best.plan.expected["loss"].value <= min(other.expected["loss"].value for other in best.others)
    assert best.plan.latency_ms < 100
    assert best.verdict == "keep adapting"
    labels = next(doubling for doubling in best.doublings if doubling.what == "labels")
    assert labels.dollars == pytest.approx(8_000, rel=0.01)
    assert labels.loss.value < 1
    assert len(best.leans_on) == 5
    assert best.next_experiment.size in SIZES
    assert 0 < best.next_experiment.narrowing < 1
    small = Adviser(rows, constraints(gpu_hours=1e-3)).advise()
    assert small.plan.gpu_hours <= 1e-3
    assert small.plan.expected["loss"].value >= best.plan.expected["loss"].value


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": 300_000.0}, "--labels=300,000 is outside 62 to 256,000, which is 4 times beyond the study"),
        ({"latency_ms": 1.0}, "no size that the law predicts answers within 1 ms"),
        ({"gpu_hours": 1e-6}, "trains within 1e-06 hours"),
    ],
)
def test_impossible_constraints_are_rejected(rows: list[ResultRow], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message.replace("(", ".")):
        Adviser(rows, constraints(**changes)).advise()
    if "labels" in changes:
        assert Adviser(rows, constraints(**changes, extrapolate=10.0)).advise().plan.labels == 300_000


def test_advice_states_when_to_stop_and_when_to_switch() -> None:
    flat = [row(size, step, labels) for size in SIZES for step in STEPS for labels in (1000, 4000, 16000)]
    for one in flat:
        one["loss"] = loss(one["parameters_body"], 1e12, one["labels"]) * (1 + 1e-4 * (one["adapt_step"] % 7))
    assert Adviser(flat, constraints()).advise().verdict == "stop adapting"
    steep = [row(size, step, labels) for size in SIZES for step in STEPS for labels in (1000, 4000, 16000)]
    short = Adviser(steep, constraints(labels=1000.0, gpu_hours=2e-4)).advise()
    assert short.verdict == "keep adapting"
    assert next(doubling for doubling in short.doublings if doubling.what == "tokens").loss.value < 0.99
    for one in steep:
        one["top1"] = 0.5 + 0.01 * (one["adapt_step"] % 150 == 0)
    assert Adviser(steep, constraints()).advise().verdict == "switch corpus"
    with pytest.raises(UserError, match="3 adapted cells are too few"):
        Adviser(steep[:3], constraints())


def test_the_commands_write_a_page_and_advice(
    tmp_path: Path, rows: list[ResultRow], analysed: Analysis, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(report, "analyse", lambda _: analysed)
    partial = [*rows, row("nano-0.6m", 75, variant="tags"), row("nano-1.3m", 300, corpus="half", finished=False)]
    folder = write(tmp_path / "study", partial)
    lines = "".join(
        json.dumps({"step": s, "loss": 3 - s / 600, "validation_loss": 3.1 - s / 600}) + "\n" for s in STEPS
    )
    (folder / "adapted" / "nano-0.6m_domain").mkdir(parents=True)
    (folder / "adapted" / "nano-0.6m_domain" / "metrics.jsonl").write_text(lines + '{"step": 7')
    scaling.main(["report", f"--runs={folder}", "--match=nano-1.3m@2000000"])
    printed = capsys.readouterr().out
    assert "nano-1.9m: " in printed
    assert "by its measured curve" in printed
    page = (folder / "report" / "index.html").read_text()
    for text in (
        "Table 3",
        "(Figure 3)",
        "(Figure 8)",
        "(Figure 9)",
        "Equivalent tokens",
        "Ablations",
        "partial curve",
    ):
        assert text in page
    assert {path.stem for path in (folder / "report").glob("*.png")} >= {
        *("figure-3a", "figure-3b", "figure-3c", "figure-8a-top1", "figure-8b-top3", "figure-8c-top5", "figure-9a"),
        *("figure-9b", "labels-loss", "labels-top1", "uplift", "efficiency", "forgetting"),
    }
    assert files.read_json(folder / "report" / "report.json")["loss_to_loss"]["pooled"]["slope"]["value"] > 0
    scaling.main(["advise", f"--runs={folder}", "--labels=8000"])
    assert capsys.readouterr().out.splitlines()[-1].startswith(("The most influential cells are", "Warning"))
    scaling.main(["advise", f"--runs={folder}", "--labels=8000", "--json=true"])
    printed = capsys.readouterr().out
    assert json.loads(printed[printed.index("{") :])["plan"]["labels"] == 8000


@pytest.mark.parametrize(
    ("match", "message"),
    [
        ("70m@5", "the study has curves of nano-0.6m"),
        ("nano-0.6m", "is not SIZE@TOKENS"),
        ("nano-0.6m@5", "was measured from 614,400 to 4,915,200 tokens"),
    ],
)
def test_unanswerable_matches_are_rejected(rows: list[ResultRow], analysed: Analysis, match: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        equivalents.Equivalents(rows, analysed.laws).query(match)


def test_matching_tokens_have_the_same_loss(rows: list[ResultRow], analysed: Analysis) -> None:
    queries = equivalents.Equivalents(rows, analysed.laws)
    small, large = queries.curves["nano-0.9m"], queries.curves["nano-1.3m"]
    answers = {answer.size: answer for answer in queries.matching("nano-1.3m", float(large[1][2]))}
    tokens = answers["nano-0.9m"].tokens
    if tokens is not None and tokens <= small[0][-1]:
        assert np.interp(np.log(tokens), np.log(small[0]), small[1]) == pytest.approx(large[1][2], rel=1e-3)
    assert answers["nano-1.9m"].tokens is not None


def test_missing_and_wrong_flags_are_rejected() -> None:
    for command in ("report", "advise"):
        with pytest.raises(UsageError, match="--runs=DIR"):
            scaling.main([command])
    with pytest.raises(UsageError, match="--device=none cannot train"):
        scaling.main(["advise", "--runs=x", "--device=none"])
    assert ScalingAdviseConfig().device == "a10"


@pytest.mark.parametrize(
    ("value", "written"),
    [(1000.0, "1,000"), (2e6, "2 M"), (5e9, "5 G"), (1e13, "10¹³"), (2e13, "2·10¹³"), (0.5, "0.5")],
)
def test_axis_numbers_are_short(value: float, written: str) -> None:
    assert html.format_tick(value) == written


def test_a_law_with_under_covering_intervals_has_a_warning(monkeypatch: pytest.MonkeyPatch, analysed: Analysis) -> None:
    fit = pooled_law(analysed, "Chinchilla's law", "domain_loss").fit
    monkeypatch.setattr(summaries, "under_covering", lambda: {"Chinchilla's law": 0.4})
    assert "too narrow: they covered the truth in 40% of simulations" in summaries.coverage_warning(fit)


def test_figures_mark_partial_curves() -> None:
    rows = [row(size, step, finished=size != "nano-0.9m") for size in SIZES[:2] for step in (0, *STEPS[:4])]
    drawn = figures.StudyFigures(rows, Analysis([], analysis.LossToLoss(None, {}, None), {}, [], {}, [], {}))
    (axes,) = drawn.plot("tokens", "loss").axes
    labels = [line.get_label() for line in axes.lines if not str(line.get_label()).startswith("_")]
    assert labels == ["nano-0.6m", "nano-0.9m (partial curve)"]


def test_figure_3c_leaves_out_the_bases_and_has_intervals() -> None:
    rows = [row(size, step) for size in SIZES[:2] for step in (0, *STEPS[:4])]
    for one in rows:
        one["domain_loss"] *= 1 if one["adapt_step"] else 50
    drawn = figures.StudyFigures(rows, Analysis([], analysis.LossToLoss(None, {}, None), {}, [], {}, [], {}))
    (axes,) = drawn.loss_to_loss().axes
    assert axes.get_xlim()[1] < min(one["domain_loss"] for one in rows if not one["adapt_step"])
    assert len(axes.collections) == 2  # error bars of each size

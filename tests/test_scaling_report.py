"""From rows that are known to be of laws: what is found, drawn, matched and advised."""

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scaled import SIZES, STEPS, domain_loss, loss, made, row, write

from jaxtempl import files
from jaxtempl.config.scaling import ScalingAdviseConfig
from jaxtempl.errors import UsageError, UserError
from jaxtempl.reports import html
from jaxtempl.scaling import advice, advise, equivalents, figures, report
from jaxtempl.scaling.advice import Adviser, Wishes
from jaxtempl.scaling.laws import analysis, data, fitting, summaries
from jaxtempl.scaling.laws.analysis import Findings
from jaxtempl.scaling.laws.forecast import Outlook, Point
from jaxtempl.scaling.study import architecture_of
from jaxtempl.specs import flops
from jaxtempl.specs.accelerators import ACCELERATORS


@pytest.fixture(autouse=True, scope="module")
def quick() -> Any:
    """Fewer starts and resamples: the points are nearly without noise."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"STARTS": 20, "KEPT": 2, "ITERATIONS": 200, "ROUNDS": 30}.items():
            patch.setattr(fitting, name, value)
        yield


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return made()


@pytest.fixture(scope="module")
def found(rows: list[dict[str, Any]]) -> Findings:
    return analysis.of(rows)


def held(found: Findings, law: str, quantity: str) -> analysis.Finding:
    (one,) = [f for f in found.laws if (f.law, f.quantity) == (law, quantity) and "nano" not in f.where]
    return one


def test_the_laws_that_made_the_rows_are_found_and_others_refused(found: Findings) -> None:
    path, chinchilla = held(found, "law of the whole path", "loss"), held(found, "Chinchilla's law", "domain_loss")
    assert not path.refused
    assert not chinchilla.refused
    assert path.parameters["f"].low <= 0.35 <= path.parameters["f"].high
    assert chinchilla.parameters["a"].low <= 0.35 <= chinchilla.parameters["a"].high
    assert chinchilla.foretold < 0.01
    assert "twice the tokens to" in chinchilla.says
    compute = held(found, "power law in operations", "domain_loss")
    assert compute.refused
    assert compute.says.startswith("No such law here: ")
    assert set(found.one_curve) == {"domain_loss", "loss"}
    assert found.one_curve["domain_loss"].p < 1e-6


def test_every_law_of_the_issue_is_asked(found: Findings) -> None:
    asked = {law.law for law in found.laws}
    assert asked >= {
        "power law in operations",
        "power law in labels",
        "power law in tokens",
        "rectified law of labels",
        "log law of top-k in tokens",
        "bounded law of top-k in tokens",
        "data-constrained law",
        "D-CPT law",
    }
    assert {trend.corpus for trend in found.trends} == {"domain", "half", "other"}
    assert all(trend.directions["loss"] == "falls" for trend in found.trends if trend.corpus == "domain")
    (half, domain) = sorted(found.worth, key=lambda worth: worth.special != "half")
    assert (half.special, domain.special, domain.general) == ("half", "domain", "other")
    assert domain.ratio.by_size
    assert all(one.value > 1 for one in domain.ratio.by_size.values())
    assert found.forgetting["nano-1.3m, domain"].slope.value > 0
    general = next(law for law in found.laws if law.quantity == "general_loss")
    assert set(found.critical) == (set() if general.refused else set(SIZES))


def test_a_corpus_of_neither_text_is_in_no_mixture() -> None:
    named = [row("nano-0.6m", 75, alignment=0.8), row("nano-0.6m", 75, corpus="other", alignment=0.1)]
    alien = row("nano-0.6m", 75, corpus="half", alignment=0.1, domain_weight=1.0)
    assert analysis._of_the_domain([*named, alien]) == named


def test_the_share_that_guards_the_general_loss_is_told(rows: list[dict[str, Any]]) -> None:
    theta = np.array([np.log(2.9), -20.0, 1.0, -20.0, 0.1, 1.0, np.log(0.2), 1.0])  # 2.9 + 0.2 / (share + 0.01)
    law = analysis.OF_GENERAL
    fit = fitting.Fit(law, data.points(law, rows, "general_loss"), theta, np.stack([theta] * 2))
    given = analysis.Finding(law.name, "", "", "general_loss", "", 9, {}, 1.0, 0.0, "", "", fit)
    shares = analysis._critical(rows, [given])
    bases = {row["size"]: row["general_loss"] for row in rows if row["start"] == "base"}
    assert shares == pytest.approx({size: 1.01 - 0.2 / (1.1 * base - 2.9) for size, base in bases.items()}, abs=1e-3)
    assert analysis._critical(rows, []) == {}


def test_points_are_of_models_once_and_of_cells_each() -> None:
    rows = [row("nano-0.6m", 75), row("nano-0.6m", 75, seed=1), row("nano-0.6m", 0)]
    language, cells = (data.points(analysis.catalog.IN_TOKENS, rows, name) for name in ("domain_loss", "loss"))
    assert (len(language.y), len(cells.y)) == (1, 2)
    assert cells.x[:, 0].tolist() == [614_400, 614_400]


def test_a_size_that_was_not_trained_is_foretold(rows: list[dict[str, Any]]) -> None:
    outlook = Outlook([row for row in rows if row["size"] != "nano-1.9m"])
    n = flops.parameter_count(architecture_of("nano-1.9m"), embeddings=False)
    said = outlook.at(Point(n, 600 * 8192, 4000))
    assert said["loss"].value == pytest.approx(loss(n, 600 * 8192, 4000), rel=0.01)
    assert said["loss"].low <= loss(n, 600 * 8192, 4000) <= said["loss"].high
    assert said["domain_loss"].value == pytest.approx(domain_loss(n, 600 * 8192, 1.0), rel=0.01)
    assert 0 < said["top1"].low < said["top1"].value < said["top1"].high < said["top5"].high < 1
    change = outlook.change("loss", Point(n, 4e6, 4000), Point(n, 4e6, 8000))
    assert change
    assert change.low < change.value < change.high < 1
    leans = outlook.leans_on("loss", Point(n, 4e6, 64_000))
    assert leans[0][0].split("_")[2] in ("64000", "32000")
    assert sum(share for _, share in leans) == pytest.approx(1)


@pytest.fixture
def known(rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """The laws of the rows, fitted once."""
    monkeypatch.setattr(advice, "Outlook", lambda _: fitted(len(rows)))


@functools.cache
def fitted(count: int) -> Outlook:
    return Outlook(made()[:count])


def wishes(**changes: Any) -> Wishes:
    given = Wishes(2e6, 16_000.0, 24.0, 100.0, ACCELERATORS["a10"], 0.4, 0.5, 1.0, 4.0)
    return given._replace(**changes)


@pytest.mark.usefixtures("known")
def test_advice_is_the_best_that_fits(rows: list[dict[str, Any]]) -> None:
    best = Adviser(rows, wishes()).advice()
    assert best.plan.expected["loss"].value <= min(other.expected["loss"].value for other in best.others)
    assert best.plan.latency_ms < 100
    assert best.verdict == "keep adapting"
    labels = next(doubling for doubling in best.doublings if doubling.what == "labels")
    assert labels.dollars == pytest.approx(8_000, rel=0.01)
    assert labels.loss.value < 1
    assert len(best.leans_on) == 5
    small = Adviser(rows, wishes(gpu_hours=1e-3)).advice()
    assert small.plan.gpu_hours <= 1e-3
    assert small.plan.expected["loss"].value >= best.plan.expected["loss"].value


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"labels": 300_000.0}, "--labels=300,000 is outside what the study can speak of, 62 to 256,000 labels"),
        ({"latency_ms": 1.0}, "no size answers within 1 ms"),
        ({"gpu_hours": 1e-6}, "trained within 1e-06 hours"),
    ],
)
def test_advice_that_cannot_be_given_is_refused(rows: list[dict[str, Any]], changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said.replace("(", ".")):
        Adviser(rows, wishes(**changes)).advice()
    if "labels" in changes:
        assert Adviser(rows, wishes(**changes, extrapolate=10.0)).advice().plan.labels == 300_000


def test_advice_tells_when_to_stop_and_when_to_switch() -> None:
    flat = [row(size, step, labels) for size in SIZES for step in STEPS for labels in (1000, 4000, 16000)]
    for one in flat:
        one["loss"] = loss(one["parameters_body"], 1e12, one["labels"]) * (1 + 1e-4 * (one["adapt_step"] % 7))
    assert Adviser(flat, wishes()).advice().verdict == "stop adapting"
    steep = [row(size, step, labels) for size in SIZES for step in STEPS for labels in (1000, 4000, 16000)]
    short = Adviser(steep, wishes(labels=1000.0, gpu_hours=2e-4)).advice()
    assert short.verdict == "keep adapting"
    assert next(doubling for doubling in short.doublings if doubling.what == "tokens").loss.value < 0.99
    for one in steep:
        one["top1"] = 0.5 + 0.01 * (one["adapt_step"] % 150 == 0)
    assert Adviser(steep, wishes()).advice().verdict == "switch corpus"
    with pytest.raises(UserError, match="3 adapted cells are too few"):
        Adviser(steep[:3], wishes())


def test_the_commands_write_a_page_and_say_what_they_advise(
    tmp_path: Path, rows: list[dict[str, Any]], found: Findings, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(analysis, "of", lambda _: found)
    partial = [*rows, row("nano-0.6m", 75, variant="tags"), row("nano-1.3m", 300, corpus="half", finished=False)]
    folder = write(tmp_path / "study", partial)
    lines = "".join(
        json.dumps({"step": s, "loss": 3 - s / 600, "validation_loss": 3.1 - s / 600}) + "\n" for s in STEPS
    )
    (folder / "adapted" / "nano-0.6m_domain").mkdir(parents=True)
    (folder / "adapted" / "nano-0.6m_domain" / "metrics.jsonl").write_text(lines)
    report.main([f"--runs={folder}", "--match=nano-1.3m@2000000"])
    told = capsys.readouterr().out
    assert "nano-1.9m: " in told
    assert "by its measured curve" in told
    page = (folder / "report" / "index.html").read_text()
    for text in (
        "Table 3",
        "(Figure 3)",
        "(Figure 8)",
        "(Figure 9)",
        "Equivalent tokens",
        "Ablations",
        "part of a curve",
    ):
        assert text in page
    assert {path.stem for path in (folder / "report").glob("*.png")} >= {
        *("figure-3a", "figure-3b", "figure-3c", "figure-8a-top1", "figure-8b-top3", "figure-8c-top5", "figure-9a"),
        *("figure-9b", "labels-loss", "labels-top1", "uplift", "worth", "forgetting"),
    }
    assert files.read_json(folder / "report" / "report.json")["loss_to_loss"]["pooled"]["slope"]["value"] > 0
    advise.main([f"--runs={folder}", "--labels=8000"])
    assert capsys.readouterr().out.splitlines()[-1].startswith(("It leans most on", "Beware"))
    advise.main([f"--runs={folder}", "--labels=8000", "--json=true"])
    told = capsys.readouterr().out
    assert json.loads(told[told.index("{") :])["plan"]["labels"] == 8000


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("70m@5", "the study has curves of nano-0.6m"),
        ("nano-0.6m", "is not SIZE@TOKENS"),
        ("nano-0.6m@5", "was measured from 614,400 to 4,915,200 tokens"),
    ],
)
def test_what_cannot_be_matched_is_told(rows: list[dict[str, Any]], found: Findings, asked: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        equivalents.Equivalents(rows, found.laws).query(asked)


def test_matches_are_where_the_curves_have_the_same_loss(rows: list[dict[str, Any]], found: Findings) -> None:
    known = equivalents.Equivalents(rows, found.laws)
    small, large = known.curves["nano-0.9m"], known.curves["nano-1.3m"]
    answers = {answer.size: answer for answer in known.matching("nano-1.3m", float(large[1][2]))}
    tokens = answers["nano-0.9m"].tokens
    if tokens is not None and tokens <= small[0][-1]:
        assert np.interp(np.log(tokens), np.log(small[0]), small[1]) == pytest.approx(large[1][2], rel=1e-3)
    assert answers["nano-1.9m"].tokens is not None


def test_wrong_use_is_told() -> None:
    for main in (report.main, advise.main):
        with pytest.raises(UsageError, match="--runs=DIR"):
            main([])
    with pytest.raises(UsageError, match="--device=none trains nothing"):
        advise.main(["--runs=x", "--device=none"])
    assert ScalingAdviseConfig().device == "a10"


@pytest.mark.parametrize(
    ("value", "written"),
    [(1000.0, "1,000"), (2e6, "2 M"), (5e9, "5 G"), (1e13, "10¹³"), (2e13, "2·10¹³"), (0.5, "0.5")],
)
def test_numbers_of_an_axis_are_short(value: float, written: str) -> None:
    assert html.format_tick(value) == written


def test_a_law_that_under_covers_says_so(monkeypatch: pytest.MonkeyPatch, found: Findings) -> None:
    fit = held(found, "Chinchilla's law", "domain_loss").fit
    monkeypatch.setattr(summaries, "under_covering", lambda: {"Chinchilla's law": 0.4})
    assert "too narrow: of data made by it they held the truth in 40%" in summaries.believed(fit)


def test_figures_show_what_was_never_finished() -> None:
    rows = [row(size, step, finished=size != "nano-0.9m") for size in SIZES[:2] for step in (0, *STEPS[:4])]
    drawer = figures.Drawer(rows, Findings([], analysis.Pair(None, {}, None), {}, [], {}, [], {}))
    (axes,) = drawer.against("tokens", "loss").axes
    labels = [line.get_label() for line in axes.lines if not str(line.get_label()).startswith("_")]
    assert labels == ["nano-0.6m", "nano-0.9m (part of a curve)"]

"""Laws on anyone's table: published numbers, other units, a floor at zero, refusals, and the command."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from jaxtempl import files
from jaxtempl.commands import scaling
from jaxtempl.config.paths import ROOT
from jaxtempl.errors import UserError
from jaxtempl.scaling import fit_report, laws
from jaxtempl.scaling.laws import bootstrap, catalog, fitting, goodness_of_fit, special_forms
from jaxtempl.scaling.laws.fitting import Observations
from jaxtempl.scaling.laws.forms import Law, scales_of
from jaxtempl.scaling.laws.ground_truth import GROUND_TRUTHS

GOLDEN = ROOT / "tests" / "golden"
# loss of OPT-2.7b on gigaword: linhaowei1/Fine-tuning-Scaling-Law @ 5214568, benchmark/gigaword.csv (Apache-2.0)
LIN = {
    "labels": [200, 400, 800, 1600, 3200, 6400, 12800, 25600, 51200, 102400, 204800, 409600, 819200, 1638400],
    "loss": [
        1.73428,
        1.69738,
        1.65769,
        1.62013,
        1.57589,
        1.54133,
        1.50239,
        1.46232,
        1.42875,
        1.39121,
        1.36312,
        1.33012,
        1.30129,
        1.26981,
    ],
}


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "RESAMPLES", 40)


def truth(law: Law) -> Any:
    return next(known for known in GROUND_TRUTHS if known.law is law)


def table(seed: int = 0, **changes: Any) -> dict[str, Any]:
    """Return a table that Chinchilla's law generated, with columns replaced."""
    data = truth(catalog.CHINCHILLA).sample(seed)
    sizes = [f"size-{size:g}" for size in data.x[:, 0]]
    return {"parameters": data.x[:, 0], "tokens": data.x[:, 1], "loss": data.y, "run": sizes, **changes}


def test_a_published_curve_is_predicted_at_eight_times_the_labels() -> None:
    fitted = laws.fit(LIN, "rectified", holdout="labels>204800")
    assert not fitted.assessment.rejection
    assert fitted.assessment.heldout_error < 0.05
    assert fitted.assessment.misfit < 0.002
    assert fitted.assessment.fit.parameters["E"].low >= 0


def test_the_published_fits_are_reproduced() -> None:
    results = {r["table"]: r for r in files.read_json(ROOT / "docs" / "benchmarks" / "laws.json")["results"]}
    for name in ("gemstones-hot", "gemstones-cooled"):
        published = results[name]["published"]
        ours = {name: value for name, value in results[name]["ours"].items() if name != "objective"}
        assert ours == pytest.approx({name: published[name] for name in ours}, rel=5e-4)
    for name in ("gemstones-hot", "muennighoff-c4, E, A, B, a, b fixed"):
        assert results[name]["ours"]["objective"] <= results[name]["published"]["objective"]
    for result in results.values():
        for estimate, low, high in result["parameters"].values():
            assert low <= estimate <= high


UNITS = (catalog.CHINCHILLA, catalog.KAPLANS, special_forms.LOG_POWER, special_forms.RECTIFIED, special_forms.REPEATED)


@pytest.mark.parametrize("law", UNITS, ids=lambda law: law.name)
@settings(max_examples=3, deadline=None)
@given(st.lists(st.floats(-6, 6), min_size=3, max_size=3), st.floats(-3, 3))
def test_a_fit_does_not_depend_on_units(law: Law, x: list[float], y: float) -> None:
    data = truth(law).sample(1)
    units = [0 if len(law.variables) < 2 or "unique" in law.variables[1] else i for i in range(len(law.variables))]
    factor = 10 ** np.array([x[i] for i in units])
    ours = fitting.fit(law, data, resamples=0)
    other = fitting.fit(law, Observations(data.x * factor, data.y * 10**y, data.group), resamples=0)
    predicted, scaled = (f.law.log(f.theta, f.data.x)[0] for f in (ours, other))
    np.testing.assert_allclose(scaled - y * np.log(10), predicted, atol=1e-5)
    assert other.objective == pytest.approx(ours.objective, rel=1e-5)


@pytest.mark.parametrize("law", [special_forms.LOG_POWER, special_forms.RECTIFIED], ids=lambda law: law.name)
def test_no_optimum_of_a_global_search_is_better(law: Law) -> None:
    data = truth(law).sample(2)
    fit = fitting.fit(law, data, resamples=0)
    scales = scales_of(law, data.x, data.y)
    at_points, log_y = law.at(data.x / scales.x), np.log(data.y / scales.y)

    def objective(theta: np.ndarray) -> Any:
        size = np.abs(log_y - at_points(np.atleast_2d(theta.T))[0])
        return np.where(size <= fit.delta, size**2 / 2, fit.delta * (size - fit.delta / 2)).sum(axis=1)

    bounds = [(max(p.bounds[0], -6.0), min(p.bounds[1], 6.0)) for p in law.parameters]
    found: Any = optimize.differential_evolution(
        objective, bounds, maxiter=150, rng=0, vectorized=True, updating="deferred", polish=False
    )
    assert fit.objective <= found.fun * (1 + 1e-6)


def test_a_floor_reaches_zero_and_leaves_it() -> None:
    tokens = np.geomspace(1e5, 1e8, 12)
    noise = np.random.default_rng(1).normal(0, 0.02, 12)
    data = Observations(tokens[:, None], 50 * tokens**-0.3 * np.exp(noise), np.arange(12))
    fit = fitting.fit(catalog.IN_TOKENS, data, resamples=100)
    floors = fit.resampled[:, 0]
    assert (floors == 0).any()
    assert (floors > 0.01).any()
    assert fit.parameters["E"].low == 0


@given(st.floats(-5, 5), st.lists(st.floats(-5, 5), min_size=1, max_size=20), st.booleans())
def test_an_estimate_lies_inside_its_interval(value: float, resampled: list[float], logarithm: bool) -> None:
    interval = bootstrap.percentile_interval(value, np.array(resampled), 1.3, logarithm)
    assert interval.low <= interval.value <= interval.high


def test_held_out_points_are_predicted_with_the_options_of_the_fit() -> None:
    data = truth(catalog.CHINCHILLA).sample(0)
    free, held = (goodness_of_fit.assess(catalog.CHINCHILLA, data, fixed=fixed) for fixed in ({}, {"a": 0.01}))
    assert free
    assert held
    assert held.heldout["parameters"].error > 2 * free.heldout["parameters"].error


def test_two_values_are_refused_and_three_are_a_remark() -> None:
    columns = table()
    sizes = np.unique(columns["parameters"])

    def of(*kept: float) -> dict[str, Any]:
        chosen = np.isin(columns["parameters"], kept)
        return {name: np.array(column)[chosen].tolist() for name, column in columns.items()}

    with pytest.raises(UserError, match=r"parameters has 2 distinct values \(25000, 330000\)"):
        laws.fit(of(sizes[0], sizes[-1]), "chinchilla")
    assert "parameters has only 3 distinct values" in laws.fit(of(*sizes[1:]), "chinchilla").assessment.remarks


def test_an_unidentified_law_predicts_inside_the_measured_range_only() -> None:
    x = np.geomspace(1e5, 1e8, 14)[:, None]
    y = 2 + np.random.default_rng(0).normal(0, 1e-3, 14)  # no trend
    data = Observations(x, y, np.arange(14))
    fitted = fitting.fit(catalog.IN_TOKENS, data)
    assessed = goodness_of_fit.LawAssessment(fitted, "", 0.001, float("nan"), {}, ("a",), ())
    assert assessed.covers(x[3])
    assert not assessed.covers(2 * x[-1])
    assert goodness_of_fit._unidentified(fitted)


def test_the_most_narrowing_measurement_is_that_of_least_variance() -> None:
    law = catalog.IN_TOKENS
    data = truth(law).sample(0)
    fit = fitting.fit(law, data, resamples=0)
    x, candidates = np.array([2e7]), np.geomspace(1e5, 2e7, 6)[:, None]

    def deviation(points: np.ndarray) -> float:
        slopes, at_x = (law.log(fit.theta, p)[1] for p in (points, x[None]))
        return float(np.sqrt((at_x @ np.linalg.inv(slopes.T @ slopes) @ at_x.T)[0, 0]))

    expected = [1 - deviation(np.concatenate([data.x, one[None]])) / deviation(data.x) for one in candidates]
    np.testing.assert_allclose(fit.narrowing(x, candidates), expected, rtol=1e-4)


BAD: list[tuple[Mapping[str, Any], dict[str, Any], str]] = [
    (table(loss=[float("nan")] * 36), {}, "loss is nan in row 1 and in 35 other rows; a law needs positive numbers"),
    (table(loss=[1.0, 0.0] + [1.0] * 34), {}, "loss is 0 in row 2;"),
    (table(loss=[1.0, 2.0, -1.0] + [1.0] * 33), {}, "loss is -1 in row 3;"),
    (table(loss=["high"] * 36), {}, "column 'loss' is not numeric"),
    (table(), {"y": "los"}, "no column 'los'; its columns are parameters, tokens, loss, run"),
    (table(parameters=[1e6] * 36), {}, "parameters has 1 distinct values"),
    (table(), {"law": "chinchila"}, "no law 'chinchila'; the laws are chinchilla, "),
    (table(), {"x": ["parameters"]}, "needs 2: parameters, tokens"),
    (table(), {"holdout": "tokens"}, "is no condition"),
    (table(), {"holdout": "tokens>1e99"}, "chooses 0 of 36 rows"),
    (table(), {"law": "bounded", "x": ["tokens"]}, "needs a share of at most 1"),
    ({name: column[:5] for name, column in table().items()}, {}, "5 points are too few"),
]


@pytest.mark.parametrize(("columns", "options", "message"), BAD, ids=[message[:24] for _, _, message in BAD])
def test_a_wrong_table_is_one_clear_line(columns: Mapping[str, Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        laws.fit(columns, **{"law": "chinchilla", **options})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_command_writes_a_page_figures_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pq.write_table(pa.table(table()), tmp_path / "made.parquet")
    scaling.main(
        ["fit", f"--table={tmp_path / 'made.parquet'}", f"--out={tmp_path / 'fit'}", "--counted=no embeddings"]
    )
    printed = capsys.readouterr().out
    assert "Chinchilla's law is accepted: misfit " in printed
    written = files.read_json(tmp_path / "fit" / "fit.json")
    golden = files.read_json(GOLDEN / "scaling.fit.json")
    assert written.keys() == golden.keys()
    assert written["format"] == golden["format"] == fit_report.FORMAT
    assert written["checklist"].keys() == golden["checklist"].keys()
    assert written["checklist"]["parameters count"] == "no embeddings"
    assert "threshold 0.0" in written["checklist"]["objective"]
    assert written["parameters"]["a"]["low"] <= 0.3 <= written["parameters"]["a"]["high"]
    assert {path.name for path in (tmp_path / "fit").glob("*.png")} == {
        "fit.png",
        "residuals-parameters.png",
        "residuals-tokens.png",
    }
    assert "held-out values of tokens" in (tmp_path / "fit" / "index.html").read_text()


def test_the_laws_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    scaling.main(["laws"])
    assert "chinchilla: L(N, D) = E + A / N^a + B / D^b\n" in capsys.readouterr().out
    scaling.main(["laws", "--json=true"])
    assert json.loads(capsys.readouterr().out)[0]["least_data"] == "8 points, 3 values of each variable"

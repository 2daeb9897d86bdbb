"""Tests of a load test's numbers: arrivals against scipy, quantiles against numpy, capacities against the paper."""

import base64
import json
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hdrh.histogram import HdrHistogram
from hypothesis import given, settings
from hypothesis import strategies as st
from masked import GOLDEN, masked
from scipy import stats

from jaxtempl import files
from jaxtempl.config import fields, sizes
from jaxtempl.config.serving import LoadtestConfig
from jaxtempl.loadtest import arrivals, latencies, page, report, requests
from jaxtempl.loadtest.client import ANSWERED, Exchange
from jaxtempl.loadtest.requests import RequestContexts
from jaxtempl.loadtest.roofline import minimum_latency
from jaxtempl.loadtest.table4 import PAPER
from jaxtempl.serve.schema import ModelAnswer
from jaxtempl.specs import flops
from jaxtempl.specs.accelerators import ACCELERATORS
from jaxtempl.specs.architecture import NeoXArchitecture

MODEL = ModelAnswer(
    version="v1", size="410m", dtype="fp16", backend="tensorrt", window=512, buckets=[64, 128, 256, 512], slots=640,
    templates=600,
)  # fmt: skip


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def gaps(kind: arrivals.Arrivals, burstiness: float = 1.0) -> np.ndarray:
    return np.diff(arrivals.draw_times(kind, 20.0, 1000.0, burstiness, rng()))


def test_poisson_gaps_are_exponential_and_independent() -> None:
    found = gaps("poisson")
    assert stats.kstest(found, stats.expon(scale=1 / 20).cdf).pvalue > 0.01
    assert abs(stats.pearsonr(found[:-1], found[1:]).statistic) < 0.03
    assert stats.kstest(gaps("bursty", 2.0), stats.expon(scale=1 / 20).cdf).pvalue < 1e-6, (
        "the test must detect arrivals that are not Poisson"
    )


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_bursts_have_the_configured_variance(burstiness: float) -> None:
    found = gaps("bursty", burstiness)
    assert found.mean() == pytest.approx(1 / 20, rel=0.05)
    assert found.var() == pytest.approx(burstiness / 20**2, rel=0.15)
    assert stats.kstest(found, stats.gamma(1 / burstiness, scale=burstiness / 20).cdf).pvalue > 0.01


def test_constant_arrivals_are_even() -> None:
    np.testing.assert_allclose(arrivals.draw_times("constant", 5.0, 2.0, 1.0, rng()), np.arange(10) / 5)


@given(st.sampled_from(["poisson", "constant", "bursty"]), st.floats(0.01, 500), st.floats(0.01, 20), st.integers(0, 9))
def test_arrivals_ascend_below_the_end_and_follow_the_seed(
    kind: arrivals.Arrivals, rate: float, seconds: float, seed: int
) -> None:
    found = arrivals.draw_times(kind, rate, seconds, 4.0, rng(seed))
    assert (np.diff(found) >= 0).all()
    assert ((found >= 0) & (found < seconds)).all()
    np.testing.assert_array_equal(found, arrivals.draw_times(kind, rate, seconds, 4.0, rng(seed)))


def write(path: Path, cases: int) -> str:
    roles = ("advocate", "customer", "advocate", "system", "advocate")
    said = [
        {"case_id": f"{i}", "messages": [{"role": r, "text": f"{i}.{j}"} for j, r in enumerate(roles)]}
        for i in range(cases)
    ]
    path.write_text("\n".join(map(json.dumps, said)))
    return str(path)


def test_contexts_are_drawn_uniformly_from_the_whole_file(tmp_path: Path) -> None:
    """Each of 60 contexts is in a draw of 30 with probability 1/2."""
    path = write(tmp_path / "cases.jsonl", 30)
    drawn = [requests.draw_contexts(path, 30, seed).messages for seed in range(200)]
    assert all(len(set(messages)) == 30 for messages in drawn)
    counts = Counter(message for messages in drawn for message in messages)
    assert len(counts) == 60
    assert stats.chisquare(list(counts.values())).pvalue > 0.01
    assert drawn[3] == requests.draw_contexts(path, 30, 3).messages != drawn[4]


def test_a_context_ends_before_an_advocate_answers(tmp_path: Path) -> None:
    found = requests.draw_contexts(write(tmp_path / "cases.jsonl", 1), 10, 0)
    assert {len(json.loads(m)["messages"]) for m in found.messages} == {2, 4}
    assert (found.cases, found.bad) == (1, {})


def test_a_context_repeats_only_when_there_are_too_few() -> None:
    assert sorted(requests.draw_order(10, 10, rng())) == list(range(10))
    assert len(set(requests.draw_order(10, 7, rng()).tolist())) == 7
    more = requests.draw_order(10, 1000, rng())
    assert set(more.tolist()) == set(range(10))
    body = json.loads(
        next(requests.request_bodies(RequestContexts([b'{"messages":[]}'], 1, {}), np.array([0]), "loadtest-0-1"))
    )
    assert body == {"case_id": "loadtest-0-1-0", "messages": []}


@settings(max_examples=25)
@given(st.lists(st.floats(1e-5, 100), min_size=1, max_size=300))
def test_quantiles_equal_numpys_to_three_digits(seconds: list[float]) -> None:
    found, values = latencies.statistics(np.array(seconds)), 1000 * np.array(seconds)
    assert found
    for name, share in latencies.QUANTILES.items():
        assert found[name] == pytest.approx(np.quantile(values, share, method="inverted_cdf"), rel=2e-3, abs=2e-3)
    assert found["max"] == pytest.approx(values.max(), abs=1e-3)
    assert found["average"] == pytest.approx(values.mean(), abs=1e-3)


def exchanges(latency: np.ndarray, rate: float, **changes: Any) -> list[Exchange]:
    """Return answered exchanges at a constant rate."""
    due = np.arange(len(latency)) / rate
    return [
        Exchange(float(d), 0.0, float(x), ANSWERED, 100)._replace(**changes) for d, x in zip(due, latency, strict=True)
    ]


def test_the_peak_minute_is_a_whole_minute_after_the_warm_up() -> None:
    latency = rng().gamma(4.0, 0.005, 5 * 130)
    latency[50 : 50 + 300] += 0.05  # the first minute after the 10 s warm-up
    made = latencies.summarize_rate(5.0, exchanges(latency, 5.0), 10.0, 120.0, 100.0)
    first, second = 1000 * latency[50:350], 1000 * latency[350:]
    assert [minute["requests"] for minute in made["minutes"]] == [300, 300]
    assert made["peak_minute"]["average"] == pytest.approx(first.mean(), abs=1e-3)
    assert made["run"]["average"] == pytest.approx(np.concatenate([first, second]).mean(), abs=1e-3)
    assert made["minutes"][1]["p99"] == pytest.approx(np.quantile(second, 0.99, method="inverted_cdf"), rel=2e-3)
    assert (made["sent_rate"], made["answered_rate"], made["tokens"]) == (5.0, 5.0, 100)
    assert made["in_budget"] == np.mean(1000 * latency[50:] <= 100)


def test_histograms_of_two_runs_add_up() -> None:
    parts = [rng(seed).gamma(2.0, 0.01, 500) for seed in (0, 1)]
    rows = [latencies.summarize_rate(5.0, exchanges(part, 5.0), 0.0, 100.0, 100.0) for part in parts]
    both = HdrHistogram(1, latencies.LONGEST, 3)
    for row in rows:
        both.add(HdrHistogram.decode(base64.b64decode(row["histogram"])))
    whole = latencies.statistics(np.concatenate(parts))
    assert whole
    assert both.get_value_at_percentile(99) / 1000 == whole["p99"]
    assert both.get_total_count() == 1000


@pytest.mark.parametrize(("late", "voided"), [(0, False), (5, False), (6, True)])
def test_a_row_is_void_when_more_than_one_percent_of_its_sends_are_late(late: int, voided: bool) -> None:
    lags = np.zeros(500)
    lags[:late] = 0.006
    assert bool(latencies.void_reason(lags)) == voided


def test_a_row_without_requests_is_void() -> None:
    made = latencies.summarize_rate(0.01, [], 0.0, 60.0, 100.0)
    assert "no request" in made["void"]
    assert made["run"] is made["in_budget"] is None


@pytest.mark.parametrize(("size", "by_p99", "by_max"), [("410m", 20, 20), ("1.4b", 10, 5), ("2.8b", 1, 1)])
def test_the_papers_latencies_give_the_papers_capacities(size: str, by_p99: float, by_max: float) -> None:
    """Paper section 5.1: within 100 ms, 1.4b handles 5 to 10 requests/s, 2.8b 1, and 410m every tested rate."""
    table = PAPER[size].items()
    assert report.capacity((float(rate), latency.p99 < 100) for rate, latency in table) == by_p99
    assert report.capacity((float(rate), latency.max < 100) for rate, latency in table) == by_max


def test_capacity_stops_at_the_first_failure_and_skips_void_rows() -> None:
    assert report.capacity([(5.0, True), (1.0, True), (2.0, None)]) == 5
    assert report.capacity([(5.0, True), (1.0, True), (2.0, False)]) == 1
    assert report.capacity([(1.0, False), (2.0, True)]) is None
    assert report.capacity([(1.0, None)]) is None


def test_shed_requests_are_not_within_the_budget() -> None:
    made = exchanges(np.full(300, 0.01), 5.0)
    made[0] = made[0]._replace(outcome="shed")
    row = latencies.summarize_rate(5.0, made, 0.0, 60.0, 100.0)
    assert row["in_budget"] == 299 / 300
    found = whole([row])
    assert found["capacity"] == {"p99": 5.0, "max": None}


def test_a_void_row_has_no_capacity() -> None:
    row = latencies.summarize_rate(5.0, exchanges(np.full(300, 0.01), 5.0, lag=0.006), 0.0, 60.0, 100.0)
    assert row["in_budget"] == 1
    assert whole([row])["capacity"] == {"p99": None, "max": None}


def test_the_roofline_is_the_maximum_of_compute_and_memory_time() -> None:
    shape = NeoXArchitecture(**sizes.read_size("410m")["architecture"])
    found = minimum_latency(MODEL, {500: 3, 60: 1}, "a10", 0.0)
    assert found
    operations = {length: flops.per_context(shape, length, 640) / 3 for length in (512, 64)}
    weights = 2 * (flops.parameter_count(shape, embeddings=False) + 1024 * 640)
    reading = weights / ACCELERATORS["a10"].bandwidth
    assert found["weight_bytes"] == weights
    assert found["reading_ms"] == pytest.approx(1.009, abs=0.001)  # 606 MB at 600 GB/s
    assert operations[512] / 125e12 > reading > operations[64] / 125e12
    assert found["ms"] == pytest.approx(1000 * (3 * operations[512] / 125e12 + reading) / 4)
    only = minimum_latency(MODEL, {500: 1}, "none", 1e12)
    assert only
    assert only["ms"] == pytest.approx(operations[512] / 1e9)


def test_the_roofline_scales_with_the_dtype_and_is_none_where_unknown() -> None:
    def of(device: fields.DeviceName = "a10", **changes: Any) -> float:
        found = minimum_latency(msgspec.structs.replace(MODEL, **changes), {500: 1}, device, 0.0)
        return found["ms"] if found else 0.0

    assert of(dtype="fp32") == pytest.approx(2 * of()) == pytest.approx(4 * of(dtype="int8"))
    assert of(device="none") == of(size="") == of(size="../410m") == of(dtype="new") == 0
    assert minimum_latency(MODEL, {}, "a10", 0.0) is None
    assert minimum_latency(MODEL, {900: 1}, "a10", 0.0), "a window longer than every bucket must be its own bucket"


@pytest.mark.parametrize("size", ["410m", "1.4b", "2.8b"])
def test_the_papers_latencies_are_above_the_roofline(size: str) -> None:
    found = minimum_latency(msgspec.structs.replace(MODEL, size=size), {512: 1}, "a10", 0.0)
    assert found
    assert found["ms"] < min(latency.average for latency in PAPER[size].values())


def whole(rows: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """Return a report of these rows."""
    asked = LoadtestConfig(cases="cases.jsonl", device="a10", **changes)
    return report.build_report(
        asked,
        "2026-01-31T12:00:00+00:00",
        MODEL,
        RequestContexts([b"{}"], 1, {"not JSON": 2}),
        rows,
        minimum_latency(MODEL, {500: 1}, "a10", 0.0),
    )


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """A report with a row of each kind: errors, within the budget, above it, void, and without answers."""
    made = {rate: rng(rate).gamma(4.0, 0.002 * rate, 60 * rate) for rate in (1, 5, 10, 20)}
    rows = [
        latencies.summarize_rate(float(rate), exchanges(latency, rate), 0.0, 60.0, 100.0)
        for rate, latency in made.items()
    ]
    failed, late = (exchanges(made[1], 1.0, outcome="timeout", lag=lag) for lag in (0.0, 0.5))
    return whole([latencies.summarize_rate(0.5, exchanges(made[1], 1.0)[:-1] + failed[-1:], 0.0, 60.0, 100.0), *rows,
                  latencies.summarize_rate(40.0, late, 0.0, 60.0, 100.0)])  # fmt: skip


def test_a_report_has_the_golden_format(found: dict[str, Any], tmp_path: Path) -> None:
    files.write_json(tmp_path / "report.json", found)
    form = json.dumps(masked(json.loads((tmp_path / "report.json").read_text())), indent=1)
    assert form == (GOLDEN / "loadtest.report.json").read_text().rstrip()


def test_the_terminal_shows_table_4(found: dict[str, Any]) -> None:
    lines = report.format_table(found).splitlines()
    row = found["rates"][2]
    assert lines[1].split()[:4] == ["requests/s", "average", "P99", "max"]
    shown = next(line.split() for line in lines if line.split()[0] == "5")
    assert shown[1:4] == [
        f"{value:.2f}" for value in (row["peak_minute"]["average"], row["run"]["p99"], row["run"]["max"])
    ]
    assert len({len(line) for line in lines[1:3]}) == 1
    assert "  errors: 1 timeout" in "\n".join(lines)
    assert "at least" in lines[-1]


def test_an_incomplete_minute_is_reported(found: dict[str, Any]) -> None:
    assert "is incomplete" in report.format_table({**found, "minutes": 0.5})
    assert "is incomplete" not in report.format_table(found)


def test_the_page_shows_the_rows_the_paper_and_the_roofline(found: dict[str, Any], tmp_path: Path) -> None:
    page.write_page(found, tmp_path / "index.html")
    html = (tmp_path / "index.html").read_text()
    assert html.count("<svg") == 2
    for row in found["rates"][:5]:
        assert f"{row['run']['p99']:.2f}" in html
    assert "122.38 / 371.90 / 482.43" in html
    assert "The row of 40 requests/s is void" in html
    assert "Errors at 0.5 requests/s: 1 timeout." in html
    assert "minimum of the device" in html
    assert "2 not JSON" in html
    assert "http://" not in html.replace(found["url"], "")


def test_a_page_without_answers_has_no_chart(found: dict[str, Any], tmp_path: Path) -> None:
    page.write_page({**found, "rates": found["rates"][-1:], "floor": None}, tmp_path / "index.html")
    html = (tmp_path / "index.html").read_text()
    assert "<svg" not in html
    assert "unknown" in html
    assert "Nothing was measured" in html

"""Summarize the exchanges at one rate as a row of Table 4, for the whole run and by minute, in milliseconds."""

import base64
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from hdrh.histogram import HdrHistogram
from jaxtyping import Float64

from jaxtempl.loadtest.client import ANSWERED, REFUSALS, Exchange

QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p99.9": 0.999}
PEAKS = ("average", "p99", "max")  # statistics in Table 4

MINUTE = 60.0  # seconds
MAX_LAG, MAX_LATE_SHARE = 0.005, 0.01  # seconds, and the largest share of sends that may lag by more
LONGEST = 3_600_000_000  # microseconds: upper end of a histogram
DIGITS = 3  # significant digits of a histogram

Seconds = Float64[np.ndarray, " N"]


def summarize_rate(
    rate: float, exchanges: Sequence[Exchange], warmup: float, seconds: float, budget_ms: float
) -> dict[str, Any]:
    """Return the report's entry for one rate.

    Args:
        rate: Requested requests per second.
        exchanges: All exchanges at this rate.
        warmup: Seconds from the start whose requests are left out.
        seconds: Measured duration after the warm-up.
        budget_ms: Latency budget of an answer.
    """
    measured = [exchange for exchange in exchanges if exchange.due >= warmup]
    latencies, lags = _answer_latencies(measured), np.array([exchange.lag for exchange in measured])
    minutes = _summarize_minutes(measured, warmup, seconds)
    duration = max([seconds, *(exchange.due + exchange.lag - warmup for exchange in measured)])
    return {
        "rate": rate,
        "void": void_reason(lags),
        "seconds": seconds,
        **counts(measured),
        "sent_rate": _rounded(len(measured) / duration),
        "answered_rate": _rounded(len(latencies) / duration),
        "in_budget": float((latencies * 1000 <= budget_ms).sum()) / len(measured) if measured else None,
        "run": statistics(latencies),
        "peak_minute": _peak(minutes),
        "minutes": minutes,
        "lag_ms": statistics(lags),
        "tokens": _mean_tokens(measured),
        "histogram": base64.b64encode(histogram(latencies).encode()).decode(),
    }


def counts(exchanges: Sequence[Exchange]) -> dict[str, Any]:
    """Count requests by outcome; an outcome that is neither an answer nor in REFUSALS is an error, counted by kind."""
    by_outcome = Counter(exchange.outcome for exchange in exchanges)
    expected = {name: by_outcome[name] for name in (ANSWERED, *REFUSALS.values())}
    errors = {kind: count for kind, count in sorted(by_outcome.items()) if kind not in expected}
    return {"requests": len(exchanges), **expected, "errors": errors}


def void_reason(lags: Seconds) -> str | None:
    """Return why a rate's figures are void: the generator, not the server, lagged; None if it kept up."""
    if not len(lags):
        return "no request was due in the measured time; measure longer"
    late = float((lags > MAX_LAG).mean())
    if late <= MAX_LATE_SHARE:
        return None
    return (
        f"the generator did not keep up: {late:.1%} of its sends were over {1000 * MAX_LAG:g} ms late, and "
        f"{MAX_LATE_SHARE:.0%} may be; give it its own core, or a lower rate"
    )


def histogram(latencies: Seconds) -> HdrHistogram:
    """Return a mergeable HDR histogram in microseconds, with three significant digits."""
    merged = HdrHistogram(1, LONGEST, DIGITS)
    for microseconds in np.clip(np.round(latencies * 1e6), 1, LONGEST).astype(int).tolist():
        merged.record_value(microseconds)
    return merged


def statistics(latencies: Seconds) -> dict[str, float] | None:
    """Return average, histogram quantiles and maximum in milliseconds; None without latencies."""
    if not len(latencies):
        return None
    bins, maximum = histogram(latencies), _rounded(1000 * float(latencies.max()))
    # A quantile is the upper end of the histogram's bin, which may exceed every value in it.
    quantiles = {name: min(_quantile(bins, share) / 1000, maximum) for name, share in QUANTILES.items()}
    return {"average": _rounded(1000 * float(latencies.mean())), **quantiles, "max": maximum}


def _quantile(bins: HdrHistogram, share: float) -> int:
    """Return the smallest value that at least a share of all do not exceed; the library rounds to the nearest rank."""
    rank = math.ceil(share * bins.total_count)
    return bins.get_value_at_percentile(100 * rank / bins.total_count)


def _answer_latencies(exchanges: Iterable[Exchange]) -> Seconds:
    return np.array([exchange.latency for exchange in exchanges if exchange.outcome == ANSWERED])


def _mean_tokens(exchanges: Sequence[Exchange]) -> float | None:
    tokens = [exchange.tokens for exchange in exchanges if exchange.outcome == ANSWERED]
    return _rounded(float(np.mean(tokens))) if tokens else None


def _summarize_minutes(exchanges: Sequence[Exchange], warmup: float, seconds: float) -> list[dict[str, Any]]:
    """Summarize each measured minute, by the times at which requests were due; the last may be shorter."""
    minutes: list[list[Exchange]] = [[] for _ in range(math.ceil(seconds / MINUTE))]
    for exchange in exchanges:
        minutes[int((exchange.due - warmup) // MINUTE)].append(exchange)
    return [{**counts(minute), **(statistics(_answer_latencies(minute)) or {})} for minute in minutes]


def _peak(minutes: Sequence[Mapping[str, Any]]) -> dict[str, float] | None:
    answered = [minute for minute in minutes if minute[ANSWERED]]
    return {name: max(minute[name] for minute in answered) for name in PEAKS} if answered else None


def _rounded(value: float) -> float:
    return round(value, 3)

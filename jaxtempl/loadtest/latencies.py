"""Exchanges at one rate -> a row of Table 4, over the whole of it and by minute; milliseconds."""

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
PEAKS = ("average", "p99", "max")  # what Table 4 has

MINUTE = 60.0  # seconds
LATE_SEND, LATE_SHARE = 0.005, 0.01  # seconds, and the share of sends that may be later than that
LONGEST = 3_600_000_000  # microseconds that a histogram holds; three digits are kept

Seconds = Float64[np.ndarray, " N"]


def summarize_rate(
    rate: float, exchanges: Sequence[Exchange], warmup: float, seconds: float, budget_ms: float
) -> dict[str, Any]:
    """What is told of one rate.

    Args:
        rate: requests a second that were asked for.
        exchanges: all that were made at it.
        warmup: seconds from the start; what was due in them is left out.
        seconds: that were measured after them.
        budget_ms: what an answer may take.
    """
    counted = [exchange for exchange in exchanges if exchange.due >= warmup]
    latencies, lags = _of_answers(counted), np.array([exchange.lag for exchange in counted])
    minutes = _by_minute(counted, warmup, seconds)
    lasted = max([seconds, *(exchange.due + exchange.lag - warmup for exchange in counted)])
    return {
        "rate": rate,
        "void": void_reason(lags),
        "seconds": seconds,
        **counts(counted),
        "sent_rate": _rounded(len(counted) / lasted),
        "answered_rate": _rounded(len(latencies) / lasted),
        "in_budget": float((latencies * 1000 <= budget_ms).sum()) / len(counted) if counted else None,
        "run": statistics(latencies),
        "peak_minute": _peak(minutes),
        "minutes": minutes,
        "lag_ms": statistics(lags),
        "tokens": _rounded(float(np.mean([e.tokens for e in counted if e.outcome == ANSWERED])))
        if len(latencies)
        else None,
        "histogram": base64.b64encode(histogram(latencies).encode()).decode(),
    }


def counts(exchanges: Sequence[Exchange]) -> dict[str, Any]:
    """Requests by outcome; whatever is not an answer and not in APART is an error, counted by kind."""
    found = Counter(exchange.outcome for exchange in exchanges)
    apart = {name: found[name] for name in (ANSWERED, *REFUSALS.values())}
    return {"requests": len(exchanges), **apart, "errors": {k: n for k, n in sorted(found.items()) if k not in apart}}


def void_reason(lags: Seconds) -> str | None:
    """Why nothing is to be read from a rate: the generator, not the server, was late; None where it kept up."""
    if not len(lags):
        return "no request was due in the measured time; measure longer"
    late = float((lags > LATE_SEND).mean())
    if late <= LATE_SHARE:
        return None
    return (
        f"the generator did not keep up: {late:.1%} of its sends were over {1000 * LATE_SEND:g} ms late, and "
        f"{LATE_SHARE:.0%} may be; give it a core of its own, or a lower rate"
    )


def histogram(latencies: Seconds) -> HdrHistogram:
    """Of microseconds, three digits kept; two of them can be added."""
    made = HdrHistogram(1, LONGEST, 3)
    for microseconds in np.clip(np.round(latencies * 1e6), 1, LONGEST).astype(int).tolist():
        made.record_value(microseconds)
    return made


def statistics(latencies: Seconds) -> dict[str, float] | None:
    """Average and maximum, and between them quantiles of a histogram, in milliseconds; None of nothing."""
    if not len(latencies):
        return None
    made, most = histogram(latencies), _rounded(1000 * float(latencies.max()))
    # A quantile is the upper end of the histogram's bin, which may lie above all that is in it.
    quantiles = {name: min(_quantile(made, share) / 1000, most) for name, share in QUANTILES.items()}
    return {"average": _rounded(1000 * float(latencies.mean())), **quantiles, "max": most}


def _quantile(made: HdrHistogram, share: float) -> int:
    """The least value that at least a share of all are not above; the library itself rounds to the nearest rank."""
    rank = math.ceil(share * made.total_count)
    return made.get_value_at_percentile(100 * rank / made.total_count)


def _of_answers(exchanges: Iterable[Exchange]) -> Seconds:
    return np.array([exchange.latency for exchange in exchanges if exchange.outcome == ANSWERED])


def _by_minute(exchanges: Sequence[Exchange], warmup: float, seconds: float) -> list[dict[str, Any]]:
    """Each minute of what was measured, by when requests were due; the last may be shorter."""
    minutes: list[list[Exchange]] = [[] for _ in range(math.ceil(seconds / MINUTE))]
    for exchange in exchanges:
        minutes[int((exchange.due - warmup) // MINUTE)].append(exchange)
    return [{**counts(minute), **(statistics(_of_answers(minute)) or {})} for minute in minutes]


def _peak(minutes: Sequence[Mapping[str, Any]]) -> dict[str, float] | None:
    answered = [minute for minute in minutes if minute[ANSWERED]]
    return {name: max(minute[name] for minute in answered) for name in PEAKS} if answered else None


def _rounded(value: float) -> float:
    return round(value, 3)

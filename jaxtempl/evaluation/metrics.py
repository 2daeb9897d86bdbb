"""Top-k accuracy, cross-entropy, calibration error and bits per byte, with intervals from a bootstrap over cases.

A label of -1 is a template that is not a class. Every suggestion is wrong there: it counts as a miss in top-k and in
calibration, and has no cross-entropy. A report states the number of such contexts next to the cross-entropy.

Dims: N contexts, S slots, B bins, C cases, R resamples, K columns of values.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped, UInt16
from scipy import optimize, special

from jaxtempl.specs.interval import Interval

BINS = 15  # bins of the calibration error, of equal width; Guo et al. 2017, section 4
RESAMPLES = 1000
BLOCKS = 20
LEVEL = 0.95
MISS = 2**31  # rank of a label that is not a class: beyond any k, even where there are fewer than k slots
TOPS = (1, 3, 5)  # paper, Table 3
TEMPERATURES = (0.05, 20.0)  # bounds of the fitted temperature

Logits = Float[np.ndarray, "N S"]
LabelSlots = Int[np.ndarray, " N"]


def ranks(logits: Logits, slots: LabelSlots) -> Int[np.ndarray, " N"]:
    """Return the number of slots ranked before the label: 0 is a top-1 hit, MISS a label that is not a class.

    Among equal logits the lower slot comes first, as in `top`.
    """
    own = np.take_along_axis(logits, np.maximum(slots, 0)[:, None], axis=1)
    earlier = np.arange(logits.shape[1])[None] < slots[:, None]
    before = (logits > own) | ((logits == own) & earlier)
    return np.where(slots >= 0, before.sum(axis=1), MISS)


def top(logits: Logits, k: int) -> Int[np.ndarray, "N k"]:
    """Return the k slots with the greatest logits of each context, best first."""
    return np.argsort(-logits, axis=1, kind="stable")[:, :k]


def losses(logits: Logits, slots: LabelSlots) -> Float[np.ndarray, " N"]:
    """Return -log softmax(logits)[label] in nats; NaN where the label is not a class."""
    logits = logits.astype(np.float64)
    own = np.take_along_axis(logits, np.maximum(slots, 0)[:, None], axis=1)[:, 0]
    return np.where(slots >= 0, special.logsumexp(logits, axis=1) - own, np.nan)


def top_probability(logits: Logits, temperature: float) -> Float[np.ndarray, " N"]:
    """Return the maximum of softmax(logits / T)."""
    return special.softmax(logits.astype(np.float64) / temperature, axis=1).max(axis=1)


def fit_temperature(logits: Logits, slots: LabelSlots) -> float:
    """Return the T > 0 that minimises the cross-entropy of softmax(logits / T) over labels that are classes.

    Guo et al. 2017, "On Calibration of Modern Neural Networks", section 4.2. The loss is convex in 1 / T, so a
    bounded search over log T finds the minimum. Without such a label T is 1.
    """
    is_class = slots >= 0
    if not is_class.any():
        return 1.0

    def loss(log_temperature: float) -> float:
        return float(losses(logits[is_class] / np.exp(log_temperature), slots[is_class]).mean())

    minimum = optimize.minimize_scalar(loss, bounds=tuple(np.log(TEMPERATURES)), method="bounded")
    return float(np.exp(minimum.x))


class Reliability(NamedTuple):
    """Sums over the contexts of each bin of the top probability; bin b is (b / B, (b + 1) / B].

    Attributes:
        contexts: number of contexts.
        correct: number of top-1 hits.
        probability: sum of the top probabilities.
    """

    contexts: Float[np.ndarray, "*resamples B"]
    correct: Float[np.ndarray, "*resamples B"]
    probability: Float[np.ndarray, "*resamples B"]


def _binned(probability: Float[np.ndarray, " N"], correct: Bool[np.ndarray, " N"]) -> Float[np.ndarray, "N columns"]:
    """Return columns whose sums are the three fields of `Reliability`, one after another."""
    bins = np.eye(BINS)[np.clip(np.ceil(probability * BINS).astype(int) - 1, 0, BINS - 1)]
    return np.concatenate([bins, bins * correct[:, None], bins * probability[:, None]], axis=1)


def _unbinned(sums: Float[np.ndarray, "*resamples columns"]) -> Reliability:
    return Reliability(*np.split(sums, 3, axis=-1))


def reliability(probability: Float[np.ndarray, " N"], correct: Bool[np.ndarray, " N"]) -> Reliability:
    """Return the sums behind the calibration error and a reliability plot."""
    return _unbinned(_binned(probability, correct).sum(axis=0))


def calibration_error(sums: Reliability) -> Float[np.ndarray, "*resamples"]:
    """Return the expected calibration error: the mean |hits - probability| (Guo et al. 2017, equation 3)."""
    return _divide(np.abs(sums.correct - sums.probability).sum(axis=-1), sums.contexts.sum(axis=-1))


def _divide(above: Any, below: Any) -> Any:
    """Return a quotient of numbers or arrays; NaN where `below` is 0."""
    return np.where(below > 0, above / np.where(below > 0, below, 1), np.nan)


class Bootstrap:
    """Cluster bootstrap over whole cases, because the contexts of a case are correlated.

    Every metric is a function of sums over contexts, so a resample is a weighting of per-case sums, and all resamples
    are one matrix product. Percentile interval: Efron and Tibshirani 1993, section 13.3.

    Args:
        cases: case of each context; any integers.
        seed: seed of the resamples.
    """

    def __init__(self, cases: Int[np.ndarray, " N"], seed: int) -> None:
        unique, self._case = np.unique(cases, return_inverse=True)
        self.cases = len(unique)
        random = np.random.default_rng(seed)
        even = np.full(self.cases, 1 / max(self.cases, 1))
        drawn = [random.multinomial(self.cases, even) for _ in range(RESAMPLES)] if self.cases else [[]] * RESAMPLES
        self._times: UInt16[np.ndarray, "R C"] = np.array(drawn, np.uint16)

    def resample(
        self, values: Shaped[np.ndarray, "N K"], metric: Callable[[Any], Any]
    ) -> tuple[float, Float[np.ndarray, " R"]]:
        """Return `metric` of the column sums [K], and its values on resampled sums [R K] without those that are NaN."""
        by_case = np.zeros((self.cases, values.shape[1]))
        np.add.at(by_case, self._case, values.astype(np.float64))
        blocks = np.array_split(self._times, BLOCKS)  # one block at a time as floats, so that many cases fit in memory
        resampled = metric(np.concatenate([times.astype(np.float64) @ by_case for times in blocks]))
        return float(metric(by_case.sum(axis=0))), resampled[~np.isnan(resampled)]

    def interval(
        self, values: Shaped[np.ndarray, "N K"], metric: Callable[[Any], Any], biased: bool = False
    ) -> Interval:
        """Return `metric` of the column sums [K], with the interval of its values on resampled sums [R K].

        A metric of absolute values grows under resampling: its `biased` interval is shifted by the mean growth (Efron
        and Tibshirani 1993, section 10.2).
        """
        whole, sound = self.resample(values, metric)
        if biased and len(sound):
            sound = np.maximum(sound - (sound.mean() - whole), 0)
        tail = (1 - LEVEL) / 2
        low, high = np.quantile(sound, [tail, 1 - tail]) if len(sound) else (np.nan, np.nan)
        return Interval(whole, float(low), float(high))

    def mean(self, values: Shaped[np.ndarray, " N"]) -> Interval:
        """Return the mean over the contexts whose value is not NaN."""
        is_number = ~np.isnan(values)
        columns = np.stack([np.where(is_number, values, 0), is_number], axis=1)
        return self.interval(columns, lambda sums: _divide(sums[..., 0], sums[..., 1]))

    def calibration_error(self, probability: Float[np.ndarray, " N"], correct: Bool[np.ndarray, " N"]) -> Interval:
        """Return the expected calibration error."""
        return self.interval(_binned(probability, correct), lambda sums: calibration_error(_unbinned(sums)), True)


def classification(logits: Logits, slots: LabelSlots, bootstrap: Bootstrap, temperature: float) -> dict[str, Interval]:
    """Return `top1`, `top3`, `top5`, `cross_entropy` and `calibration_error`, the last two also calibrated."""
    rank = ranks(logits, slots)
    intervals = {f"top{k}": bootstrap.mean((rank < k).astype(float)) for k in TOPS}
    for prefix, divisor in (("", 1.0), ("calibrated_", temperature)):
        intervals[f"{prefix}cross_entropy"] = bootstrap.mean(losses(logits / divisor, slots))
        intervals[f"{prefix}calibration_error"] = bootstrap.calibration_error(
            top_probability(logits, divisor), rank == 0
        )
    return intervals


def language_model(
    loss: Float[np.ndarray, " C"],
    predicted: Float[np.ndarray, " C"],
    tokens: Float[np.ndarray, " C"],
    size: Float[np.ndarray, " C"],
    seed: int,
) -> dict[str, Interval]:
    """Return `loss` in nats per predicted token, and `bits_a_byte`, from the sums of each case.

    Bits per byte = loss per token / ln 2 x tokens per byte. Tokens that no row predicts are assumed to cost as much as
    the others, so that the figure is comparable across tokenizers.

    Args:
        loss: summed loss of each case, in nats.
        predicted: number of predicted tokens.
        tokens: number of tokens.
        size: bytes of the text.
        seed: seed of the resamples.
    """
    bootstrap, columns = Bootstrap(np.arange(len(loss)), seed), np.stack([loss, predicted, tokens, size], axis=1)

    def loss_per_token(sums: Any) -> Any:
        return _divide(sums[..., 0], sums[..., 1])

    def bits_per_byte(sums: Any) -> Any:
        return loss_per_token(sums) / np.log(2) * _divide(sums[..., 2], sums[..., 3])

    return {
        "loss": bootstrap.interval(columns, loss_per_token),
        "bits_a_byte": bootstrap.interval(columns, bits_per_byte),
    }

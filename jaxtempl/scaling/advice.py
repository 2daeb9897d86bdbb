"""From a study's laws: which size, how many tokens and labels, what that gives, and what twice as much would buy.

The best plan has the least classification loss that its law foretells among the sizes that are measured, or of
configs/sizes/ and near them, that answer in time, for the tokens that the hours leave; of plans that are as good, the
shortest.
"""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

from jaxtempl.config import paths
from jaxtempl.errors import UserError
from jaxtempl.scaling.laws import analysis, data
from jaxtempl.scaling.laws.curves import effective_tokens
from jaxtempl.scaling.laws.data import Row
from jaxtempl.scaling.laws.fitting import Value
from jaxtempl.scaling.laws.forecast import Outlook, Point
from jaxtempl.scaling.study import architecture_of
from jaxtempl.specs import flops
from jaxtempl.specs.accelerators import Accelerator
from jaxtempl.specs.architecture import Architecture

WORTH = 15.4  # repetitions after which most of what they can give is had (arXiv 2305.16264, its fitted R*_D)
MOST_EPOCHS = 16  # of the domain's text: beyond, hardly anything is left to be had (ibid.)
CONTEXT = 512  # tokens of a window (the paper, section 4.3)
SERVICE_MS = 3.0  # of an answer that are not the model (docs/benchmarks/serve.md)
OVER_FLOOR = 1.75  # times its least time that the model takes: the slope of the paper's Table 4 over its sizes
AS_GOOD = 1.001  # times the least loss
GAIN = 0.005  # of the loss: less than this is not worth another doubling of the tokens

Verdict = Literal["keep adapting", "switch corpus", "stop adapting"]


class Wishes(NamedTuple):
    """What there is, and what may be spent.

    Attributes:
        tokens: of domain text.
        labels: contexts with a label.
        gpu_hours: for adaptation and fine-tuning.
        latency_ms: that an answer may take.
        device: that trains and serves.
        mfu: share of its peak that training reaches.
        price_label: dollars.
        price_gpu_hour: dollars.
        extrapolate: times the greatest measured value of anything that may be spoken of.
    """

    tokens: float
    labels: float
    gpu_hours: float
    latency_ms: float
    device: Accelerator
    mfu: float
    price_label: float
    price_gpu_hour: float
    extrapolate: float


class Plan(NamedTuple):
    """One model.

    Attributes:
        size: of configs/sizes/.
        tokens: to adapt on, those read again included.
        epochs: over the domain's text.
        labels: to fine-tune on.
        gpu_hours: that it takes.
        latency_ms: of an answer, as an estimate.
        expected: `domain_loss`, `loss`, `top1`, `top3`, `top5`.
    """

    size: str
    tokens: float
    epochs: float
    labels: float
    gpu_hours: float
    latency_ms: float
    expected: dict[str, Value]


class Doubling(NamedTuple):
    """What twice as much of one thing would buy.

    Attributes:
        what: tokens, labels, or the size that is next to twice as large.
        to: how many, or which.
        loss: then over now.
        missed: share missed at top-1, then over now; None where there is no law of it.
        dollars: that it costs beyond the plan; None where labels have no price.
    """

    what: str
    to: str
    loss: Value
    missed: Value | None
    dollars: float | None


class Advice(NamedTuple):
    """All of it.

    Attributes:
        plan: the best.
        others: the best of each other size that may be taken, by loss.
        doublings: from the plan on.
        verdict: on the corpus.
        why: the verdict, in words.
        leans_on: cells that move the foretold loss most, and their shares.
        warnings: what is to be known before it is believed.
    """

    plan: Plan
    others: list[Plan]
    doublings: list[Doubling]
    verdict: Verdict
    why: str
    leans_on: list[tuple[str, float]]
    warnings: list[str]


class Adviser:
    """Advises from one study.

    Args:
        rows: of its results.
        wishes: what there is.

    Raises:
        UserError: the study is too small for a law of the loss, or less or more is asked about than it can speak of.
    """

    def __init__(self, rows: Sequence[Row], wishes: Wishes) -> None:
        self.outlook = Outlook(rows)
        adapted = [row for row in self.outlook.rows if row["start"] == "adapted"]
        if "loss" not in self.outlook.laws:
            raise UserError(f"{len(adapted)} adapted cells are too few for a law of the loss: run more of the study")
        self._trends = analysis.curve_trends(data.comparable(rows))
        self._adapted = adapted
        self.wishes = wishes._replace(
            labels=wishes.labels or float(max(row["labels"] for row in adapted)),
            tokens=wishes.tokens or float(max(row["unique_tokens"] for row in adapted)),
        )
        self._check("labels", self.wishes.labels)

    def _range(self, column: str) -> tuple[float, float]:
        values = [row[column] for row in self._adapted]
        return min(values) / self.wishes.extrapolate, max(values) * self.wishes.extrapolate

    def _check(self, column: str, value: float) -> None:
        low, high = self._range(column)
        if not low <= value <= high:
            raise UserError(
                f"--{column}={value:,.0f} is outside what the study can speak of, {low:,.0f} to {high:,.0f} {column}, "
                f"which is {self.wishes.extrapolate:g} times beyond what it measured; pass another --{column}, or "
                "--extrapolate=FACTOR to hear a guess"
            )

    def advice(self) -> Advice:
        """The best plan, and what surrounds it.

        Raises:
            UserError: no size answers in time, or none can be trained in the hours.
        """
        plans = sorted(self._plans(), key=lambda plan: plan.expected["loss"].value)
        if not plans:
            raise UserError(
                f"no size answers within {self.wishes.latency_ms:g} ms and is trained within "
                f"{self.wishes.gpu_hours:g} hours; allow more with --latency_ms and --gpu_hours"
            )
        best = plans[0]
        doublings = list(self._doublings(best))
        verdict, why = self._verdict(best, doublings)
        leans = self.outlook.leans_on("loss", self._point(best.size, best.tokens, best.labels))
        return Advice(best, plans[1:], doublings, verdict, why, leans[:5], list(self._warnings(best)))

    def _plans(self) -> Iterator[Plan]:
        for size in self._sizes():
            latency = self._latency(architecture_of(size))
            tokens = self._tokens(size)
            if latency <= self.wishes.latency_ms and len(tokens):
                yield self._shortest(size, latency, tokens)

    def _sizes(self) -> list[str]:
        """Those measured, and the project's own of the same family, within what may be spoken of."""
        low, high = self._range("parameters_body")
        known = {path.stem for path in (paths.CONFIGS / "sizes").glob("*.yaml")}
        measured = {row["size"] for row in self._adapted}
        shapes = {name: architecture_of(name) for name in known | measured}
        kept = [name for name, a in shapes.items() if a.family == "gpt_neox" and low <= _body(a) <= high]
        return sorted(kept, key=lambda name: _body(shapes[name]))

    def _tokens(self, size: str) -> list[float]:
        """Counts that may be taken: from the least measured to what hours, epochs and the study allow."""
        least = min(row["tokens"] for row in self._adapted)
        most = min(self._affordable(size), MOST_EPOCHS * self.wishes.tokens, self._range("tokens")[1])
        return np.geomspace(least, most, 25).tolist() if most >= least else []

    def _affordable(self, size: str) -> float:
        """Tokens of adaptation that the hours leave after the fine-tuning."""
        left = self.wishes.gpu_hours - self._hours(size, 0.0, self.wishes.labels)
        return left * 3600 * self._speed / (6 * flops.parameter_count(architecture_of(size)))

    @property
    def _speed(self) -> float:
        return self.wishes.device.peak * self.wishes.mfu

    def _hours(self, size: str, tokens: float, labels: float) -> float:
        """6 N for each token of both trainings."""
        nearest = min(self._adapted, key=lambda row: abs(np.log(row["labels"] / labels)))
        read = tokens + labels * nearest["epochs"] * CONTEXT
        return 6 * flops.parameter_count(architecture_of(size)) * read / self._speed / 3600

    def _latency(self, a: Architecture) -> float:
        """Milliseconds of an answer to a full window: the device's least time, times what engines take over it."""
        operations = flops.per_context(a, CONTEXT, 1) / 3
        floor = max(operations / self.wishes.device.peak, 2 * _body(a) / self.wishes.device.bandwidth)
        return SERVICE_MS + OVER_FLOOR * 1000 * floor

    def _point(self, size: str, tokens: float, labels: float) -> Point:
        (effective,) = effective_tokens(np.array([tokens]), np.array([self.wishes.tokens]), WORTH)
        return Point(float(_body(architecture_of(size))), float(effective), labels)

    def _shortest(self, size: str, latency: float, tokens: Sequence[float]) -> Plan:
        """The fewest tokens that are as good as the best of them."""
        expected = [self.outlook.at(self._point(size, count, self.wishes.labels)) for count in tokens]
        losses = np.array([said["loss"].value for said in expected])
        at = int(np.argmax(losses <= AS_GOOD * losses.min()))
        hours = self._hours(size, tokens[at], self.wishes.labels)
        epochs = tokens[at] / self.wishes.tokens
        return Plan(size, tokens[at], epochs, self.wishes.labels, hours, latency, expected[at])

    def _doublings(self, plan: Plan) -> Iterator[Doubling]:
        """Of each thing, where it is not beyond what may be spoken of."""
        now = self._point(plan.size, plan.tokens, plan.labels)
        if 2 * now.tokens <= self._range("tokens")[1]:
            then = now._replace(tokens=2 * now.tokens)  # of a corpus that is twice as large, too
            yield self._doubling("tokens", f"{2 * plan.tokens:,.0f}", now, then, self._dollars(plan, tokens=2.0))
        if 2 * now.labels <= self._range("labels")[1]:
            then, dollars = now._replace(labels=2 * now.labels), self._dollars(plan, labels=2.0)
            known = dollars + self.wishes.price_label * plan.labels if self.wishes.price_label else None
            yield self._doubling("labels", f"{2 * plan.labels:,.0f}", now, then, known)
        larger = [size for size in self._sizes() if _body(architecture_of(size)) > now.parameters]
        if larger:
            size = min(larger, key=lambda name: abs(np.log(_body(architecture_of(name)) / (2 * now.parameters))))
            then = now._replace(parameters=float(_body(architecture_of(size))))
            yield self._doubling("size", size, now, then, self._dollars(plan._replace(size=size)))

    def _doubling(self, what: str, to: str, now: Point, then: Point, dollars: float | None) -> Doubling:
        loss, missed = (self.outlook.change(name, now, then) for name in ("loss", "missed top-1"))
        assert loss
        return Doubling(what, to, loss, missed, dollars)

    def _dollars(self, plan: Plan, tokens: float = 1.0, labels: float = 1.0) -> float:
        """Of device time beyond the plan's, with so many times its tokens and labels."""
        hours = self._hours(plan.size, tokens * plan.tokens, labels * plan.labels)
        return (hours - plan.gpu_hours) * self.wishes.price_gpu_hour

    def _verdict(self, plan: Plan, doublings: Sequence[Doubling]) -> tuple[Verdict, str]:
        nearest = min(
            self._adapted, key=lambda row: abs(np.log(row["parameters_body"] / _body(architecture_of(plan.size))))
        )
        own = [trend for trend in self._trends if (trend.size, trend.corpus) == (nearest["size"], nearest["corpus"])]
        if any(trend.misaligned for trend in own):
            return "switch corpus", f"at {nearest['size']}, loss improves with adaptation and top-1 does not"
        if "tokens" not in self.outlook.laws["loss"].fit.law.variables:
            return "stop adapting", "the law that foretells the loss best does not depend on the tokens at all"
        gain = next((1 - doubling.loss.value for doubling in doublings if doubling.what == "tokens"), None)
        if gain is None:
            return "keep adapting", "up to the most tokens that the study can speak of, each of them helps"
        said = f"twice the tokens take {gain:.1%} off the loss"
        return ("keep adapting", said) if gain >= GAIN else ("stop adapting", f"{said}, less than {GAIN:.1%}")

    def _warnings(self, plan: Plan) -> Iterator[str]:
        for name in plan.expected:
            law = self.outlook.laws[_OF.get(name, name)]
            if law.refused:
                yield f"of {name} no law holds ({law.refused}), and this is the one that foretells best"
        measured = max(row["parameters_body"] for row in self._adapted)
        if _body(architecture_of(plan.size)) > measured:
            yield f"{plan.size} is larger than any size measured"


_OF = {top: missed for missed, top in data.MISSED.items()}  # whose laws they follow


def _body(a: Architecture) -> int:
    return flops.parameter_count(a, embeddings=False)

"""The adviser: which size to train, on how many tokens and labels, and what twice as much of each would give.

The best plan has the smallest forecast loss among the sizes that meet the latency constraint, with the tokens that the
hours allow. Candidates are the measured sizes and those of configs/sizes/ within the extrapolation limit. Among plans
with practically equal loss, the shortest wins.
"""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from jaxtempl.config import paths
from jaxtempl.errors import UserError
from jaxtempl.scaling.advice import Advice, AdviceVerdict, Constraints, Doubling, NextExperiment, TrainingPlan
from jaxtempl.scaling.columns import ResultRow
from jaxtempl.scaling.laws import analysis, selection
from jaxtempl.scaling.laws.forecast import Forecaster, Scenario
from jaxtempl.scaling.laws.special_forms import effective_tokens
from jaxtempl.scaling.study import architecture_of
from jaxtempl.specs import flops
from jaxtempl.specs.architecture import Architecture

REPETITION_DECAY = 15.4  # R*_D of arXiv 2305.16264: repetitions after which most of their value is used up
MAX_EPOCHS = 16  # over the domain text; more give hardly anything (ibid.)
CONTEXT_TOKENS = 512  # of a window (the paper, section 4.3)
SERVICE_MS = 3.0  # latency outside the model (docs/benchmarks/serve.md)
ROOFLINE_FACTOR = 1.75  # model latency over its roofline: slope of the paper's Table 4 over sizes
EQUAL_LOSS = 1.001  # ratio of losses that count as equal
MIN_GAIN = 0.005  # relative fall of the loss that justifies another doubling of the tokens
INFLUENTIAL_CELLS = 5
TOKEN_GRID = 25
_LAW_OF = {top: missed for missed, top in selection.MISSED.items()}


class Adviser:
    """Advises from one study.

    Args:
        rows: Results of the study.
        constraints: Data, budget and latency; 0 tokens or labels mean the study's maximum.

    Raises:
        UserError: The study is too small for a law of the loss, or the labels are outside the extrapolation limit.
    """

    def __init__(self, rows: Sequence[ResultRow], constraints: Constraints) -> None:
        self.forecaster = Forecaster(rows)
        adapted = [row for row in self.forecaster.rows if row["start"] == "adapted"]
        if "loss" in self.forecaster.refused:
            raise UserError(
                f"no law of the loss is accepted ({self.forecaster.refused['loss']}); run more of the study"
            )
        if "loss" not in self.forecaster.laws:
            raise UserError(f"{len(adapted)} adapted cells are too few for a law of the loss; run more of the study")
        self._trends = analysis.curve_trends(selection.comparable(rows))
        self._adapted = adapted
        self.constraints = constraints._replace(
            labels=constraints.labels or float(max(row["labels"] for row in adapted)),
            tokens=constraints.tokens or float(max(row["unique_tokens"] for row in adapted)),
        )
        self._check_range("labels", self.constraints.labels)

    def _range(self, column: str) -> tuple[float, float]:
        values = [row[column] for row in self._adapted]
        return min(values) / self.constraints.extrapolate, max(values) * self.constraints.extrapolate

    def _check_range(self, column: str, value: float) -> None:
        low, high = self._range(column)
        if not low <= value <= high:
            raise UserError(
                f"--{column}={value:,.0f} is outside {low:,.0f} to {high:,.0f}, which is "
                f"{self.constraints.extrapolate:g} times beyond the study's measurements; pass another --{column}, or "
                "a larger --extrapolate=FACTOR for a rough guess"
            )

    def advise(self) -> Advice:
        """Return the best plan, its alternatives and the effects of doublings.

        Raises:
            UserError: No size meets the latency and the hours.
        """
        plans = sorted(self._plans(), key=lambda plan: plan.expected["loss"].value)
        if not plans:
            raise UserError(
                f"no size that the law predicts answers within {self.constraints.latency_ms:g} ms and trains within "
                f"{self.constraints.gpu_hours:g} hours; allow more with --latency_ms and --gpu_hours, or pass "
                "--labels of the study"
            )
        best = plans[0]
        doublings = list(self._doublings(best))
        verdict, why = self._verdict(best, doublings)
        scenario = self._scenario(best.size, best.tokens, best.labels)
        cells = self.forecaster.influential_cells("loss", scenario)[:INFLUENTIAL_CELLS]
        following = self._next_experiment(scenario)
        return Advice(best, plans[1:], doublings, verdict, why, cells, following, list(self._warnings(best)))

    def _next_experiment(self, scenario: Scenario) -> NextExperiment:
        """Return the cell that narrows the predicted loss most: a measured size, at measured amounts or twice them."""
        sizes = sorted({row["size"] for row in self._adapted})
        tokens, labels = ({float(row[name]) for row in self._adapted} for name in ("tokens", "labels"))
        cells = list(itertools.product(sizes, *(sorted(each | {2 * max(each)}) for each in (tokens, labels))))
        shares = self.forecaster.narrowing("loss", scenario, [self._scenario(*cell) for cell in cells])
        best = int(np.argmax(shares))
        size, tokens_read, labelled = cells[best]
        return NextExperiment(size, tokens_read, labelled, shares[best])

    def _plans(self) -> Iterator[TrainingPlan]:
        for size in self._sizes():
            latency = self._latency(architecture_of(size))
            tokens = self._token_grid(size)
            tokens = [
                count for count in tokens if self._predictable(self._scenario(size, count, self.constraints.labels))
            ]
            if latency <= self.constraints.latency_ms and tokens:
                yield self._shortest_plan(size, latency, tokens)

    def _sizes(self) -> list[str]:
        """Return the measured sizes and the included ones of the family, within the extrapolation limit."""
        low, high = self._range("parameters_body")
        included = {path.stem for path in (paths.CONFIGS / "sizes").glob("*.yaml")}
        measured = {row["size"] for row in self._adapted}
        architectures = {name: architecture_of(name) for name in included | measured}
        kept = [name for name, a in architectures.items() if a.family == "gpt_neox" and low <= _body(a) <= high]
        return sorted(kept, key=lambda name: _body(architectures[name]))

    def _token_grid(self, size: str) -> list[float]:
        """Return token counts from the smallest measured to what hours, epochs, limit and law allow."""
        low = min(row["tokens"] for row in self._adapted)
        high = min(self._affordable_tokens(size), MAX_EPOCHS * self.constraints.tokens, self._range("tokens")[1])
        grid: list[float] = np.geomspace(low, high, TOKEN_GRID).tolist() if high >= low else []
        return [count for count in grid if self._predictable(self._scenario(size, count, self.constraints.labels))]

    def _affordable_tokens(self, size: str) -> float:
        """Return the tokens of adaptation that the hours allow next to the fine-tuning."""
        left = self.constraints.gpu_hours - self._hours(size, 0.0, self.constraints.labels)
        return left * 3600 * self._operations_per_second / (6 * flops.parameter_count(architecture_of(size)))

    @property
    def _operations_per_second(self) -> float:
        return self.constraints.device.peak * self.constraints.mfu

    def _hours(self, size: str, tokens: float, labels: float) -> float:
        """Return the device hours of both trainings, at 6 N operations per token."""
        nearest = min(self._adapted, key=lambda row: abs(np.log(row["labels"] / labels)))
        total = tokens + labels * nearest["epochs"] * CONTEXT_TOKENS
        return 6 * flops.parameter_count(architecture_of(size)) * total / self._operations_per_second / 3600

    def _latency(self, a: Architecture) -> float:
        """Return the milliseconds of a request with a full window: roofline times an engine's overhead."""
        device = self.constraints.device
        operations = flops.per_context(a, CONTEXT_TOKENS, 1) / 3
        roofline = max(operations / device.peak, 2 * _body(a) / device.bandwidth)
        return SERVICE_MS + ROOFLINE_FACTOR * 1000 * roofline

    def _scenario(self, size: str, tokens: float, labels: float) -> Scenario:
        (effective,) = effective_tokens(np.array([tokens]), np.array([self.constraints.tokens]), REPETITION_DECAY)
        return Scenario(float(_body(architecture_of(size))), float(effective), labels)

    def _predictable(self, scenario: Scenario) -> bool:
        return self.forecaster.covers("loss", scenario)

    def _shortest_plan(self, size: str, latency: float, tokens: Sequence[float]) -> TrainingPlan:
        """Return the plan with the fewest tokens whose loss practically equals the best."""
        labels = self.constraints.labels
        scenarios = [self._scenario(size, count, labels) for count in tokens]
        losses = np.array([self.forecaster.predict_quantity("loss", scenario).value for scenario in scenarios])
        at = int(np.argmax(losses <= EQUAL_LOSS * losses.min()))
        hours = self._hours(size, tokens[at], labels)
        epochs = tokens[at] / self.constraints.tokens
        expected = self.forecaster.predict(scenarios[at])
        return TrainingPlan(size, tokens[at], epochs, labels, hours, latency, expected)

    def _doublings(self, plan: TrainingPlan) -> Iterator[Doubling]:
        """Yield the effect of doubling each resource within the extrapolation limit."""
        now = self._scenario(plan.size, plan.tokens, plan.labels)
        after = now._replace(tokens=2 * now.tokens)  # the corpus doubles too
        if after.tokens <= self._range("tokens")[1] and self._predictable(after):
            yield self._doubling("tokens", f"{2 * plan.tokens:,.0f}", now, after, self._extra_dollars(plan, tokens=2.0))
        after = now._replace(labels=2 * now.labels)
        if after.labels <= self._range("labels")[1] and self._predictable(after):
            dollars = self._extra_dollars(plan, labels=2.0)
            price = self.constraints.price_label
            cost = dollars + price * plan.labels if price else None
            yield self._doubling("labels", f"{2 * plan.labels:,.0f}", now, after, cost)
        larger = [size for size in self._sizes() if _body(architecture_of(size)) > now.parameters]
        if larger:
            size = min(larger, key=lambda name: abs(np.log(_body(architecture_of(name)) / (2 * now.parameters))))
            after = now._replace(parameters=float(_body(architecture_of(size))))
            if self._predictable(after):
                yield self._doubling("size", size, now, after, self._extra_dollars(plan._replace(size=size)))

    def _doubling(self, what: str, to: str, now: Scenario, after: Scenario, dollars: float | None) -> Doubling:
        loss, missed = (self.forecaster.predict_ratio(name, now, after) for name in ("loss", "missed top-1"))
        assert loss
        return Doubling(what, to, loss, missed, dollars)

    def _extra_dollars(self, plan: TrainingPlan, tokens: float = 1.0, labels: float = 1.0) -> float:
        """Return the cost of device time beyond the plan's, with its tokens and labels multiplied by factors."""
        hours = self._hours(plan.size, tokens * plan.tokens, labels * plan.labels)
        return (hours - plan.gpu_hours) * self.constraints.price_gpu_hour

    def _verdict(self, plan: TrainingPlan, doublings: Sequence[Doubling]) -> tuple[AdviceVerdict, str]:
        body = _body(architecture_of(plan.size))
        nearest = min(self._adapted, key=lambda row: abs(np.log(row["parameters_body"] / body)))
        size, corpus = nearest["size"], nearest["corpus"]
        if any(trend.misaligned for trend in self._trends if (trend.size, trend.corpus) == (size, corpus)):
            return "switch corpus", f"at {size}, loss improves with adaptation and top-1 does not"
        if "tokens" not in self.forecaster.laws["loss"].fit.law.variables:
            return "stop adapting", "the best predicting law of the loss does not depend on tokens"
        gain = next((1 - doubling.loss.value for doubling in doublings if doubling.what == "tokens"), None)
        if gain is None:
            return "keep adapting", "more tokens help up to the extrapolation limit"
        reason = f"twice the tokens reduce the loss by {gain:.1%}"
        if gain >= MIN_GAIN:
            return "keep adapting", reason
        return "stop adapting", f"{reason}, less than {MIN_GAIN:.1%}"

    def _warnings(self, plan: TrainingPlan) -> Iterator[str]:
        for name, reason in self.forecaster.refused.items():
            yield f"no law of {name} is accepted ({reason}), so it is not predicted"
        for name in plan.expected:
            for remark in self.forecaster.laws[_LAW_OF.get(name, name)].remarks:
                yield f"the law of {name}: {remark}"
        measured = max(row["parameters_body"] for row in self._adapted)
        if _body(architecture_of(plan.size)) > measured:
            yield f"{plan.size} is larger than any measured size"


def _body(a: Architecture) -> int:
    return flops.parameter_count(a, embeddings=False)

"""Advice from a study's laws: the constraints, the recommended training plan, and the advice as text."""

from collections.abc import Iterator
from typing import Literal, NamedTuple

from jaxtempl.specs.accelerators import Accelerator
from jaxtempl.specs.interval import Interval

AdviceVerdict = Literal["keep adapting", "switch corpus", "stop adapting"]


class Constraints(NamedTuple):
    """The available data, budget and latency.

    Attributes:
        tokens: Tokens of domain text.
        labels: Labelled contexts.
        gpu_hours: Device hours for adaptation and fine-tuning.
        latency_ms: Maximum latency of a request, milliseconds.
        device: Device that trains and serves.
        mfu: Model FLOPs utilisation of training, from 0 to 1.
        price_label: Dollars per label.
        price_gpu_hour: Dollars per device hour.
        extrapolate: Maximum factor beyond the largest measured values.
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


class TrainingPlan(NamedTuple):
    """A model to train.

    Attributes:
        size: Name in configs/sizes/.
        tokens: Tokens of the adaptation, repetitions included.
        epochs: Epochs over the domain text.
        labels: Labels of the fine-tuning.
        gpu_hours: Device hours of both trainings.
        latency_ms: Estimated latency of a request, milliseconds.
        expected: Forecast of `domain_loss`, `loss`, `top1`, `top3` and `top5`.
    """

    size: str
    tokens: float
    epochs: float
    labels: float
    gpu_hours: float
    latency_ms: float
    expected: dict[str, Interval]


class Doubling(NamedTuple):
    """The effect of doubling one resource.

    Attributes:
        what: `tokens`, `labels`, or `size` (the size closest to twice as large).
        to: New value.
        loss: Loss after over loss before.
        missed: Share missed at top-1 after over before; None without a law.
        dollars: Cost beyond the plan; None if labels have no price.
    """

    what: str
    to: str
    loss: Interval
    missed: Interval | None
    dollars: float | None


class NextExperiment(NamedTuple):
    """The cell that narrows the plan's predicted loss most, among measured sizes and twice the measured amounts.

    Attributes:
        size: Size of the model.
        tokens: Tokens of its adaptation.
        labels: Labels of its fine-tuning.
        narrowing: Share by which it narrows the law's standard error.
    """

    size: str
    tokens: float
    labels: float
    narrowing: float


class Advice(NamedTuple):
    """The advice of a study.

    Attributes:
        plan: Best plan.
        others: Best plan of each other size, by loss.
        doublings: Effects of doubling each resource of the plan.
        verdict: Verdict on further adaptation.
        why: Reason for the verdict.
        leans_on: Cells with the most leverage on the predicted loss, with their shares.
        next_experiment: Cell that would narrow the predicted loss most.
        warnings: Caveats.
    """

    plan: TrainingPlan
    others: list[TrainingPlan]
    doublings: list[Doubling]
    verdict: AdviceVerdict
    why: str
    leans_on: list[tuple[str, float]]
    next_experiment: NextExperiment
    warnings: list[str]


def format_advice(advice: Advice) -> Iterator[str]:
    """Yield the advice line by line."""
    plan = advice.plan
    yield (
        f"Take {plan.size}: adapt it on {plan.tokens:,.0f} tokens ({plan.epochs:.1f} epochs) and fine-tune it on "
        f"{plan.labels:,.0f} labels. Training takes {plan.gpu_hours:.2g} hours. A request takes about "
        f"{plan.latency_ms:.0f} ms; measure it with bin/loadtest."
    )
    yield f"Expect {_format_expected(plan)}."
    yield f"Adaptation: {advice.verdict}; {advice.why}."
    yield from (_format_doubling(doubling) for doubling in advice.doublings)
    for other in advice.others:
        yield f"Alternative: {other.size} on {other.tokens:,.0f} tokens: {_format_expected(other)}."
    best = advice.next_experiment
    yield (
        f"One more cell narrows the interval of the loss most at {best.size}, {best.tokens:,.0f} tokens and "
        f"{best.labels:,.0f} labels: by {best.narrowing:.0%}."
    )
    cells = ", ".join(f"{cell} ({share:.0%})" for cell, share in advice.leans_on)
    yield f"The most influential cells are {cells}."
    yield from (f"Warning: {warning}." for warning in advice.warnings)


def _format_expected(plan: TrainingPlan) -> str:
    shares = [
        f"{name[:3]}-{name[3:]} {plan.expected[name]:.1%}" for name in ("top1", "top3", "top5") if name in plan.expected
    ]
    return ", ".join([*shares, f"loss {plan.expected['loss']:.3f}"])


def _format_doubling(doubling: Doubling) -> str:
    missed = f", the share missed at top-1 {_format_change(doubling.missed)}" if doubling.missed else ""
    cost = "" if doubling.dollars is None else f", for {doubling.dollars:,.2f} dollars more"
    more = "A larger size" if doubling.what == "size" else f"Twice the {doubling.what}"
    return f"{more} ({doubling.to}): loss {_format_change(doubling.loss)}{missed}{cost}."


def _format_change(ratio: Interval) -> str:
    return format(Interval(ratio.value - 1, ratio.low - 1, ratio.high - 1), "+.1%")

"""`bin/scaling advise`: the advice, in words or as JSON."""

import json
from collections.abc import Iterator, Sequence

from jaxtempl import files
from jaxtempl.config import parsing
from jaxtempl.config.scaling import ScalingAdviseConfig
from jaxtempl.errors import UsageError
from jaxtempl.scaling import results
from jaxtempl.scaling.advice import Advice, Adviser, Doubling, Plan, Wishes
from jaxtempl.scaling.laws.fitting import Value
from jaxtempl.specs.accelerators import ACCELERATORS


def main(argv: Sequence[str]) -> None:
    """`bin/scaling advise`."""
    asked = parsing.parse(ScalingAdviseConfig, argv)
    if asked.device == "none":
        raise UsageError(f"--device=none trains nothing; it is one of {', '.join(ACCELERATORS)}")
    advice = Adviser(results.read_all(asked.runs), _wishes(asked)).advice()
    print(json.dumps(files.plain(advice), indent=1) if asked.json else "\n".join(told(advice)))


def _wishes(asked: ScalingAdviseConfig) -> Wishes:
    device = ACCELERATORS[asked.device]
    return Wishes(
        float(asked.tokens),
        float(asked.labels),
        asked.gpu_hours,
        asked.latency_ms,
        device,
        asked.mfu,
        asked.price_label,
        asked.price_gpu_hour or device.price,
        asked.extrapolate,
    )


def told(advice: Advice) -> Iterator[str]:
    """The advice, line by line."""
    plan = advice.plan
    yield (
        f"Take {plan.size}: adapt it on {plan.tokens:,.0f} tokens ({plan.epochs:.1f} epochs), fine-tune it on "
        f"{plan.labels:,.0f} labels. {plan.gpu_hours:.2g} hours; an answer in about {plan.latency_ms:.0f} ms, which "
        "bin/loadtest measures."
    )
    yield f"Expect {_expected(plan)}."
    yield f"Adaptation: {advice.verdict}; {advice.why}."
    yield from (_doubled(doubling) for doubling in advice.doublings)
    yield from (f"Instead, {other.size} on {other.tokens:,.0f} tokens: {_expected(other)}." for other in advice.others)
    leans = ", ".join(f"{cell} ({share:.0%})" for cell, share in advice.leans_on)
    yield f"It leans most on {leans}."
    yield from (f"Beware: {warning}." for warning in advice.warnings)


def _expected(plan: Plan) -> str:
    shares = [
        f"{name[:3]}-{name[3:]} {_share(plan.expected[name])}"
        for name in ("top1", "top3", "top5")
        if name in plan.expected
    ]
    loss = plan.expected["loss"]
    return ", ".join([*shares, f"loss {loss.value:.3f} [{loss.low:.3f}, {loss.high:.3f}]"])


def _share(value: Value) -> str:
    return f"{value.value:.1%} [{value.low:.1%}, {value.high:.1%}]"


def _doubled(doubling: Doubling) -> str:
    missed = f", the share missed at top-1 {_times(doubling.missed)}" if doubling.missed else ""
    cost = "" if doubling.dollars is None else f", for {doubling.dollars:,.2f} dollars more"
    more = "A larger size" if doubling.what == "size" else f"Twice the {doubling.what}"
    return f"{more} ({doubling.to}): loss {_times(doubling.loss)}{missed}{cost}."


def _times(value: Value) -> str:
    return f"{value.value - 1:+.1%} [{value.low - 1:+.1%}, {value.high - 1:+.1%}]"

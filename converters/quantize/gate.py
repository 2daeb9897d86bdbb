"""The accuracy gate: a quantized network is accepted only if its top-1 accuracy holds.

Dims: N contexts, S slots.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int
from tqdm import tqdm

from converters.verify.verify import NetworkFunction
from jaxtempl.data.dataset import Dataset
from jaxtempl.data.examples import LabelledContexts, slots_by_id
from jaxtempl.errors import UserError
from jaxtempl.evaluation import metrics
from jaxtempl.evaluation.metrics import Bootstrap
from jaxtempl.runs.run import Run
from jaxtempl.specs.interval import Interval
from jaxtempl.text.cases import Template

SPLIT = "test"
MAX_DROP = Fraction(2, 1000)  # drop of top-1; issue 4
MAX_TEMPLATE_DROP = Fraction(3, 100)  # drop of one template's top-1
MIN_CONTEXTS = 50  # from which on a template is judged by itself
ENOUGH = 500  # contexts, so that the allowed drop of top-1 is one of them
NAMED = 3  # templates in an error; all are in the figures


class GateContexts(NamedTuple):
    """Contexts whose template is a class of the run.

    Attributes:
        rows: token ids of each window.
        slots: the run's slot of each.
        cases: case of each; contexts of one case are correlated.
    """

    rows: list[list[int]]
    slots: Int[np.ndarray, " N"]
    cases: Int[np.ndarray, " N"]


def read_gate_contexts(found: Run, dataset: Dataset, wanted: int) -> GateContexts:
    """Return `wanted` labelled contexts of the test split (or all, where there are fewer) in a fixed random order.

    Raises:
        UserError: there are none.
    """
    contexts = LabelledContexts.read(dataset, SPLIT, found.window).relabel(slots_by_id(found.templates))
    chosen = contexts.known().sample(None, 0).with_text().take(slice(wanted))
    if not len(chosen):
        raise UserError(
            f"{dataset.folder} has no labelled {SPLIT} contexts of the templates of {found.folder}, on which the "
            "quantized network is compared; pass --data=DIR of a dataset that has some"
        )
    return GateContexts([chosen[i].tokens for i in range(len(chosen))], chosen.slot, chosen.case)


class ScoredContexts(NamedTuple):
    """A network's hits on labelled contexts.

    Attributes:
        hits: whether the template that was sent ranks first; false where a logit is not finite.
        not_finite: number of contexts with a logit that is not finite.
    """

    hits: Bool[np.ndarray, " N"]
    not_finite: int


def score(
    networks: Mapping[str, NetworkFunction], found: GateContexts, progress: bool = False
) -> dict[str, ScoredContexts]:
    """Score each network on each context, one at a time: dynamic scales would depend on the other rows of a batch."""
    with tqdm(total=len(networks) * len(found.rows), desc="scoring", unit=" contexts", disable=not progress) as bar:
        return {name: _score(network, found, bar) for name, network in networks.items()}


def _score(network: NetworkFunction, found: GateContexts, bar: Any) -> ScoredContexts:
    hits, finite = np.zeros(len(found.rows), bool), np.zeros(len(found.rows), bool)
    for i, row in enumerate(found.rows):
        logits = network(np.array([row], np.int32), np.array([len(row)], np.int32))
        finite[i] = np.isfinite(logits).all()
        hits[i] = finite[i] and metrics.ranks(logits, found.slots[i : i + 1])[0] == 0
        bar.update()
    return ScoredContexts(hits, int((~finite).sum()))


@dataclasses.dataclass(frozen=True)
class Top1Change:
    """Top-1 hits on the same contexts before and after.

    Attributes:
        name: group of contexts: all, or those of one template.
        contexts: number of contexts, at least 1.
        before: hits of the float network.
        after: hits of the quantized one.
    """

    name: str
    contexts: int
    before: int
    after: int

    @property
    def drop(self) -> Fraction:
        """Lost hits as an exact share of the contexts; negative if there are more hits than before."""
        return Fraction(self.before - self.after, self.contexts)

    def summary(self) -> str:
        """Return the change as text."""
        before, after = (hits / self.contexts for hits in (self.before, self.after))
        return f"{self.name}: {before:.2%} -> {after:.2%} of {self.contexts:,}, {points(self.drop)}"


@dataclasses.dataclass(frozen=True)
class GateVerdict:
    """The verdict of the gate.

    Attributes:
        overall: change over all contexts.
        drop: its drop as a share, with a 95 % confidence interval from a bootstrap over cases.
        templates: change of each template that has contexts, largest drop first.
        not_finite: number of contexts for which the quantized network gives logits that are not finite.
    """

    overall: Top1Change
    drop: Interval
    templates: list[Top1Change]
    not_finite: int

    @property
    def judged(self) -> list[Top1Change]:
        """Templates with at least MIN_CONTEXTS contexts."""
        return [change for change in self.templates if change.contexts >= MIN_CONTEXTS]


def judge(
    before: ScoredContexts, after: ScoredContexts, found: GateContexts, templates: Sequence[Template]
) -> GateVerdict:
    """Compare the quantized network with the float one."""
    drop = Bootstrap(found.cases, 0).mean(before.hits.astype(float) - after.hits)
    names = {template.slot: template.id for template in templates}
    each = [_change(names[slot], before, after, found.slots == slot) for slot in np.unique(found.slots).tolist()]
    each.sort(key=lambda change: (-change.drop, -change.contexts, change.name))
    everything = np.ones(len(found.rows), bool)
    return GateVerdict(_change("top-1", before, after, everything), drop, each, after.not_finite)


def _change(name: str, before: ScoredContexts, after: ScoredContexts, of: Bool[np.ndarray, " N"]) -> Top1Change:
    return Top1Change(name, int(of.sum()), int(before.hits[of].sum()), int(after.hits[of].sum()))


def faults(verdict: GateVerdict) -> list[str]:
    """Return the reasons why the network is rejected; an empty list if it is accepted."""
    found: list[str] = []
    if verdict.not_finite:
        found.append(f"the logits of {verdict.not_finite:,} contexts are not finite")
    if verdict.overall.drop > MAX_DROP:
        found.append(f"{verdict.overall.summary()} ({points(MAX_DROP)} allowed)")
    dropped = [change for change in verdict.judged if change.drop > MAX_TEMPLATE_DROP]
    if dropped:
        worst = "; ".join(change.summary() for change in dropped[:NAMED])
        found.append(
            f"{len(dropped)} of {len(verdict.judged)} templates with {MIN_CONTEXTS} contexts fall by more than "
            f"{points(MAX_TEMPLATE_DROP)}, worst {worst}"
        )
    return found


def caveats(verdict: GateVerdict) -> list[str]:
    """Return the reasons why the verdict is weak; an empty list if it is not."""
    found: list[str] = []
    if verdict.overall.contexts < ENOUGH:
        one = points(Fraction(1, verdict.overall.contexts))
        found.append(f"of {verdict.overall.contexts:,} labelled contexts each one is {one}")
    if not verdict.judged:
        found.append(f"no template has {MIN_CONTEXTS} contexts")
    return found


def points(share: Fraction | float) -> str:
    """Return a share in percentage points."""
    return f"{float(100 * share):.2g} points"


def to_dict(verdict: GateVerdict) -> Mapping[str, Any]:
    """Return the verdict as it is stored in `bundle.json`: shares and template ids."""
    overall = verdict.overall
    return {
        "split": SPLIT,
        "contexts": overall.contexts,
        "hits_before": overall.before,
        "hits_after": overall.after,
        "fall": verdict.drop._asdict(),
        "not_finite": verdict.not_finite,
        "templates_judged": len(verdict.judged),
        "worst_templates": [dataclasses.asdict(change) for change in verdict.judged[:NAMED]],
        "faults": faults(verdict),
        "doubts": caveats(verdict),
    }

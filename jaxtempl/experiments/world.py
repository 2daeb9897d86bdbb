"""A simulated world: advocates, templates, models, experiments and faults, in one file of configs/worlds/."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import msgspec

from jaxtempl.config import paths
from jaxtempl.config.structs import read_struct
from jaxtempl.serve.experiments.definition import ABTest, Arm, Experiments, Holdout

FORMAT = 1

Fraction = Annotated[float, msgspec.Meta(ge=0, lt=1)]
Positive = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(ge=1)]


class SimulatedModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model and what it saves.

    Attributes:
        version: Version of its bundle.
        saving: Share of the selection time that its suggestions save at week 0; negative if they cost time.
        week: Week of its release; None if it is tested and never released.
    """

    version: str
    saving: Annotated[float, msgspec.Meta(lt=1)]
    week: int | None = None


class SimulatedTest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An A/B test of two models, half of the pairs each.

    Attributes:
        arms: Versions of the models.
        week: First week.
        weeks: Number of weeks.
    """

    arms: tuple[str, str]
    week: int
    weeks: Count = 2


class World(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Simulated advocates and experiments; the defaults are measured on picks of real people (RasaHQ/STAR, 2020).

    Attributes:
        name: Name of the world.
        models: Models by release.
        tests: A/B tests, one at a time.
        start: First moment.
        weeks: Length.
        advocates: Number of advocates.
        pairs_a_week: Pairs of advocate and case.
        picks: Mean replies a pair.
        templates: Number of templates, chosen by Zipf's law.
        holdout: Share of the pairs in the holdout.
        seconds: Mean selection time without suggestions.
        gap_seconds: Mean seconds of a case between two selections.
        sd_log: Standard deviation of the logarithm of selection times.
        advocate_correlation: Correlation of that logarithm within an advocate.
        pair_correlation: Correlation of that logarithm within a pair.
        volume_cv: Coefficient of variation of the advocates' volumes.
        effect_sd: Standard deviation of an advocate's saving over the mean saving.
        learning: Share by which times with suggestions fall each week.
        accuracy: Mean probability that five suggestions contain the wanted template; it varies by template, and the
            saving with it.
        freehand: Share of replies without a template.
        induced: Probability that an advocate takes the first suggestion when the wanted template is not shown.
        mixed: Share of pairs whose second half is served by the other arm.
        lost_events: Share of events that never arrive.
        lost_pairs: Share of the pairs of the last arm that are lost after assignment.
        format: Version of the file's format.
    """

    name: str
    models: tuple[SimulatedModel, ...]
    tests: tuple[SimulatedTest, ...]
    start: Annotated[datetime, msgspec.Meta(tz=True)]
    weeks: Count
    advocates: Annotated[int, msgspec.Meta(ge=2)] = 150
    pairs_a_week: Count = 2000
    picks: Annotated[float, msgspec.Meta(ge=1)] = 7.9
    templates: Annotated[int, msgspec.Meta(ge=6)] = 300
    holdout: Fraction = 0.02
    seconds: Positive = 20.0
    gap_seconds: Positive = 190.0
    sd_log: Positive = 0.71
    advocate_correlation: Fraction = 0.21
    pair_correlation: Fraction = 0.30
    volume_cv: Positive = 1.16
    effect_sd: Annotated[float, msgspec.Meta(ge=0)] = 0.3
    learning: Fraction = 0.0
    accuracy: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.8
    freehand: Fraction = 0.135
    induced: Fraction = 0.0
    mixed: Fraction = 0.0
    lost_events: Fraction = 0.0
    lost_pairs: Fraction = 0.0
    format: int = FORMAT

    def begin(self, week: int) -> datetime:
        """Return the first moment of a week."""
        return self.start + timedelta(weeks=week)

    def released(self, week: int) -> str:
        """Return the version that is in production in a week."""
        return max((m.week, m.version) for m in self.models if m.week is not None and m.week <= week)[1]

    def experiments(self, week: int) -> Experiments:
        """Return the experiments of a week."""
        holdout = Holdout(f"{self.name}-holdout", self.holdout) if self.holdout else None
        running = [test for test in self.tests if test.week <= week < test.week + test.weeks]
        return Experiments(holdout, self._ab_test(running[0]) if running else None)

    def _ab_test(self, test: SimulatedTest) -> ABTest:
        name = "-".join(test.arms)
        begin, end = self.begin(test.week), self.begin(test.week + test.weeks)
        halves = zip(test.arms, ((0.0, 0.5), (0.5, 1.0)), strict=True)
        return ABTest(
            name, f"{self.name}-{name}", begin, end, {arm: Arm(f"bundles/{arm}", half) for arm, half in halves}
        )


def read(name: str) -> World:
    """Read a world by its name in configs/worlds/ or by its path.

    Raises:
        UserError: The file is missing, newer than this release, or describes an impossible world.
    """
    included = paths.CONFIGS / "worlds" / f"{name}.yaml"
    path = included if included.is_file() else Path(name)
    return read_struct(path, World, FORMAT, _faults, "see configs/worlds/paper.yaml for an example")


def _faults(world: World) -> Iterator[str]:
    versions = [model.version for model in world.models]
    if not any(model.week == 0 for model in world.models):
        yield "models has none with week: 0; one must serve from the start"
    if len(set(versions)) < len(versions):
        yield f"models has a version twice ({', '.join(versions)})"
    if world.pair_correlation < world.advocate_correlation:
        yield "pair_correlation is below advocate_correlation, and a pair has one advocate"
    for test in world.tests:
        for arm in sorted(set(test.arms) - set(versions)):
            yield f"tests has the arm {arm!r}, which is not one of the models ({', '.join(versions)})"
        if len(set(test.arms)) < 2:
            yield f"a test compares {test.arms[0]!r} with itself; give the second model another version"
    weeks = sorted((test.week, test.week + test.weeks) for test in world.tests)
    if any(end > begin for (_, end), (begin, _) in pairwise(weeks)):
        yield "two tests overlap; one runs at a time"

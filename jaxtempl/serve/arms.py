"""The experiments in force, with a warm model for each arm. No JAX."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from jaxtempl.bundle import bundle
from jaxtempl.errors import UserError
from jaxtempl.serve.experiments.assignment import Assignment, assign
from jaxtempl.serve.experiments.definition import Experiments
from jaxtempl.serve.inference.model import ServedModel
from jaxtempl.serve.schema import SuggestInput
from jaxtempl.serve.shadow import ShadowProcess

Opener = Callable[[Path], ServedModel]


@dataclasses.dataclass(frozen=True)
class Arms:
    """Experiments and their models; immutable, so that requests see either the former ones or the next.

    Attributes:
        experiments: What is in force.
        sha256: Its sum.
        models: Models of the test, by arm.
        shadow: The shadow, if any.
    """

    experiments: Experiments = Experiments()
    sha256: str = Experiments().sha256
    models: Mapping[str, ServedModel] = dataclasses.field(default_factory=dict[str, ServedModel])
    shadow: ShadowProcess | None = None

    @property
    def is_assigning(self) -> bool:
        """Return whether requests get arms."""
        return bool(self.experiments.holdout or self.experiments.test)

    def assign(self, request: SuggestInput, case_id: str | None) -> Assignment | None:
        """Return the arm of a request now; None if it has no advocate or case, or no experiment applies."""
        return assign(self.experiments, request.advocate_id, case_id, datetime.now(UTC))

    def model(self, assignment: Assignment | None, production: ServedModel) -> ServedModel:
        """Return the model of an arm; the holdout and pairs outside of a test have the production model."""
        return self.models.get(assignment.arm, production) if assignment else production


def open_arms(
    new: Experiments,
    former: Arms,
    loaded: Iterable[ServedModel],
    open_bundle: Opener,
    open_shadow: Callable[[Path], ShadowProcess],
    opened: contextlib.ExitStack,
) -> Arms:
    """Verify, load and warm what experiments need; what is loaded already is shared.

    Args:
        new: The experiments.
        former: Those in force.
        loaded: Models that are loaded, the one to share last.
        open_bundle: Loads and warms a bundle.
        open_shadow: Starts the shadow of a bundle.
        opened: Closes what this opened, should the change fail.

    Raises:
        UserError: A bundle cannot be served, or is not the one that an arm of the running test started with.
    """
    known = {(model.folder, model.version): model for model in loaded}
    models: dict[str, ServedModel] = {}
    for name, arm in new.test.arms.items() if new.test else ():
        folder = Path(arm.bundle)
        key = folder, str(bundle.read_manifest(folder)["version"])
        if key not in known:
            known[key] = open_bundle(folder)
            opened.callback(known[key].close)
        models[name] = known[key]
    _check_versions(new, models, former)
    return Arms(new, new.sha256, models, _shadow(new, former, open_shadow, opened))


def _check_versions(new: Experiments, models: Mapping[str, ServedModel], former: Arms) -> None:
    running = former.experiments.test
    if not (running and new.test and new.test.name == running.name and running.is_running(datetime.now(UTC))):
        return
    for name in models.keys() & former.models.keys():
        was, now = former.models[name].version, models[name].version
        if was != now:
            raise UserError(
                f"the bundle of arm {name} has version {now}, and the running test {running.name} started with {was}; "
                "restore it, or give the test another name and salt"
            )


def _shadow(
    new: Experiments, former: Arms, open_shadow: Callable[[Path], ShadowProcess], opened: contextlib.ExitStack
) -> ShadowProcess | None:
    if new.shadow is None:
        return None
    folder = Path(new.shadow.bundle)
    version = str(bundle.read_manifest(folder)["version"])
    if former.shadow and (former.shadow.folder, former.shadow.version) == (folder, version) and former.shadow.is_alive:
        return former.shadow
    shadow = open_shadow(folder)
    opened.callback(shadow.close)
    return shadow

"""Which config may change when a run resumes."""

import hashlib
import os
import re
from collections.abc import Mapping
from typing import Any

import yaml

from jaxtempl.config import parsing
from jaxtempl.config.training import TrainConfig
from jaxtempl.errors import UsageError, UserError
from jaxtempl.runs import provenance, run
from jaxtempl.runs.run import Run
from jaxtempl.training.initialization import Initialization

# They change where and how a training computes, not what.
MAY_CHANGE = {
    *("resume", "allow_change", "recover_minutes", "keep", "gradient_accumulation_steps", "remat", "tracker"),
    *("mesh.data", "mesh.fsdp", "mesh.tensor", "coordinator", "num_processes", "process_id"),
}
VERSIONS = ("jaxtempl", "jax", "flax", "optax")  # other versions may compute other numbers


def check_changes(opened: Run, config: TrainConfig, init: Initialization, datasets: Mapping[str, str]) -> None:
    """Check what has changed since the run started, and record allowed changes in the run.

    Raises:
        UserError: A setting has changed that may not, or `--allow_change` names an unknown one.
    """
    facts = {"versions": provenance.provenance()["versions"], "start": init.origin, "datasets": dict(datasets)}
    recorded = {**yaml.safe_load(parsing.dump(type(config)())), **run.read_config(opened.folder)}
    old = _comparable(recorded, opened.manifest)  # a field that is newer than the run had its default
    new = _comparable(yaml.safe_load(parsing.dump(config)), facts)
    unknown = set(config.allow_change) - set(new)
    if unknown:
        raise UsageError(f"--allow_change={min(unknown)!r} is unknown; allowed: {', '.join(new)}")
    changed = {name: (old.get(name), new.get(name)) for name in {**old, **new} if _differ(old.get(name), new.get(name))}
    _refuse(opened, {name: values for name, values in changed.items() if name not in config.allow_change})
    if changed:
        changes = {name: {"was": was, "is": now} for name, (was, now) in changed.items()}
        run.record_changes(opened, parsing.dump(config), facts, changes)


def _differ(was: Any, now: Any) -> bool:
    """Return whether two values differ by more than the spelling of a path, such as a slash at its end."""
    return _spell(was) != _spell(now)


def _spell(value: Any) -> Any:
    """Return one spelling of the paths in `PATH`, `RUN@STEP` or `DIR:WEIGHT,...`; other values unchanged."""
    if not isinstance(value, str) or "/" not in value:
        return value
    return ",".join(os.path.normpath(re.sub(r"/+(?=[:@]|$)", "", part)) for part in value.split(","))


def _refuse(opened: Run, changed: Mapping[str, tuple[Any, Any]]) -> None:
    """Raise UserError if anything has changed."""
    if changed:
        changes = "; ".join(f"{name} was {was!r}, is {now!r}" for name, (was, now) in changed.items())
        raise UserError(
            f"{opened.folder} was started with other settings ({changes}); restore them, name another --out, or pass "
            f"--allow_change={','.join(changed)}"
        )


def _comparable(values: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything of a run that may not silently change, by the names that `--allow_change` takes."""
    fixed = {name: value for name, value in values.items() if name not in MAY_CHANGE}
    return fixed | input_digests(facts["start"], facts["datasets"]) | versions(facts)


def versions(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the versions in a manifest that matter for resuming."""
    return {name: facts["versions"].get(name) for name in VERSIONS}


def input_digests(origin: Mapping[str, Any], datasets: Mapping[str, str]) -> dict[str, Any]:
    """Return short digests of datasets and initial weights, whose content may change under the same name."""
    weights = "".join(sorted((origin.get("weights_sha256") or {}).values()))
    digests = {"dataset": "".join(datasets.values()), "start": weights}
    return {name: hashlib.sha256(text.encode()).hexdigest()[:12] for name, text in digests.items()}

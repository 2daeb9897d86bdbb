"""What a run began with and what it is gone on with: what may differ, what may not, and what was allowed to."""

import hashlib
from collections.abc import Mapping
from typing import Any

import yaml

from jaxtempl.config import parsing
from jaxtempl.config.training import TrainConfig
from jaxtempl.errors import UsageError, UserError
from jaxtempl.runs import provenance, run
from jaxtempl.runs.run import Run
from jaxtempl.training.initialization import Initialization

# What a resumed training may say differently: it changes where and how it is computed, not what.
MAY_CHANGE = {
    *("resume", "allow_change", "recover_minutes", "keep", "gradient_accumulation_steps", "remat", "tracker"),
    *("mesh.data", "mesh.fsdp", "mesh.tensor", "coordinator", "num_processes", "process_id"),
}
VERSIONS = ("jaxtempl", "jax", "flax", "optax")  # another one of these may compute another number


def check_changes(opened: Run, settings: TrainConfig, begin: Initialization, datasets: Mapping[str, str]) -> None:
    """What has changed since the run began, unless it may; what may is written into the run.

    Raises:
        UserError: something else has changed, or `--allow_change` names what is not there.
    """
    facts = {"versions": provenance.provenance()["versions"], "start": begin.origin, "datasets": dict(datasets)}
    old, new = (
        _known(run.read_config(opened.folder), opened.manifest),
        _known(yaml.safe_load(parsing.dump(settings)), facts),
    )
    unknown = set(settings.allow_change) - set(new)
    if unknown:
        raise UsageError(f"--allow_change={min(unknown)!r} is unknown; allowed: {', '.join(new)}")
    changed = {name: (old.get(name), new.get(name)) for name in {**old, **new} if old.get(name) != new.get(name)}
    refused = {name: values for name, values in changed.items() if name not in settings.allow_change}
    if refused:
        told = "; ".join(f"{name} was {was!r}, is {now!r}" for name, (was, now) in refused.items())
        raise UserError(
            f"{opened.folder} began otherwise ({told}); bring that back, name another --out, or pass "
            f"--allow_change={','.join(refused)}"
        )
    if changed:
        told = {name: {"was": was, "is": now} for name, (was, now) in changed.items()}
        run.record_changes(opened, parsing.dump(settings), facts, told)


def _known(values: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """All of a run by which a change is known, each by the name that `--allow_change` takes."""
    kept = {name: value for name, value in values.items() if name not in MAY_CHANGE}
    return kept | input_digests(facts["start"], facts["datasets"]) | versions(facts)


def versions(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Those that matter, out of a manifest."""
    return {name: facts["versions"].get(name) for name in VERSIONS}


def input_digests(origin: Mapping[str, Any], datasets: Mapping[str, str]) -> dict[str, Any]:
    """Short digests of the dataset and of the start, which may change under the same name."""
    weights = "".join(sorted((origin.get("weights_sha256") or {}).values()))
    named = {"dataset": "".join(datasets.values()), "start": weights}
    return {name: hashlib.sha256(text.encode()).hexdigest()[:12] for name, text in named.items()}

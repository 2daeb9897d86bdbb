"""What a run began with and what it is gone on with: what may differ, what may not, and what was allowed to."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from jaxtempl import config, run
from jaxtempl.config import TrainConfig
from jaxtempl.errors import UsageError, UserError
from jaxtempl.run import Run
from jaxtempl.start import Start

# What a resumed training may say differently: it changes where and how it is computed, not what.
FREE_TO_CHANGE = {
    *("resume", "allow_change", "recover_minutes", "keep", "accumulate", "remat", "tracker"),
    *("mesh.data", "mesh.fsdp", "mesh.tensor", "coordinator", "num_processes", "process_id"),
}
VERSIONS = ("jaxtempl", "jax", "flax", "optax")  # another one of these may compute another number


def refuse(opened: Run, settings: TrainConfig, begin: Start, datasets: Mapping[str, str]) -> None:
    """What has changed since the run began, unless it may; what may is written into the run.

    Raises:
        UserError: something else has changed, or `--allow_change` names what is not there.
    """
    facts = {"versions": run.provenance()["versions"], "start": begin.origin, "datasets": dict(datasets)}
    old, new = _known(opened.folder / "config.yaml", opened.manifest), _known(config.dump(settings), facts)
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
        run.change(opened, config.dump(settings), facts, told)


def _known(settings: Path | str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """All of a run by which a change is known, each by the name that `--allow_change` takes."""
    values = config.load(settings) if isinstance(settings, Path) else yaml.safe_load(settings)
    kept = {name: value for name, value in values.items() if name not in FREE_TO_CHANGE}
    return kept | inputs(facts["start"], facts["datasets"]) | versions(facts)


def versions(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Those that matter, out of a manifest."""
    return {name: facts["versions"].get(name) for name in VERSIONS}


def inputs(origin: Mapping[str, Any], datasets: Mapping[str, str]) -> dict[str, Any]:
    """Short digests of the dataset and of the start, which may change under the same name."""
    weights = "".join(sorted((origin.get("weights_sha256") or {}).values()))
    named = {"dataset": "".join(datasets.values()), "start": weights}
    return {name: hashlib.sha256(text.encode()).hexdigest()[:12] for name, text in named.items()}

"""Where a training starts: this run's newest checkpoint, another run's, Hugging Face weights, or random ones."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jax.sharding import Mesh

from jaxtempl import files
from jaxtempl.config import sizes
from jaxtempl.config.training import AdaptConfig, FinetuneConfig
from jaxtempl.errors import UsageError, UserError
from jaxtempl.huggingface import checks, hub, layout
from jaxtempl.huggingface.load import read
from jaxtempl.models import factory
from jaxtempl.parallel import rules
from jaxtempl.runs import run
from jaxtempl.specs.architecture import Architecture, architecture_from

PhaseConfig = AdaptConfig | FinetuneConfig
Params = dict[str, Any]  # by part: embed, blocks, head and what else the family has


class Initialization(NamedTuple):
    """A model to train, its weights still where they are stored.

    Attributes:
        architecture: of the model.
        parts: of the parameter tree that are stored; others are to be random.
        load: reads some of them, given the sharding of each leaf, into those shardings.
        tokenizer: file of the tokenizer.
        origin: where it came from, for the manifest.
    """

    architecture: Architecture
    parts: frozenset[str]
    load: Callable[[Params], Params]
    tokenizer: Path
    origin: dict[str, Any]


def config_layers(phase: Any, given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What lies under a training's flags; the size is that of the run it goes on from, unless it is given.

    Raises:
        UsageError: neither --size nor --from says which size it is.
    """
    source = given.get("from")
    size = given.get("size") or (run.resolve(str(source))[0].manifest["size"] if source else None)
    if not size:
        raise UsageError("which model? pass --size=SIZE or --from=RUN")
    return [*sizes.training_layers(phase, str(size), str(given.get("recipe", "default"))), {"size": str(size)}]


def resolve_init(config: PhaseConfig) -> Initialization:
    """The model that the flags name: another run's checkpoint, Hugging Face weights, or random.

    Raises:
        UserError: no such run or weights, or they are not of the size that was asked for.
    """
    if config.start and config.weights:
        raise UsageError("--from and --weights both say where to start; pass one")
    if config.start and config.revision:
        raise UsageError("--revision is of weights on the hub, and --from names a run; pass one")
    if config.start:
        return _from_run(config.start, config.size)
    size = sizes.read_size(config.size)
    architecture = architecture_from(size["architecture"])
    tokenizer = sizes.tokenizer_path(config.size)
    name = config.weights or size["weights"]
    if name == "random":
        return Initialization(architecture, frozenset(), lambda places: {}, tokenizer, {"weights": "random"})
    start = _from_weights(name, config.revision or size.get("revision"), architecture, tokenizer)
    if isinstance(config, AdaptConfig) and "head" not in start.parts:
        raise UserError(
            f"{name} has no language-model head (embed_out.weight), which adapt trains; name weights with one"
        )
    return start


def _from_run(reference: str, size: str) -> Initialization:
    source, step = run.resolve(reference)
    if size != source.manifest["size"]:
        raise UserError(f"--size={size}, but --from={reference} is a {source.manifest['size']}; leave --size out")
    if source.phase != "adapt":
        raise UserError(f"--from={reference} is a finetune run; name an adapt run")
    origin = {"run": str(source.folder), "step": step, "weights_sha256": _digest(source.checkpoints.folder / str(step))}
    load = functools.partial(_restored, source, step)
    parts = frozenset(factory.abstract_params(source.architecture))
    return Initialization(source.architecture, parts, load, source.folder / "tokenizer.json", origin)


def _restored(source: run.Run, step: int, places: Params) -> Params:
    shapes = factory.abstract_params(source.architecture, source.slots)
    return source.checkpoints.params(step, rules.with_shardings({part: shapes[part] for part in places}, places))


def _from_weights(name: str, revision: str | None, architecture: Architecture, tokenizer: Path) -> Initialization:
    folder = hub.fetch(name, revision)
    found = checks.check(folder, architecture)
    parts = found.parts if found.head == "lm" else found.parts - {"head"}
    own = checks.own_file(folder, layout.TOKENIZER)
    origin = {"weights": name, "revision": revision, "weights_sha256": _digest(folder)}
    load: Callable[[Params], Params] = lambda places: read(folder, architecture, places).params  # noqa: E731
    return Initialization(found.architecture, parts, load, own if own.exists() else tokenizer, origin)


def _digest(folder: Path) -> dict[str, str]:
    """sha256 of the files that hold the weights; of a checkpoint, of the manifest that sums up all its files."""
    kept = [*folder.glob("*.safetensors"), *folder.glob("manifest.json")]
    return {path.name: files.sha256(path) for path in sorted(kept)}


def initial_params(start: Initialization, slots: int | None, seed: int, mesh: Mesh) -> Params:
    """All parameters, each made or read where it lies on the mesh: what is stored, and random ones for the rest.

    Args:
        start: what is stored; of its head nothing is taken where a template head is to be.
        slots: of that; None goes on with the language model.
        seed: of what is random.
        mesh: where they lie.
    """
    places = rules.shardings(mesh, factory.abstract_params(start.architecture, slots))
    stored = (start.parts if slots is None else start.parts - {"head"}) & set(places)
    kept = start.load({part: place for part, place in places.items() if part in stored}) if stored else {}
    fresh = {part: place for part, place in places.items() if part not in stored}
    return kept | factory.random_params(start.architecture, slots, seed, fresh) if fresh else kept

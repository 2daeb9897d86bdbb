"""Resolve where a training starts: another run's checkpoint, Hugging Face weights, or random weights.

A model is named by one of `configs/sizes/`, by the run that it continues, or by the folder of its weights alone.
"""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jax.sharding import Mesh

from jaxtempl import files
from jaxtempl.config import sizes
from jaxtempl.config.training import AdaptConfig, FinetuneConfig
from jaxtempl.errors import UsageError, UserError
from jaxtempl.huggingface import checks, hub
from jaxtempl.huggingface.layout import Params
from jaxtempl.huggingface.load import read
from jaxtempl.models import factory
from jaxtempl.parallel import rules
from jaxtempl.runs import run
from jaxtempl.specs import flops, published
from jaxtempl.specs.architecture import Architecture
from jaxtempl.text.pretrained import folder_tokenizer
from jaxtempl.text.tokenizer import Tokenizer

PhaseConfig = AdaptConfig | FinetuneConfig


class NamedModel(NamedTuple):
    """A model before anything but its description is read.

    Attributes:
        size: One of `configs/sizes/`, or the name of the weights' folder or repository.
        architecture: Its shape.
    """

    size: str
    architecture: Architecture


class Initialization(NamedTuple):
    """A model to train, its weights still where they are stored.

    Attributes:
        architecture: Shape of the model.
        parts: Parts of the parameter tree that are stored; the others are initialized at random.
        load: Reads the parts it is given a sharding for, into these shardings.
        tokenizer: Tokenizer of the model.
        origin: Source of the weights, for the manifest.
    """

    architecture: Architecture
    parts: frozenset[str]
    load: Callable[[Params], Params]
    tokenizer: Tokenizer
    origin: dict[str, Any]


def config_layers(phase: Literal["adapt", "finetune"], given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the layers under a training's flags; a model of another size takes the defaults of the nearest one.

    Raises:
        UsageError: No flag names the model.
        UserError: There is no such run, or no such weights.
    """
    size, weights, start, revision = (str(given.get(key) or "") for key in ("size", "weights", "from", "revision"))
    model = identify_model(size, weights, start, revision)
    layers = sizes.training_layers(phase, _defaults_of(model), str(given.get("recipe", "default")))
    return [*layers, {"size": model.size}]


def _defaults_of(model: NamedModel) -> str:
    """Return the size whose defaults a model takes, and print it where that is not its own."""
    if model.size in sizes.size_names():
        return model.size
    nearest = published.nearest_size(model.architecture)
    count = flops.parameter_count(model.architecture)
    nearest_count = flops.parameter_count(published.size_architecture(nearest))
    print(
        f"# {model.size} has {count:,} parameters; its defaults are those of {nearest} ({nearest_count:,}), "
        "the nearest of configs/sizes/ in its family",
        flush=True,
    )
    return nearest


def identify_model(size: str, weights: str, start: str, revision: str) -> NamedModel:
    """Return the model that --size, --weights or --from names; of weights, config.json alone is read.

    Raises:
        UsageError: No flag names the model, or --size is neither in `configs/sizes/` nor the name of the weights.
        UserError: There is no such run, or no such weights.
    """
    if size in sizes.size_names():
        return NamedModel(size, published.size_architecture(size))
    if start:
        source = run.resolve(start)[0]
        found = NamedModel(source.manifest["size"], source.architecture)
    elif weights not in ("", "random"):
        found = _identify_weights(weights, revision)
    elif not size:
        raise UsageError("no flag names the model; pass --size=SIZE, --weights=DIR|HUB or --from=RUN")
    else:
        raise sizes.unknown_size(size)
    if size not in ("", found.size):
        allowed = ", ".join(sizes.size_names())
        raise UsageError(f"--size={size!r} is unknown, and the model is {found.size}; leave it out, or use: {allowed}")
    return found


def _identify_weights(weights: str, revision: str) -> NamedModel:
    architecture = checks.read_architecture(hub.fetch(weights, revision or None, tensors=False))
    name = Path(weights).resolve().name if Path(weights).is_dir() else weights.rpartition("/")[2]
    taken = name in sizes.size_names() and published.size_architecture(name) != architecture
    return NamedModel(f"custom-{name}" if taken else name, architecture)


def identify_tokenizer(config: PhaseConfig) -> Tokenizer:
    """Return the tokenizer of the model that the flags name, without its weights.

    Raises:
        UserError: There is no such run, there are no such weights, or the tokenizer has ids that their embedding lacks.
    """
    if config.start:
        return run.resolve(config.start)[0].tokenizer
    model = identify_model(config.size, config.weights, "", config.revision)
    if config.weights in ("", "random"):
        return _size_tokenizer(model.size, config.weights)
    return _weights_tokenizer(config.weights, hub.fetch(config.weights, config.revision or None, tensors=False), model)


def _weights_tokenizer(name: str, folder: Path, model: NamedModel) -> Tokenizer:
    tokenizer = folder_tokenizer(folder) or _size_tokenizer(model.size, name)
    tokenizer.check_rows(model.architecture.vocabulary, name)
    return tokenizer


def _size_tokenizer(size: str, weights: str) -> Tokenizer:
    if size not in sizes.size_names():
        raise UserError(f"{weights} has neither tokenizer.json nor vocab.txt; put the model's into the folder")
    return Tokenizer(sizes.tokenizer_path(size))


def resolve_init(config: PhaseConfig) -> Initialization:
    """Return the model that the flags name: another run's checkpoint, Hugging Face weights, or random weights.

    Raises:
        UserError: There is no such run, there are no such weights, or they are not of the stated size.
    """
    if config.start and config.weights:
        raise UsageError("--from and --weights both name the initial weights; pass one")
    if config.start and config.revision:
        raise UsageError("--revision belongs to weights on the hub, and --from names a run; pass one")
    if config.start:
        return _from_run(config.start, config.size)
    model = identify_model(config.size, config.weights, "", config.revision)
    size = sizes.read_size(model.size) if model.size in sizes.size_names() else {}
    name = config.weights or size["weights"]
    if name == "random":
        tokenizer = _size_tokenizer(model.size, name)
        return Initialization(model.architecture, frozenset(), lambda shardings: {}, tokenizer, {"weights": "random"})
    init = _from_weights(name, config.revision or size.get("revision"), model)
    if isinstance(config, AdaptConfig) and "head" not in init.parts:
        raise UserError(f"{name} has no language-model head, which bin/adapt trains; name weights with one")
    return init


def _from_run(reference: str, size: str) -> Initialization:
    source, step = run.resolve(reference)
    if size not in ("", source.manifest["size"]):
        raise UserError(f"--size={size}, but --from={reference} is a {source.manifest['size']}; leave --size out")
    if source.phase != "adapt":
        raise UserError(f"--from={reference} is a finetune run; name an adapt run")
    origin = {"run": str(source.folder), "step": step, "weights_sha256": _digest(source.checkpoints.folder / str(step))}
    load = functools.partial(_restored, source, step)
    parts = frozenset(factory.abstract_params(source.architecture))
    return Initialization(source.architecture, parts, load, source.tokenizer, origin)


def _restored(source: run.Run, step: int, shardings: Params) -> Params:
    shapes = factory.abstract_params(source.architecture, source.slots)
    stored = {part: shapes[part] for part in shardings}
    return source.checkpoints.params(step, rules.with_shardings(stored, shardings))


def _from_weights(name: str, revision: str | None, model: NamedModel) -> Initialization:
    folder = hub.fetch(name, revision)
    contents = checks.check(folder, model.architecture)
    parts = contents.parts if contents.head == "lm" else contents.parts - {"head"}
    tokenizer = _weights_tokenizer(name, folder, model)
    origin = {"weights": name, "revision": revision, "weights_sha256": _digest(folder)}
    load: Callable[[Params], Params] = lambda shardings: read(folder, model.architecture, shardings).params  # noqa: E731
    return Initialization(contents.architecture, parts, load, tokenizer, origin)


def _digest(folder: Path) -> dict[str, str]:
    """Return the sha256 of the files that hold the weights; of a checkpoint, that of its manifest."""
    stored = [*folder.glob("*.safetensors"), *folder.glob("manifest.json")]
    return {path.name: files.sha256(path) for path in sorted(stored)}


def initial_params(init: Initialization, slots: int | None, seed: int, mesh: Mesh) -> Params:
    """Return all parameters, each read or drawn where it lies on the mesh: the stored ones, and random others.

    Args:
        init: Stored weights; their head is not used where a template head is needed.
        slots: Columns of the template head; None keeps the language-model head.
        seed: Seed of the random parameters.
        mesh: Devices that hold the parameters.
    """
    shardings = rules.shardings(mesh, factory.abstract_params(init.architecture, slots))
    stored = (init.parts if slots is None else init.parts - {"head"}) & set(shardings)
    loaded = init.load({part: place for part, place in shardings.items() if part in stored}) if stored else {}
    missing = {part: place for part, place in shardings.items() if part not in stored}
    return loaded | factory.random_params(init.architecture, slots, seed, missing) if missing else loaded

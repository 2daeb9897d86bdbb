"""A tiny dataset and tiny runs, created in a second and large enough to reveal errors."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import shared
from flax import nnx

from jaxtempl.config.data import PrepareConfig
from jaxtempl.config.paths import ASSETS
from jaxtempl.data.dataset import Dataset
from jaxtempl.models import factory
from jaxtempl.prepare import pipeline
from jaxtempl.runs import run
from jaxtempl.runs.run import Run
from jaxtempl.specs.architecture import NeoXArchitecture
from jaxtempl.text.cases import Template

ARCHITECTURE = NeoXArchitecture(layers=1, hidden=16, heads=2, feed_forward=32, vocabulary=8192, positions=64)
ONE_DEVICE = ("--mesh.data=1", "--mesh.fsdp=1")  # where a test is not about meshes: it compiles in half the time
REPLIES = {
    "greet": "Hello, how can I help?",
    "refund": "Your refund is on its way.",
    "card": "Your card is blocked.",
    "bye": "Bye!",
}


def template(slot: int, name: str, **changes: Any) -> Template:
    values = {"text": REPLIES.get(name, name), "active": True, "observed": False, "count": 1, **changes}
    return Template(slot, name, **values)


def case(number: int, middle: str, last: str = "bye") -> dict[str, Any]:
    wish = {"refund": "I want my money back", "card": "my card was stolen"}.get(middle, "something else")
    said = [
        ("customer", "hi", None),
        ("advocate", REPLIES["greet"], "greet"),
        ("customer", f"{wish}, order {number}", None),
        ("advocate", REPLIES.get(middle, "As you like."), middle),
        ("customer", "thanks", None),
        ("advocate", REPLIES.get(last, "See you."), last),
    ]
    return {"case_id": f"case-{number}", "messages": [{"role": r, "text": t, "template": n} for r, t, n in said]}


def dataset(folder: Path, validation: int = 6) -> Dataset:
    """Prepare 20 training, `validation` validation and 6 test cases; one test label, `rare`, is not a class."""
    shared.copied(f"tiny-{validation}", lambda new: _prepare(new, validation), folder)
    return Dataset(folder / "data")


def _prepare(folder: Path, validation: int) -> None:
    folder.mkdir(parents=True)
    middles = ("refund", "card")
    cases = {
        "train": [case(i, middles[i % 2]) for i in range(20)],
        "validation": [case(100 + i, middles[i % 2]) for i in range(validation)],
        "test": [case(200 + i, middles[i % 2], "rare" if i == 5 else "bye") for i in range(6)],
    }
    for split, records in cases.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    given = {split: (str(folder / f"{split}.jsonl"),) for split, records in cases.items() if records}
    pipeline.run(PrepareConfig(**given, size="nano", length=32, out=folder / "data"))


def make_run(
    folder: Path, templates: list[Template], steps: tuple[int, ...] = (3,), scale: int = 4, **facts: Any
) -> Run:
    """Create a finetune run, or an adapt run if there are no templates, with random weights scaled by `scale`."""
    phase = "finetune" if templates else "adapt"
    known = {"phase": phase, "size": "nano", "seed": 0, "length": 32, "datasets": {}, "start": {"weights": "random"}}
    known |= {"mask_documents": False} if phase == "adapt" else {"role_tags": False, "labels": 0}
    known |= facts
    tokenizer = (ASSETS / "nano" / "tokenizer.json").read_text()
    made = run.create(folder, "size: nano\nbatch: 4\n", ARCHITECTURE, tokenizer, templates, known)
    for step in steps:
        params = jax.tree.map(lambda leaf: leaf * scale, factory.random_params(ARCHITECTURE, made.outputs, step))
        made.checkpoints.save(step, "study", params, None, {"step": step})
    made.checkpoints.wait()
    lines = [{"step": s, "loss": 2.0 / s, "validation_loss": 1.0 / s} for s in steps]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return made


@nnx.jit
def logits(model: Any, *inputs: jax.Array) -> jax.Array:
    """Return a language model's logits; compiled as one program, not operation by operation."""
    return model(*inputs)


@nnx.jit
def template_logits(model: Any, *inputs: jax.Array) -> jax.Array:
    """Return a classifier's logits; compiled as one program, not operation by operation."""
    return model.classify(*inputs)


def language_model(made: Run, step: int) -> Callable[[list[int]], np.ndarray]:
    """Return a function from tokens to the logits at each of them: one row, no padding, the head at every position."""
    graphdef, params = made.graphdef(), made.params(step)

    def logits(row: jax.Array) -> jax.Array:
        model: Any = nnx.merge(graphdef, params)
        return model(row)[0]

    compiled = jax.jit(logits)
    return lambda tokens: np.asarray(compiled(jnp.asarray([tokens], jnp.int32)))

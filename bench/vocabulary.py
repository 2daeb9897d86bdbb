"""Temporary memory of a gradient as the vocabulary grows: `python -m bench.vocabulary`.

Compiles the gradient of a model as wide as 410m at 4 rows of 2,048 tokens, bfloat16: with the chunked loss in chunks of
a CPU and of an accelerator, and with a plain loss that stores all logits. The model has one small layer, because the
layers of 410m need more memory than a chunk of the loss. Nothing runs. An accelerator uses its own compiler and writes
the page `vocabulary_gpu`.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

from bench import common
from jaxtempl.models import cross_entropy
from jaxtempl.parallel.mesh import MeshShape, make_mesh
from jaxtempl.planning import compiled_step
from jaxtempl.specs.architecture import NeoXArchitecture
from jaxtempl.training import objectives

ROWS, LENGTH = 4, 2048
SMALL = NeoXArchitecture(layers=1, hidden=1024, heads=1, feed_forward=1024, vocabulary=1, positions=LENGTH)
VOCABULARIES = (32_768, 50_304, 131_072, 524_288)
LOSSES = {"cpu": "chunked, as on a CPU", "accelerator": "chunked, as on an accelerator", "plain": "plain"}


def plain_cross_entropy(
    hidden: jax.Array, kernel: jax.Array, targets: jax.Array, weights: jax.Array, platform: str, bias: None = None
) -> jax.Array:
    """Return the loss with all logits at once, on any platform."""
    logits = jnp.matmul(hidden, kernel.astype(hidden.dtype), preferred_element_type=jnp.float32)
    log_probabilities = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)[..., 0]
    return -(weights * log_probabilities).sum()


def temporary(vocabulary: int) -> Iterator[tuple[str, int]]:
    """Yield the temporary bytes with each of LOSSES."""
    architecture = dataclasses.replace(SMALL, vocabulary=vocabulary)
    mesh = make_mesh(MeshShape(1, 1, 1))
    as_on_cpu = {mesh.devices.flat[0].platform: cross_entropy.CHUNK_LOGITS["cpu"]}
    changes = {
        "cpu": mock.patch.dict(cross_entropy.CHUNK_LOGITS, as_on_cpu),
        "accelerator": mock.patch.dict(cross_entropy.CHUNK_LOGITS, clear=True),
        "plain": mock.patch.object(objectives, "summed_cross_entropy", plain_cross_entropy),
    }
    for name in LOSSES:
        with changes[name]:
            yield name, compiled_step.compile_gradient(architecture, mesh, ROWS, LENGTH).temporary


def page(results: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    rows = [
        f"| {row['vocabulary']:,} | "
        + " | ".join(f"{row['temporary_bytes'][name] / 1e9:.2f}" for name in LOSSES)
        + " |"
        for row in results["rows"]
    ]
    return "\n".join(
        [
            "# Memory against vocabulary",
            "",
            f"{ROWS} x {LENGTH:,} tokens, bfloat16, hidden size {SMALL.hidden:,}, and one small layer, so that the",
            "loss needs the most memory. GB of the gradient computation in addition to parameters, rows and gradients,",
            f"as XLA plans it for {results['device']}; nothing was run.",
            "Repeat with `python -m bench.vocabulary`.",
            "",
            f"| vocabulary | {' | '.join(LOSSES.values())} |",
            "|---" * (len(LOSSES) + 1) + "|",
            *rows,
            "",
            "Apart from the head and its gradient, the chunked loss holds no array of more than "
            f"{cross_entropy.CHUNK_LOGITS['cpu']:,} numbers on a CPU, "
            f"or {cross_entropy.DEFAULT_CHUNK_LOGITS:,} on an accelerator. Beyond these sizes it does not grow.",
            "",
            common.describe(results["machine"]),
            "",
        ]
    )


def main() -> None:
    """Compile, and write docs/benchmarks/vocabulary.json and .md after each vocabulary."""
    machine, device = common.machine(("jax", "flax", "optax")), jax.devices()[0]
    results: dict[str, Any] = {"machine": machine, "device": device.device_kind, "length": LENGTH}
    results["rows"] = list[dict[str, Any]]()
    for vocabulary in VOCABULARIES:
        results["rows"].append({"vocabulary": vocabulary, "temporary_bytes": dict(temporary(vocabulary))})
        common.write("vocabulary" if device.platform == "cpu" else "vocabulary_gpu", results, page(results))


if __name__ == "__main__":
    main()

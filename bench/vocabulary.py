"""What a gradient takes beside parameters, rows and gradients as the vocabulary grows: `python -m bench.vocabulary`.

Compiles the gradient of 410m at 4 rows of 2,048 tokens, bfloat16, with the chunked loss in the parts of a CPU and in
those of an accelerator, and with a plain loss whose logits are whole. Nothing is run. Where there is an accelerator,
its compiler is asked, and the page is `vocabulary_gpu`.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

from bench import common
from jaxtempl import config, partition, programs, tasks
from jaxtempl.models import losses
from jaxtempl.models.neox import Architecture
from jaxtempl.partition import Shape

SIZE, ROWS, LENGTH = "410m", 4, 2048
VOCABULARIES = (32_768, 50_304, 131_072, 524_288)
LOSSES = {"cpu": "chunked, as on a CPU", "accelerator": "chunked, as on an accelerator", "plain": "plain"}


def plain_cross_entropy(
    hidden: jax.Array, kernel: jax.Array, targets: jax.Array, weights: jax.Array, platform: str
) -> jax.Array:
    """The loss with all logits at once, on any platform."""
    logits = jnp.matmul(hidden, kernel.astype(hidden.dtype), preferred_element_type=jnp.float32)
    found = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)[..., 0]
    return -(weights * found).sum()


def temporary(vocabulary: int) -> Iterator[tuple[str, int]]:
    """Bytes under each of LOSSES."""
    architecture = dataclasses.replace(Architecture(**config.size(SIZE)["architecture"]), vocabulary=vocabulary)
    changes = {
        "cpu": mock.patch.dict(losses.CHUNK_LOGITS),
        "accelerator": mock.patch.dict(losses.CHUNK_LOGITS, cpu=losses.ELSEWHERE),
        "plain": mock.patch.object(tasks, "summed_cross_entropy", plain_cross_entropy),
    }
    for name in LOSSES:
        with changes[name]:
            yield name, programs.gradient(architecture, partition.make_mesh(Shape(1, 1, 1)), ROWS, LENGTH).temporary


def page(results: dict[str, Any]) -> str:
    """The figures as Markdown."""
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
            f"{SIZE} with other vocabularies, {ROWS} x {LENGTH:,} tokens, bfloat16, layers computed again. GB that the",
            f"gradient holds beside parameters, rows and gradients, as XLA plans it for {results['device']}; nothing",
            "was run.",
            "`python -m bench.vocabulary` repeats it.",
            "",
            f"| vocabulary | {' | '.join(LOSSES.values())} |",
            "|---" * (len(LOSSES) + 1) + "|",
            *rows,
            "",
            f"The chunked loss holds no array of more than {losses.CHUNK_LOGITS['cpu']:,} numbers on a CPU and of",
            f"{losses.ELSEWHERE:,} on an accelerator but the head and its gradient, so beyond that it does not grow.",
            "Where a column does not change at all, the most is held elsewhere: in the backward pass of a layer.",
            "",
            common.described(results["machine"]),
            "",
        ]
    )


def main() -> None:
    """Compiles and writes docs/benchmarks/vocabulary.json and .md, as far as it is, after each vocabulary."""
    machine, device = common.machine(("jax", "flax", "optax")), jax.devices()[0]
    results: dict[str, Any] = {"machine": machine, "device": device.device_kind, "size": SIZE, "length": LENGTH}
    results["rows"] = list[dict[str, Any]]()
    for vocabulary in VOCABULARIES:
        results["rows"].append({"vocabulary": vocabulary, "temporary_bytes": dict(temporary(vocabulary))})
        common.write("vocabulary" if device.platform == "cpu" else "vocabulary_gpu", results, page(results))


if __name__ == "__main__":
    main()

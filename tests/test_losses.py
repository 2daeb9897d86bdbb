"""The chunked loss equals the plain loss, which stores all logits, and needs less memory."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bench.vocabulary import plain_cross_entropy
from jaxtempl.models import cross_entropy
from jaxtempl.parallel import mesh
from jaxtempl.parallel.mesh import MeshShape
from jaxtempl.planning import compiled_step
from jaxtempl.specs.architecture import NeoXArchitecture
from jaxtempl.training import objectives

SMALL = NeoXArchitecture(layers=1, hidden=64, heads=4, feed_forward=128, vocabulary=8192, positions=64)
ROWS, LENGTH = 4, 64
LARGE = 65_536  # vocabulary


def some(length: int, dtype: Any = jnp.float32) -> tuple[jax.Array, ...]:
    keys = jax.random.split(jax.random.key(0), 4)
    hidden, kernel = jax.random.normal(keys[0], (3, length, 6)), jax.random.normal(keys[1], (6, 11))
    targets = jax.random.randint(keys[2], (3, length), 0, 11)
    return hidden.astype(dtype), kernel, targets, jax.random.uniform(keys[3], (3, length)).at[1, 2:].set(0)


def value_and_gradient(loss: Callable[..., jax.Array], arrays: tuple[jax.Array, ...], jit: bool = True) -> Any:
    def scaled(hidden: jax.Array, kernel: jax.Array) -> jax.Array:
        return 2.5 * loss(hidden, kernel, *arrays[2:], "cpu")  # a cotangent other than 1

    both = jax.value_and_grad(scaled, (0, 1))
    return (jax.jit(both) if jit else both)(*arrays[:2])


@pytest.mark.parametrize(
    ("length", "chunk", "jit"),  # chunks of one position, a third of the row, and the whole row; 7 is prime
    [(12, 1, True), (12, 132, True), (12, 2**21, True), (7, 1, True), (7, 132, True), (12, 132, False)],
)
def test_chunked_loss_is_plain_cross_entropy(
    monkeypatch: pytest.MonkeyPatch, length: int, chunk: int, jit: bool
) -> None:
    monkeypatch.setitem(cross_entropy.CHUNK_LOGITS, "cpu", chunk)
    arrays = some(length)
    got, expected = (
        value_and_gradient(loss, arrays, jit) for loss in (cross_entropy.summed_cross_entropy, plain_cross_entropy)
    )
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5), got, expected)
    np.testing.assert_allclose(cross_entropy.summed_cross_entropy(*arrays, "cpu"), expected[0] / 2.5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("chunk", [22, 2**21])  # two rows of the kernel, and all of them
def test_half_precision_losses_are_summed_in_float32(monkeypatch: pytest.MonkeyPatch, dtype: Any, chunk: int) -> None:
    """The plain loss in float32 on the rounded numbers differs only by the rounding of the logits' gradient."""
    monkeypatch.setitem(cross_entropy.CHUNK_LOGITS, "cpu", chunk)
    hidden, kernel, *rest = some(12, dtype)
    kernel = kernel.astype(dtype).astype(jnp.float32)
    got = value_and_gradient(cross_entropy.summed_cross_entropy, (hidden, kernel, *rest))
    expected = value_and_gradient(plain_cross_entropy, (hidden.astype(jnp.float32), kernel, *rest))
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-6)
    eps = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(got[1][0].astype(jnp.float32), expected[1][0], atol=4 * eps)
    np.testing.assert_allclose(got[1][1], expected[1][1], atol=4 * eps)


def written(platform: str, dtype: Any) -> str:
    """Return the loss and its gradient as a jaxpr."""
    hidden, kernel, *rest = some(12, dtype)

    def loss(hidden: jax.Array, kernel: jax.Array) -> jax.Array:
        return cross_entropy.summed_cross_entropy(hidden, kernel, *rest, platform)

    return str(
        jax.make_jaxpr(lambda *arrays: (loss(*arrays), jax.value_and_grad(loss, (0, 1))(*arrays)))(hidden, kernel)
    )


def test_losses_are_summed_without_matrix_products() -> None:
    """Matrix products round float32 to bfloat16 on a TPU and to TF32 on an NVIDIA GPU, by default."""
    products = re.findall(r"\w+\[([\d,]*)\] = dot_general", written("tpu", jnp.float32))
    assert len(products) == 4
    assert all("," in sizes for sizes in products), products


def temporary(vocabulary: int) -> int:
    """Return the bytes of a gradient in addition to parameters, microbatch and gradients."""
    architecture = dataclasses.replace(SMALL, vocabulary=vocabulary)
    return compiled_step.compile_gradient(
        architecture, mesh.make_mesh(MeshShape(1, 1, 1)), ROWS, LENGTH, "none"
    ).temporary


def test_memory_does_not_grow_with_the_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cross_entropy.CHUNK_LOGITS, "cpu", 2**18)  # less than the logits and the kernel of either model
    assert temporary(LARGE) <= temporary(SMALL.vocabulary)
    monkeypatch.setattr(objectives, "summed_cross_entropy", plain_cross_entropy)
    more = ROWS * LENGTH * (LARGE - SMALL.vocabulary) * 4
    assert temporary(LARGE) - temporary(SMALL.vocabulary) > more, "the measurement does not detect the plain loss"

"""Tests of flash attention: choice of the kernel, equality with XLA's attention, and lowering for GPUs and TPUs."""

import functools
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax._src.cudnn import fused_attention_stablehlo
from jax.experimental.pallas.ops.tpu import splash_attention

from bench import attention as bench
from jaxtempl.config.paths import ROOT
from jaxtempl.config.training import AdaptConfig
from jaxtempl.models import attention, cross_entropy, factory, flash_attention
from jaxtempl.models.flash_attention import Kernel
from jaxtempl.models.scan import Remat
from jaxtempl.parallel import rules
from jaxtempl.parallel.mesh import MeshShape, make_mesh
from jaxtempl.specs.architecture import NeoXArchitecture
from jaxtempl.training import objectives, state, step
from jaxtempl.training.optimizer import adamw

LENGTH = 256
SMALL = NeoXArchitecture(
    layers=2, hidden=160, heads=2, feed_forward=64, vocabulary=64
)  # heads of 80 dimensions, as in 2.8b
CUDA = shutil.which("nvidia-smi") and any(importlib.util.find_spec(f"jax_cuda{n}_plugin") for n in (12, 13))


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run splash attention in Pallas's interpreter, with several blocks in a row."""
    make = functools.partial(splash_attention.make_splash_mha_single_device, interpret=True)
    monkeypatch.setattr(splash_attention, "make_splash_mha_single_device", make)
    monkeypatch.setattr(flash_attention, "BLOCKS", (128,))


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make JAX's checks before a call of cuDNN pass as on a machine with a Hopper GPU."""
    monkeypatch.setattr(flash_attention, "local_capability", lambda: 9.0)
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(fused_attention_stablehlo, "check_compute_capability", lambda _: True)


@pytest.mark.parametrize(
    ("platform", "capability", "head_dim", "dtype", "chosen"),
    [
        ("cpu", 0.0, 64, jnp.bfloat16, "xla"),
        ("gpu", 8.0, 64, jnp.bfloat16, "cudnn"),
        ("gpu", 8.6, 80, jnp.float16, "cudnn"),
        ("gpu", 8.6, 128, jnp.float32, "xla"),  # cuDNN supports only half precision
        ("gpu", 8.6, 36, jnp.bfloat16, "xla"),  # not a multiple of 8
        ("gpu", 8.6, 256, jnp.bfloat16, "xla"),  # only on Hopper; the head of 1b
        ("gpu", 9.0, 256, jnp.bfloat16, "cudnn"),
        ("gpu", 10.0, 256, jnp.bfloat16, "xla"),
        ("gpu", 12.0, 128, jnp.bfloat16, "cudnn"),
        ("gpu", 7.5, 64, jnp.float16, "xla"),  # older than Ampere
        ("gpu", 0.0, 64, jnp.bfloat16, "xla"),  # not an NVIDIA GPU
        ("tpu", 0.0, 64, jnp.bfloat16, "splash"),
        ("tpu", 0.0, 80, jnp.float32, "splash"),
        ("tpu", 0.0, 256, jnp.bfloat16, "splash"),
        ("tpu", 0.0, 128, jnp.float16, "xla"),  # the compiler rejects it
        ("tpu", 0.0, 32, jnp.bfloat16, "xla"),  # a quarter of the lanes; the head of 14m
    ],
)
def test_each_platform_and_head_has_its_kernel(
    monkeypatch: pytest.MonkeyPatch, platform: str, capability: float, head_dim: int, dtype: Any, chosen: Kernel
) -> None:
    monkeypatch.setattr(flash_attention, "local_capability", lambda: capability)
    assert flash_attention.choose_kernel(platform, head_dim, dtype) == chosen
    monkeypatch.setattr(flash_attention, "local_capability", lambda: 0.0)
    assert flash_attention.choose_kernel(platform, head_dim, dtype, capability) == chosen, (
        "the capability of a remote GPU must count"
    )


@pytest.mark.parametrize(("reported", "capability"), [("9.0", 9.0), ("12.1", 12.1), ("gfx90a", 0.0), (None, 0.0)])
def test_only_nvidia_gpus_have_a_capability(
    monkeypatch: pytest.MonkeyPatch, reported: str | None, capability: float
) -> None:
    class Device:
        """A device as JAX reports it; a CPU has no compute capability."""

        if reported:
            compute_capability = reported

    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    assert flash_attention.local_capability() == capability


@pytest.mark.parametrize(
    ("head_dim", "dtype", "documents"),
    [
        (64, jnp.float32, True),
        (80, jnp.float32, False),
        (80, jnp.float32, True),
        (128, jnp.float32, False),
        (80, jnp.bfloat16, True),
    ],
)
@pytest.mark.usefixtures("interpreted")
def test_splash_attention_equals_xlas_attention(head_dim: int, dtype: Any, documents: bool) -> None:
    deviations = bench.deviations("splash", head_dim, dtype, documents, LENGTH)
    assert set(deviations) == {"output", "query", "key", "value"}
    assert max(deviations.values()) < bench.MAX_DEVIATION[dtype], deviations


@pytest.mark.parametrize("documents", [False, True])
def test_xlas_gradients_equal_those_of_plain_attention(documents: bool) -> None:
    """Compare output and gradients with jax.nn's attention, for a length that is no multiple of a chunk."""
    length = 2 * attention.QUERY_CHUNK + 9
    q, k, v = numbers(length)
    ids = (jnp.array([[50], [100]]) < jnp.arange(length)[None]).astype(jnp.int32) if documents else None
    mask = None if ids is None else (ids[:, :, None] == ids[:, None])[:, None]

    def results(attend: Any) -> Any:
        output, backward = jax.vjp(attend, q, k, v)
        return output, *backward(jnp.cos(jnp.arange(output.size)).reshape(output.shape))

    got = jax.jit(lambda: results(lambda *qkv: attention.causal(*qkv, ids)))()
    expected = jax.jit(lambda: results(lambda *qkv: jax.nn.dot_product_attention(*qkv, mask=mask, is_causal=True)))()
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5 * float(jnp.abs(theirs).max()))


def test_blocks_are_the_largest_that_divide_a_row() -> None:
    assert [flash_attention._blocks(length).block_kv for length in (128, 384, 512, 768, 2048)] == [
        128,
        128,
        512,
        256,
        512,
    ]


def numbers(length: int, dtype: Any = jnp.float32) -> jax.Array:
    return jax.random.normal(jax.random.key(1), (3, 2, length, 2, 64)).astype(dtype)


def test_cudnn_receives_causal_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """JAX's attention in XLA gives the same result."""
    theirs, implementations = jax.nn.dot_product_attention, list[str]()

    def on_xla(*arrays: jax.Array, implementation: str, **settings: Any) -> jax.Array:
        implementations.append(implementation)
        return theirs(*arrays, implementation="xla", **settings)

    monkeypatch.setattr(jax.nn, "dot_product_attention", on_xla)
    q, k, v = numbers(128)
    got = jax.jit(functools.partial(flash_attention.causal, "cudnn"))(q, k, v)
    np.testing.assert_allclose(got, jax.jit(attention.causal)(q, k, v), atol=1e-5)
    assert implementations == ["cudnn"]


@pytest.mark.parametrize(
    ("kernel", "length", "documents"), [("cudnn", 100, False), ("cudnn", 128, True), ("splash", 192, True)]
)
def test_xla_computes_what_a_kernel_does_not_support(kernel: Kernel, length: int, documents: bool) -> None:
    q, k, v = numbers(length, jnp.bfloat16)
    ids = jnp.ones((2, length), jnp.int32) if documents else None
    got = jax.jit(functools.partial(flash_attention.causal, kernel))(q, k, v, ids)
    np.testing.assert_array_equal(got, jax.jit(attention.causal)(q, k, v, ids))


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.usefixtures("interpreted")
def test_a_changed_document_changes_no_logit_of_its_neighbours(platform: str) -> None:
    """Logits before and after it are bit-identical in float32; without the mask, the logits after it change."""
    model: Any = nnx.merge(factory.make_graphdef(SMALL, 64, platform=platform), factory.random_params(SMALL, 64, 0))
    assert model.blocks.attention.kernel == {"cpu": "xla", "tpu": "splash"}[platform]
    at = jnp.arange(LENGTH)
    documents = jnp.where(at < 70, 1, jnp.where(at < 140, 2, 3))[None].astype(jnp.uint16)
    tokens = jax.random.randint(jax.random.key(0), (1, LENGTH), 0, 64)
    other = jnp.where(documents == 2, (tokens + 1) % 64, tokens)
    logits = jax.jit(lambda tokens, documents: model(tokens, documents)[0])
    one, changed = (logits(some, documents) for some in (tokens, other))
    np.testing.assert_array_equal(one[documents[0] != 2], changed[documents[0] != 2])
    assert (one[documents[0] == 2] != changed[documents[0] == 2]).any(axis=-1).all()
    assert (logits(tokens, None)[140:] != logits(other, None)[140:]).any(axis=-1).all()


def lowered(platform: str, shape: MeshShape, remat: Remat = "none", documents: bool = False) -> str:
    """Return the gradient of a microbatch, lowered for a platform that may be absent."""
    mesh, optimizer = make_mesh(shape), adamw(AdaptConfig(learning_rate=1e-3), 10)
    shapes = factory.abstract_params(SMALL, SMALL.vocabulary)
    params = rules.with_shardings(shapes, rules.shardings(mesh, shapes))
    task = objectives.causal_lm(
        factory.make_graphdef(SMALL, SMALL.vocabulary, jnp.bfloat16, remat, platform), documents
    )
    functions: Any = step.compile_step(task, optimizer, state.state_shardings(mesh, optimizer, params))
    row = jax.ShapeDtypeStruct((8, LENGTH), jnp.int32, sharding=rules.row_sharding(mesh))
    traced = functions.gradient.trace(params, {"tokens": row, "segments": row}, None)
    return traced.lower(lowering_platforms=({"gpu": "cuda"}.get(platform, platform),)).as_text()


FORWARD, BACKWARD = "splash_mha_fwd{}_residuals", ("splash_mha_dkv{}_no_residuals", "splash_mha_dq{}_no_residuals")


@pytest.mark.parametrize(
    ("remat", "forwards", "documents"), [("none", 1, True), ("dots", 2, False), ("full", 2, False)]
)
@pytest.mark.parametrize("shape", [MeshShape(1, 1, 1), MeshShape(2, 2, 2)], ids=str)
def test_training_on_tpus_uses_splash_attention(shape: MeshShape, remat: Remat, forwards: int, documents: bool) -> None:
    """Each layer calls the forward kernel once, and again where the backward pass rematerializes it."""
    kernels = re.findall(r'kernel_name = "(\w+)"', lowered("tpu", shape, remat, documents))
    named = [name.format("_segmented" if documents else "") for name in (*[FORWARD] * forwards, *BACKWARD)]
    assert sorted(kernels) == sorted(named)


@pytest.mark.parametrize(("remat", "forwards"), [("none", 1), ("full", 2)])
@pytest.mark.parametrize("shape", [MeshShape(1, 1, 1), MeshShape(2, 2, 2)], ids=str)
@pytest.mark.usefixtures("hopper")
def test_training_on_nvidia_uses_cudnns_attention(shape: MeshShape, remat: Remat, forwards: int) -> None:
    program = lowered("gpu", shape, remat)
    assert re.findall(r"@__cudnn\$(\w+)", program) == ["fmhaSoftmax"] * forwards + ["fmhaSoftmaxBackward"]
    assert program.count("CAUSAL") == forwards + 1
    assert f"{LENGTH}x{LENGTH}x" not in program, "the scores of a whole row must not exist"


@pytest.mark.usefixtures("hopper")
def test_document_masks_on_nvidia_use_xla() -> None:
    assert "cudnn" not in lowered("gpu", MeshShape(1, 1, 1), documents=True)


def test_the_chunks_of_the_loss_depend_on_the_target_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    """The platform of this process does not matter."""
    monkeypatch.setitem(cross_entropy.CHUNK_LOGITS, "cpu", LENGTH * SMALL.vocabulary)  # one of 8 chunks at a time
    whole, part = (f"tensor<{8 * positions}x{SMALL.vocabulary}xf32>" for positions in (LENGTH, LENGTH // 8))
    cpu, tpu = lowered("cpu", MeshShape(1, 1, 1)), lowered("tpu", MeshShape(1, 1, 1))
    assert (part in cpu, whole in cpu) == (True, False)
    assert (part in tpu, whole in tpu) == (False, True)


def test_the_attention_benchmark_needs_an_accelerator() -> None:
    with pytest.raises(SystemExit, match="no flash attention on cpu"):
        bench.main()


@pytest.mark.skipif(not CUDA, reason="needs an NVIDIA GPU and jax with its CUDA plugin: cuDNN runs nowhere else")
def test_cudnn_attention_equals_xlas_attention() -> None:
    """The benchmark runs in a separate process, because JAX in this process uses the CPU."""
    env = {name: value for name, value in os.environ.items() if name not in ("JAX_PLATFORMS", "XLA_FLAGS")}
    done = subprocess.run(
        [sys.executable, "-m", "bench.attention"], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr

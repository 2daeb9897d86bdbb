"""The compiled programs of a training step, on real devices or on a TPU topology description; nothing runs."""

import math
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import AbstractMesh, Mesh

from jaxtempl.config.training import AdaptConfig
from jaxtempl.data import mlm
from jaxtempl.models import factory
from jaxtempl.models.scan import Remat
from jaxtempl.parallel import rules
from jaxtempl.parallel.mesh import MeshShape
from jaxtempl.specs.accelerators import ACCELERATORS
from jaxtempl.specs.architecture import Architecture, BertArchitecture, NeoXArchitecture
from jaxtempl.training import objectives, step
from jaxtempl.training.optimizer import adamw
from jaxtempl.training.state import abstract_state, state_shardings


class CompiledProgram(NamedTuple):
    """A compiled program's HLO text, and its bytes of memory on one device."""

    text: str
    arguments: int
    outputs: int
    temporary: int


def describe_slice(slice_: str) -> Sequence[Any]:
    """Return the chips of a TPU slice (`Accelerator.slices`), for which libtpu compiles without having them."""
    os.environ |= {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": ACCELERATORS[slice_.partition(":")[0]].tpu_type,
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # other processes may compile on this machine
    }
    return topologies.get_topology_desc(slice_, platform="tpu").devices


def compile_gradient(
    architecture: Architecture,
    mesh: Mesh,
    rows: int,
    length: int,
    remat: Remat = "full",
    dtype: Any = jnp.bfloat16,
    mask_documents: bool = False,
    slots: int | None = None,
) -> CompiledProgram:
    """Compile the gradient of one microbatch in 16 bit: of a language model, or of a classifier with `slots`."""
    platform = mesh.devices.flat[0].platform  # differs from this process's for a topology description
    graphdef = factory.make_graphdef(architecture, slots, dtype, remat, platform)
    optimizer = adamw(AdaptConfig(learning_rate=1e-3, weight_decay=0.01), 1000)
    params = _params(architecture, mesh, slots)
    objective = (
        objectives.language_modelling(architecture, graphdef, mask_documents)
        if slots is None
        else objectives.template_classification(graphdef)
    )
    functions: Any = step.compile_step(objective, optimizer, state_shardings(mesh, optimizer, params))
    batch = _abstract_batch(architecture, mesh, rows, length, slots)
    scale = jax.ShapeDtypeStruct((), jnp.float32, sharding=rules.replicated(mesh)) if dtype == jnp.float16 else None
    return _program(functions.gradient.lower(params, batch, scale))


def _abstract_batch(a: Architecture, mesh: Mesh, rows: int, length: int, slots: int | None) -> dict[str, Any]:
    """Return the shapes of a microbatch, as `data.loader` makes it."""

    def array(*shape: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=rules.row_sharding(mesh))

    tokens = array(length)
    if slots is not None:
        return {"tokens": tokens, "lengths": array(), "slots": array(), "weights": array(dtype=jnp.float32)}
    packed = {"tokens": tokens, "segments": tokens}
    masked = dict.fromkeys(("positions", "targets", "weights"), array(mlm.masked_count(length)))
    return packed | masked if isinstance(a, BertArchitecture) else packed


def compile_update(architecture: NeoXArchitecture, mesh: Mesh) -> CompiledProgram:
    """Compile the update: AdamW on a gradient that is sharded as the parameters are."""
    optimizer = adamw(AdaptConfig(learning_rate=1e-3, weight_decay=0.01), 1000)
    state = abstract_state(mesh, optimizer, _params(architecture, mesh))
    shardings: Any = jax.tree.map(lambda leaf: leaf.sharding, state)
    scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=rules.replicated(mesh))
    sums: Any = dict.fromkeys(("loss", "weight", "tokens", "flops"), scalar)
    graphdef = factory.make_graphdef(architecture, architecture.vocabulary)
    functions: Any = step.compile_step(objectives.causal_lm(graphdef), optimizer, shardings)
    return _program(functions.update.lower(state, step.GradientSum(state.params, sums)))


def state_bytes(architecture: Architecture, shape: MeshShape, slots: int | None = None) -> int:
    """Return the bytes of parameters, gradients and moments on one device, from their shardings."""
    leaves = jax.tree.leaves(_params(architecture, AbstractMesh(shape, rules.AXES), slots))
    return 4 * sum(4 * math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in leaves)


def _params(architecture: Architecture, mesh: Mesh | AbstractMesh, slots: int | None = None) -> Any:
    shapes = factory.abstract_params(architecture, slots)
    return rules.with_shardings(shapes, rules.shardings(mesh, shapes))


def _program(lowered: Any) -> CompiledProgram:
    compiled = lowered.compile()
    memory = compiled.memory_analysis()
    return CompiledProgram(
        compiled.as_text(), memory.argument_size_in_bytes, memory.output_size_in_bytes, memory.temp_size_in_bytes
    )

"""Tests of sharding: the tables cover every leaf, and a mesh changes the shardings but not the numbers."""

import functools
import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxtempl.config.sizes import read_size
from jaxtempl.config.training import AdaptConfig
from jaxtempl.errors import UserError
from jaxtempl.models import factory
from jaxtempl.models.scan import Remat
from jaxtempl.parallel import collectives, rules
from jaxtempl.parallel.mesh import MeshShape, choose_mesh, make_mesh
from jaxtempl.specs.architecture import Architecture, BertArchitecture, NeoXArchitecture
from jaxtempl.training import objectives, step
from jaxtempl.training.objectives import Objective
from jaxtempl.training.optimizer import adamw
from jaxtempl.training.state import initial_state

SMALL = NeoXArchitecture(layers=2, hidden=32, heads=4, feed_forward=64, vocabulary=96, positions=32)
BERT = BertArchitecture(layers=2, hidden=32, heads=4, feed_forward=64, vocabulary=96, positions=32)
SLOTS = 7
MESHES = [MeshShape(1, 1, 1), MeshShape(8, 1, 1), MeshShape(1, 8, 1), MeshShape(2, 2, 2)]
GOLDEN = Path(__file__).parent / "golden" / "partition.json"


def architecture(size: str) -> NeoXArchitecture:
    return NeoXArchitecture(**read_size(size)["architecture"])


def shapes(a: Architecture, slots: int | None = None) -> Any:
    return factory.abstract_params(a, slots)


def paths(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {"/".join(key.key for key in keys): leaf for keys, leaf in leaves}


def test_the_tables_have_one_row_for_each_leaf_and_axis() -> None:
    models = [(SMALL, None), (SMALL, SLOTS), (BERT, None), (BERT, SLOTS)]
    assert {path for a, slots in models for path in paths(shapes(a, slots))} == set(rules.LEAF_AXES)
    assert {axis for axes in rules.LEAF_AXES.values() for axis in axes} == set(rules.AXIS_RULES)


def test_the_partition_specs_match_the_golden_file() -> None:
    """For 2.8b on 2 x 8 x 4, `tensor` shards heads, feed-forward and vocabulary; `fsdp` shards weights."""
    sizes = {"data": 2, "fsdp": 8, "tensor": 4}
    specs = {
        path: rules.partition_spec(path, leaf.shape, sizes)
        for path, leaf in paths(shapes(architecture("2.8b"))).items()
    }
    assert json.dumps({path: str(spec) for path, spec in specs.items()}, indent=1) == GOLDEN.read_text().rstrip()


@pytest.mark.parametrize("size", ["410m", "1.4b", "2.8b"])
def test_a_device_holds_its_share_of_every_leaf(size: str) -> None:
    sizes = {"data": 2, "fsdp": 8, "tensor": 4}
    mesh = AbstractMesh(tuple(sizes.values()), tuple(sizes))
    for path, leaf in paths(shapes(architecture(size))).items():
        held = NamedSharding(mesh, rules.partition_spec(path, leaf.shape, sizes)).shard_shape(leaf.shape)
        assert math.prod(held) * 8 * 4 == leaf.size, path


def batch(rows: int = 8, length: int = 16) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    tokens = random.integers(1, SMALL.vocabulary, (rows, length)).astype(np.int32)
    segments = np.ones_like(tokens)
    segments[-1, length // 2 :] = 0
    return {"tokens": tokens, "segments": segments}


def masked(rows: int = 8, length: int = 16, predicted: int = 3) -> dict[str, np.ndarray]:
    random = np.random.default_rng(2)
    return {
        **batch(rows, length),
        "positions": np.sort(random.permuted(np.tile(np.arange(length), (rows, 1)), axis=1)[:, :predicted], axis=1),
        "targets": random.integers(1, BERT.vocabulary, (rows, predicted)).astype(np.int32),
        "weights": np.array([[1] * predicted] * (rows - 1) + [[1] + [0] * (predicted - 1)], np.int32),
    }


def labelled(rows: int = 8, length: int = 16) -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    return {
        "tokens": random.integers(1, SMALL.vocabulary, (rows, length)).astype(np.int32),
        "lengths": random.integers(1, length + 1, rows).astype(np.int32),
        "slots": random.integers(0, SLOTS, rows).astype(np.int32),
        "weights": np.array([1] * (rows - 1) + [0], np.float32),
    }


@functools.cache
def random_params(a: Architecture, slots: int | None) -> Any:
    """Random parameters as numpy arrays; drawing them compiles, so each model is drawn once."""
    return jax.tree.map(np.asarray, factory.random_params(a, slots, 0))


def objective_and_batch(a: Architecture, phase: str, remat: Remat) -> tuple[Objective, dict[str, np.ndarray]]:
    if phase == "finetune":
        return objectives.template_classification(factory.make_graphdef(a, SLOTS, remat=remat)), labelled()
    graphdef = factory.make_graphdef(a, None, remat=remat)
    return (objectives.causal_lm(graphdef), batch()) if a is SMALL else (objectives.masked_lm(graphdef), masked())


@functools.cache
def two_steps(
    shape: MeshShape, phase: str, remat: Remat = "none", a: Architecture = SMALL
) -> tuple[list[dict[str, float]], Any]:
    """Return the metrics of two updates, and the gradient of the first."""
    objective, microbatch = objective_and_batch(a, phase, remat)
    optimizer, mesh = adamw(AdaptConfig(learning_rate=1e-2, weight_decay=0.1), 10), make_mesh(shape)
    state = initial_state(random_params(a, None if phase == "adapt" else SLOTS), optimizer, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    functions = step.compile_step(objective, optimizer, shardings)
    metrics, gradients = [], []
    for _ in range(2):
        total = functions.gradient(state.params, jax.device_put(microbatch, rules.row_sharding(mesh)), None)
        jax.tree.map(assert_equivalent, total.gradient, shardings.params)
        gradients.append(jax.tree.map(np.asarray, total.gradient))
        state, values = functions.update(state, total)
        metrics.append({name: float(value) for name, value in values.items()})
    jax.tree.map(assert_equivalent, state, shardings)
    return metrics, gradients[0]


def assert_equivalent(leaf: jax.Array, sharding: Any) -> None:
    assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)


@pytest.mark.parametrize("a", [SMALL, BERT], ids=["neox", "bert"])
@pytest.mark.parametrize("phase", ["adapt", "finetune"])
@pytest.mark.parametrize("shape", MESHES[1:], ids=str)
def test_every_mesh_gives_the_same_loss_and_gradient(shape: MeshShape, phase: str, a: Architecture) -> None:
    (expected, gradient), (metrics, sharded) = two_steps(MESHES[0], phase, a=a), two_steps(shape, phase, a=a)
    for one, other in zip(expected, metrics, strict=True):
        assert other == pytest.approx(one, rel=1e-5)
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(gradient))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * largest), gradient, sharded)


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_rematerialization_changes_no_metric(remat: Remat) -> None:
    (expected, _), (metrics, _) = two_steps(MESHES[0], "adapt"), two_steps(MESHES[3], "adapt", remat)
    assert metrics[1] == pytest.approx(expected[1], rel=1e-5)


def test_the_initial_state_is_created_in_its_shardings() -> None:
    mesh = make_mesh(MeshShape(1, 4, 2))
    state = initial_state(random_params(SMALL, None), adamw(AdaptConfig(learning_rate=1e-3), 10), mesh)
    kernel = state.params["blocks"]["mlp"]["up"]["kernel"]
    moments = [leaf for leaf in jax.tree.leaves(state.optimizer) if leaf.shape == kernel.shape]
    assert len(moments) == 2
    for leaf in (kernel, *moments):
        assert leaf.sharding.spec == P(None, "fsdp", "tensor")
        assert leaf.addressable_shards[0].data.shape == (2, 8, 32)


@pytest.mark.parametrize(
    ("requested", "rows", "message"),
    [
        (MeshShape(1, 16, 1), 8, "needs 16 devices of 8.*--mesh.data=1 --mesh.fsdp=8 --mesh.tensor=1"),
        (MeshShape(1, 1, 3), 8, "does not divide heads=4 by 3.*--mesh.data=1 --mesh.fsdp=1 --mesh.tensor=(2|4)"),
        (MeshShape(8, 1, 1), 4, "does not divide the 4 rows.*--mesh.data=4 --mesh.fsdp=1 --mesh.tensor=1"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused_with_the_nearest(requested: MeshShape, rows: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        choose_mesh(requested, shapes(SMALL), rows, 8)


def test_axes_of_zero_are_chosen_automatically() -> None:
    assert choose_mesh(MeshShape(0, 0, 1), shapes(SMALL), 8, 8) == (1, 8, 1)
    assert choose_mesh(MeshShape(0, 2, 1), shapes(SMALL), 8, 8) == (4, 2, 1)
    assert choose_mesh(MeshShape(0, 0, 1), shapes(SMALL), 2, 8) == (1, 2, 1)
    assert choose_mesh(MeshShape(0, 0, 1), shapes(SMALL, SLOTS), 0, 8) == (1, 8, 1)
    assert choose_mesh(MeshShape(0, 0, 1), shapes(SMALL), 8, 1) == (1, 1, 1)


def test_any_number_of_templates_can_be_sharded() -> None:
    assert rules.partition_spec("head/kernel", (32, 7), {"data": 1, "fsdp": 2, "tensor": 2}) == P("fsdp", None)
    assert rules.partition_spec("head/kernel", (32, 8), {"data": 1, "fsdp": 2, "tensor": 2}) == P("fsdp", "tensor")


def test_collectives_are_identities_outside_a_mesh() -> None:
    tree = {"norm": {"scale": jnp.ones(32)}}
    assert collectives.gather_params(tree) is tree
    assert collectives.reduce_gradients(tree, {}) == (tree, {})

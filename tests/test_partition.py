"""Sharding: the tables cover every leaf, and a mesh changes where things lie but not what they are."""

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


def test_each_leaf_has_one_row_and_each_row_a_leaf() -> None:
    models = [(SMALL, None), (SMALL, SLOTS), (BERT, None), (BERT, SLOTS)]
    assert {path for a, slots in models for path in paths(shapes(a, slots))} == set(rules.LEAF_AXES)
    assert {axis for axes in rules.LEAF_AXES.values() for axis in axes} == set(rules.AXIS_RULES)


def test_specs_are_golden() -> None:
    """2.8b on 2 x 8 x 4: heads, feed-forward and vocabulary on `tensor`, weights on `fsdp`, layers on none."""
    sizes = {"data": 2, "fsdp": 8, "tensor": 4}
    found = {
        path: rules.partition_spec(path, leaf.shape, sizes)
        for path, leaf in paths(shapes(architecture("2.8b"))).items()
    }
    assert json.dumps({path: str(spec) for path, spec in found.items()}, indent=1) == GOLDEN.read_text().rstrip()


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


def masked(rows: int = 8, length: int = 16, told: int = 3) -> dict[str, np.ndarray]:
    random = np.random.default_rng(2)
    return {
        **batch(rows, length),
        "positions": np.sort(random.permuted(np.tile(np.arange(length), (rows, 1)), axis=1)[:, :told], axis=1),
        "targets": random.integers(1, BERT.vocabulary, (rows, told)).astype(np.int32),
        "weights": np.array([[1] * told] * (rows - 1) + [[1] + [0] * (told - 1)], np.int32),
    }


def labelled(rows: int = 8, length: int = 16) -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    return {
        "tokens": random.integers(1, SMALL.vocabulary, (rows, length)).astype(np.int32),
        "lengths": random.integers(1, length + 1, rows).astype(np.int32),
        "slots": random.integers(0, SLOTS, rows).astype(np.int32),
        "weights": np.array([1] * (rows - 1) + [0], np.float32),
    }


def after_two_steps(
    shape: MeshShape, phase: str, remat: Remat = "none", a: Architecture = SMALL
) -> tuple[list[dict[str, float]], Any]:
    """Metrics of two updates, and the gradient of the first."""
    language, adapting = (objectives.causal_lm, batch()) if a is SMALL else (objectives.masked_lm, masked())
    slots, made = (None, adapting) if phase == "adapt" else (SLOTS, labelled())
    graphdef = factory.make_graphdef(a, slots, remat=remat)
    task = language(graphdef) if phase == "adapt" else objectives.template_classification(graphdef)
    optimizer = adamw(AdaptConfig(learning_rate=1e-2, weight_decay=0.1), 10)
    mesh = make_mesh(shape)
    state = initial_state(factory.random_params(a, slots, 0), optimizer, mesh)
    places = jax.tree.map(lambda leaf: leaf.sharding, state)
    functions = step.compile_step(task, optimizer, places)
    found, gradients = [], []
    for _ in range(2):
        total = functions.gradient(state.params, jax.device_put(made, rules.row_sharding(mesh)), None)
        jax.tree.map(_equivalent, total.gradient, places.params)
        gradients.append(jax.tree.map(np.asarray, total.gradient))
        state, metrics = functions.update(state, total)
        found.append({name: float(value) for name, value in metrics.items()})
    jax.tree.map(_equivalent, state, places)
    return found, gradients[0]


def _equivalent(leaf: jax.Array, place: Any) -> None:
    assert leaf.sharding.is_equivalent_to(place, leaf.ndim)


@pytest.mark.parametrize("a", [SMALL, BERT], ids=["neox", "bert"])
@pytest.mark.parametrize("phase", ["adapt", "finetune"])
@pytest.mark.parametrize("shape", MESHES[1:], ids=str)
def test_one_batch_gives_one_loss_and_one_gradient_on_every_mesh(shape: MeshShape, phase: str, a: Architecture) -> None:
    (alone, gradient), (found, sharded) = after_two_steps(MESHES[0], phase, a=a), after_two_steps(shape, phase, a=a)
    for one, other in zip(alone, found, strict=True):
        assert other == pytest.approx(one, rel=1e-5)
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(gradient))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * largest), gradient, sharded)


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_rematerialisation_changes_nothing(remat: Remat) -> None:
    (alone, _), (found, _) = after_two_steps(MESHES[0], "adapt"), after_two_steps(MESHES[3], "adapt", remat)
    assert found[1] == pytest.approx(alone[1], rel=1e-5)


def test_the_state_is_born_where_it_lies() -> None:
    mesh = make_mesh(MeshShape(1, 4, 2))
    state = initial_state(factory.random_params(SMALL, 96, 0), adamw(AdaptConfig(learning_rate=1e-3), 10), mesh)
    kernel = state.params["blocks"]["mlp"]["up"]["kernel"]
    moments = [leaf for leaf in jax.tree.leaves(state.optimizer) if leaf.shape == kernel.shape]
    assert len(moments) == 2
    for leaf in (kernel, *moments):
        assert leaf.sharding.spec == P(None, "fsdp", "tensor")
        assert leaf.addressable_shards[0].data.shape == (2, 8, 32)


@pytest.mark.parametrize(
    ("asked", "rows", "said"),
    [
        (MeshShape(1, 16, 1), 8, "needs 16 devices of 8.*--mesh.data=1 --mesh.fsdp=8 --mesh.tensor=1"),
        (MeshShape(1, 1, 3), 8, "does not divide heads=4 by 3.*--mesh.data=1 --mesh.fsdp=1 --mesh.tensor=(2|4)"),
        (MeshShape(8, 1, 1), 4, "does not divide the 4 rows.*--mesh.data=4 --mesh.fsdp=1 --mesh.tensor=1"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused_with_the_nearest(asked: MeshShape, rows: int, said: str) -> None:
    with pytest.raises(UserError, match=said):
        choose_mesh(asked, shapes(SMALL), rows, 8)


def test_what_is_left_open_is_chosen() -> None:
    assert choose_mesh(MeshShape(0, 0, 1), shapes(SMALL), 8, 8) == (1, 8, 1)
    assert choose_mesh(MeshShape(0, 2, 1), shapes(SMALL), 8, 8) == (4, 2, 1)
    assert choose_mesh(MeshShape(0, 0, 1), shapes(SMALL), 2, 8) == (1, 2, 1)
    assert choose_mesh(MeshShape(0, 0, 1), shapes(SMALL, SLOTS), 0, 8) == (1, 8, 1)
    assert choose_mesh(MeshShape(0, 0, 1), shapes(SMALL), 8, 1) == (1, 1, 1)


def test_templates_of_any_number_are_taken() -> None:
    assert rules.partition_spec("head/kernel", (32, 7), {"data": 1, "fsdp": 2, "tensor": 2}) == P("fsdp", None)
    assert rules.partition_spec("head/kernel", (32, 8), {"data": 1, "fsdp": 2, "tensor": 2}) == P("fsdp", "tensor")


def test_outside_of_a_mesh_nothing_is_moved() -> None:
    tree = {"norm": {"scale": jnp.ones(32)}}
    assert collectives.gather_params(tree) is tree
    assert collectives.reduce_gradients(tree, {}) == (tree, {})

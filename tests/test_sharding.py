"""The sharding benchmark finds no fault in the compiled steps, and reports faults that exist."""

import jax
import pytest

from bench import hlo, sharding
from jaxtempl.models import cross_entropy, factory
from jaxtempl.models.scan import Remat
from jaxtempl.parallel import mesh
from jaxtempl.parallel.mesh import MeshShape
from jaxtempl.planning import compiled_step
from jaxtempl.specs.architecture import NeoXArchitecture

SMALL = NeoXArchitecture(layers=3, hidden=64, heads=4, feed_forward=96, vocabulary=272, positions=40)
ROWS, LENGTH = 16, 40


@pytest.mark.parametrize("shape", [MeshShape(1, 8, 1), MeshShape(2, 2, 2)], ids=str)
def test_a_step_communicates_only_weights_and_gradients(shape: MeshShape) -> None:
    program = compiled_step.compile_gradient(SMALL, mesh.make_mesh(shape), ROWS, LENGTH)
    shapes = factory.abstract_params(SMALL, SMALL.vocabulary)
    assert sharding.faults(program.text, shapes, ROWS, LENGTH, shape) == []
    kinds = {each.kind for each in hlo.collectives(program.text)}
    assert "all-gather" in kinds, "weights are gathered"
    assert kinds & {"all-reduce", "reduce-scatter"}, "gradients are reduced"
    assert all(
        each.bytes <= sharding.SCALARS
        for each in hlo.collectives(compiled_step.compile_update(SMALL, mesh.make_mesh(shape)).text)
    )


@pytest.mark.parametrize("remat", ["none", "dots"])
def test_gathered_weights_are_not_saved_for_the_backward_pass(remat: Remat) -> None:
    shape = MeshShape(1, 8, 1)
    program = compiled_step.compile_gradient(SMALL, mesh.make_mesh(shape), ROWS, LENGTH, remat)
    shapes = factory.abstract_params(SMALL, SMALL.vocabulary)
    assert sharding.faults(program.text, shapes, ROWS, LENGTH, shape) == []


def test_the_head_is_not_reduced_in_every_chunk_of_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    local = ROWS // 8 * SMALL.vocabulary
    monkeypatch.setitem(cross_entropy.CHUNK_LOGITS, "cpu", local * 10)
    assert cross_entropy.chunk_count(LENGTH, local, "cpu") == 4
    program = compiled_step.compile_gradient(SMALL, mesh.make_mesh(MeshShape(1, 8, 1)), ROWS, LENGTH)
    head = SMALL.hidden * SMALL.vocabulary * 4
    looped = [each for each in hlo.collectives(program.text) if each.looped and each.bytes >= head // 8]
    assert not [each for each in looped if any(SMALL.vocabulary in sizes for _, sizes in each.arrays)]


def test_a_device_holds_its_shard_of_the_state() -> None:
    whole = 16 * sum(leaf.size for leaf in jax.tree.leaves(factory.abstract_params(SMALL, SMALL.vocabulary)))
    assert compiled_step.state_bytes(SMALL, MeshShape(1, 1, 1)) == whole
    assert compiled_step.state_bytes(SMALL, MeshShape(1, 8, 1)) == whole / 8
    assert compiled_step.state_bytes(SMALL, MeshShape(1, 2, 4)) == whole / 8


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("%a = f32[3,64,96]{2,1,0} copy(%b)", "a stack of layers is whole"),
        ("%a = f32[4]{0} all-to-all(%b), replica_groups={}", "all-to-all"),
        ("%a = bf16[16,40,64]{2,1,0} all-gather(%b), dimensions={0}", "activations are gathered"),
        ("%a = (f32[2,4,40,16], f32[8]) all-gather-start(%b)", "activations are gathered"),
        ("%a = f32[2]{0} collective-permute(%b)", "collective-permute"),
    ],
)
def test_faults_are_reported(line: str, message: str) -> None:
    program = f"HloModule m\n\nENTRY %main (p: f32[]) -> f32[] {{\n  {line}\n}}\n"
    shapes = factory.abstract_params(SMALL, SMALL.vocabulary)
    assert message in "; ".join(sharding.faults(program, shapes, ROWS, LENGTH, MeshShape(1, 8, 1)))

"""The benchmark that reads compiled programs: what it reports of ours, and that it sees what must not be."""

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
def test_a_step_moves_weights_and_gradients_and_nothing_else(shape: MeshShape) -> None:
    program = compiled_step.compile_gradient(SMALL, mesh.make_mesh(shape), ROWS, LENGTH)
    shapes = factory.abstract_params(SMALL, SMALL.vocabulary)
    assert sharding.faults(program.text, shapes, ROWS, LENGTH, shape) == []
    kinds = {found.kind for found in hlo.collectives(program.text)}
    assert "all-gather" in kinds, "weights come together"
    assert kinds & {"all-reduce", "reduce-scatter"}, "gradients are added up"
    assert all(
        found.bytes <= sharding.SCALARS
        for found in hlo.collectives(compiled_step.compile_update(SMALL, mesh.make_mesh(shape)).text)
    )


@pytest.mark.parametrize("remat", ["none", "dots"])
def test_what_is_kept_for_the_backward_pass_is_never_a_gathered_weight(remat: Remat) -> None:
    shape = MeshShape(1, 8, 1)
    program = compiled_step.compile_gradient(SMALL, mesh.make_mesh(shape), ROWS, LENGTH, remat)
    shapes = factory.abstract_params(SMALL, SMALL.vocabulary)
    assert sharding.faults(program.text, shapes, ROWS, LENGTH, shape) == []


def test_no_chunk_of_the_loss_adds_up_the_head_over_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    own = ROWS // 8 * SMALL.vocabulary
    monkeypatch.setitem(cross_entropy.CHUNK_LOGITS, "cpu", own * 10)
    assert cross_entropy.chunk_count(LENGTH, own, "cpu") == 4
    program = compiled_step.compile_gradient(SMALL, mesh.make_mesh(MeshShape(1, 8, 1)), ROWS, LENGTH)
    head = SMALL.hidden * SMALL.vocabulary * 4
    looped = [found for found in hlo.collectives(program.text) if found.looped and found.bytes >= head // 8]
    assert not [found for found in looped if any(SMALL.vocabulary in sizes for _, sizes in found.arrays)]


def test_a_device_holds_its_share_of_the_state() -> None:
    whole = 16 * sum(leaf.size for leaf in jax.tree.leaves(factory.abstract_params(SMALL, SMALL.vocabulary)))
    assert compiled_step.state_bytes(SMALL, MeshShape(1, 1, 1)) == whole
    assert compiled_step.state_bytes(SMALL, MeshShape(1, 8, 1)) == whole / 8
    assert compiled_step.state_bytes(SMALL, MeshShape(1, 2, 4)) == whole / 8


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("%a = f32[3,64,96]{2,1,0} copy(%b)", "a stack of layers is whole"),
        ("%a = f32[4]{0} all-to-all(%b), replica_groups={}", "all-to-all"),
        ("%a = bf16[16,40,64]{2,1,0} all-gather(%b), dimensions={0}", "activations are gathered"),
        ("%a = (f32[2,4,40,16], f32[8]) all-gather-start(%b)", "activations are gathered"),
        ("%a = f32[2]{0} collective-permute(%b)", "collective-permute"),
    ],
)
def test_what_must_not_be_is_seen(line: str, said: str) -> None:
    program = f"HloModule m\n\nENTRY %main (p: f32[]) -> f32[] {{\n  {line}\n}}\n"
    shapes = factory.abstract_params(SMALL, SMALL.vocabulary)
    assert said in "; ".join(sharding.faults(program, shapes, ROWS, LENGTH, MeshShape(1, 8, 1)))

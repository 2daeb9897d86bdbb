"""Tests of the training loop, the optimizer and the checkpoints, in this process."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from flax import nnx
from rig import MESH, STEPS, Rig

from jaxtempl.config.training import AdaptConfig
from jaxtempl.errors import UsageError, UserError
from jaxtempl.models import factory
from jaxtempl.parallel import rules
from jaxtempl.training import trainer
from jaxtempl.training.loop import Schedule
from jaxtempl.training.optimizer import adamw, decay_mask, learning_rate_schedule
from jaxtempl.training.state import restore_state
from jaxtempl.training.step import compile_step


def same(a: Any, b: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_run_resumed_after_three_steps_equals_six_steps_bit_for_bit(tmp_path: Path) -> None:
    whole, cut = Rig(tmp_path / "whole"), Rig(tmp_path / "cut")
    expected = whole.fit(whole.fresh())
    cut.fit(cut.fresh(), steps=3, plan=Schedule(STEPS, save_every=99, recover_seconds=0.0))
    assert cut.checkpoints.newest_resumable() == 3
    resumed = restore_state(cut.fresh(), cut.checkpoints, 3)
    same(cut.fit(resumed), expected)
    drop = {"seconds", "tokens_per_second", "data_seconds", "training_share"}
    metrics = [[{k: v for k, v in line.items() if k not in drop} for line in rig.lines()] for rig in (whole, cut)]
    assert metrics[0] == metrics[1]


def test_an_update_equals_adamw_on_the_mean_over_predicted_tokens(tmp_path: Path) -> None:
    """Compare one step with optax's AdamW on the mean of a loss that computes all logits at once."""
    rig = Rig(tmp_path)
    start = rig.fresh().params
    batch = rig.stream[0][0]

    def mean_loss(params: Any) -> jax.Array:
        model: Any = nnx.merge(rig.task.graphdef, params)
        tokens, real = jnp.asarray(batch["tokens"], jnp.int32), batch["segments"][:, 1:] > 0
        losses = optax.softmax_cross_entropy_with_integer_labels(model(tokens)[:, :-1], tokens[:, 1:])
        return (losses * real).sum() / real.sum()

    gradient = jax.jit(jax.grad(mean_loss))(start)
    reference = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(1e-2, 0.9, 0.95, 1e-8, weight_decay=0.1, mask=decay_mask)
    )
    changes, _ = jax.jit(reference.update)(gradient, jax.jit(reference.init)(start), start)
    expected = optax.apply_updates(start, changes)
    got = rig.fit(rig.fresh(), steps=1)
    assert float(got.step) == 1

    def close(a: jax.Array, b: jax.Array, g: jax.Array) -> None:
        is_clear = np.abs(g) > 1e-5  # Adam's first step is the gradient's sign, which is a rounding error near zero
        np.testing.assert_allclose(np.asarray(a)[is_clear], np.asarray(b)[is_clear], atol=3e-5)

    jax.tree.map(close, got.params, expected, gradient)
    rig.fit(rig.fresh(), steps=2)  # metrics are reported one step late
    assert rig.lines()[0]["gradient_norm"] == pytest.approx(float(optax.tree.norm(gradient)), rel=1e-4)


def test_accumulated_microbatches_equal_one_batch(tmp_path: Path) -> None:
    one, four = Rig(tmp_path / "one"), Rig(tmp_path / "four", accumulate=4)
    for rig in (one, four):
        rig.fit(rig.fresh())
    for name in ("loss", "gradient_norm"):
        np.testing.assert_allclose(*([line[name] for line in rig.lines()] for rig in (one, four)), rtol=1e-4)


def test_training_compiles_once(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    state = rig.fresh()
    functions = compile_step(rig.task, rig.optimizer, jax.tree.map(lambda leaf: leaf.sharding, state))
    for step in range(3):
        total = functions.gradient(
            state.params, jax.device_put(dict(rig.stream[step][0]), rules.row_sharding(MESH)), None
        )
        state, _ = functions.update(state, total)
    assert functions.gradient._cache_size() == functions.update._cache_size() == 1


def test_a_step_with_a_nan_stops_the_run_and_is_not_saved(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    with pytest.raises(UserError, match="step 1 is nan"):
        rig.fit(rig.fresh(), plan=Schedule(STEPS, save_every=1, recover_seconds=0.0), spoil=0)
    assert rig.checkpoints.steps() == []


def test_all_study_checkpoints_and_the_newest_two_recovery_checkpoints_are_kept(tmp_path: Path) -> None:
    ticks = iter(range(0, 1000, 10))
    rig = Rig(tmp_path)
    rig.fit(rig.fresh(), plan=Schedule(STEPS, save_every=4, recover_seconds=10.0, clock=lambda: float(next(ticks))))
    assert rig.checkpoints.steps("study") == [4, 6]
    assert rig.checkpoints.steps("recovery") == [3, 5]
    assert rig.checkpoints.newest_resumable() == 5


def test_an_incomplete_or_modified_checkpoint_is_never_read(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    params = rig.fresh().params
    for step in (1, 2):
        rig.checkpoints.save(step, "study", params, None, {"step": step})
    rig.checkpoints.wait()
    (rig.checkpoints.folder / "2" / "manifest.json").unlink()
    assert rig.checkpoints.steps() == [1]
    with pytest.raises(UserError, match="no complete checkpoint 2"):
        rig.checkpoints.params(2, params)
    victim = next(
        p for p in (rig.checkpoints.folder / "1" / "params").rglob("*") if p.is_file() and p.stat().st_size > 1000
    )
    content = bytearray(victim.read_bytes())
    content[500] ^= 1
    victim.write_bytes(bytes(content))
    with pytest.raises(UserError, match=victim.name):
        rig.checkpoints.params(1, params)
    (rig.checkpoints.folder / ".3.0123abcd.partial" / "params").mkdir(parents=True)
    rig.checkpoints.remove_partial()
    assert sorted(path.name for path in rig.checkpoints.folder.iterdir()) == ["1", "2"]


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_checkpoints_are_plain_nested_dicts(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    state = rig.fit(rig.fresh(), steps=1, plan=Schedule(STEPS, save_every=99, recover_seconds=0.0))
    import orbax.checkpoint as ocp

    with ocp.PyTreeCheckpointer() as reader:
        read = reader.restore((rig.checkpoints.folder / "1" / "optimizer").resolve())
    kinds = {type(node) for node in _nodes(read)}
    assert kinds == {dict}
    assert rig.checkpoints.meta(1) == {"step": 1}
    same(rig.checkpoints.params(1, state.params), state.params)


def _nodes(tree: Any) -> Iterator[Any]:
    if isinstance(tree, (dict, list, tuple)):
        yield tree
        for child in tree.values() if isinstance(tree, dict) else tree:
            yield from _nodes(child)


def test_weight_decay_excludes_biases_and_norm_scales() -> None:
    params = factory.random_params(tiny.ARCHITECTURE, 4, 0)
    ones = jax.tree.map(jnp.ones_like, params)
    optimizer = adamw(AdaptConfig(learning_rate=0.5, weight_decay=0.1), 10)

    @jax.jit
    def changed(params: Any) -> Any:
        return optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)[0]

    changes = changed(ones)
    moved = {
        jax.tree_util.keystr(path): bool((leaf != 0).any())
        for path, leaf in jax.tree_util.tree_leaves_with_path(changes)
    }
    still = {name for name, has_moved in moved.items() if not has_moved}
    assert still == {name for name in moved if "bias" in name or "scale" in name}
    assert any("kernel" in name for name in moved.keys() - still)
    assert any("embedding" in name for name in moved.keys() - still)


@pytest.mark.parametrize(("schedule", "half"), [("cosine", 0.5), ("linear", 0.5)])
def test_schedules_rise_during_warmup_and_fall_to_zero(schedule: Any, half: float) -> None:
    rate = learning_rate_schedule(AdaptConfig(learning_rate=2.0, warmup_ratio=0.1, schedule=schedule), 100)
    rise = [float(rate(step)) for step in range(10)]
    np.testing.assert_allclose(rise, np.arange(1, 11) / 10 * 2.0, rtol=1e-5)
    assert float(rate(10)) == pytest.approx(2.0)
    assert float(rate(55)) == pytest.approx(2.0 * half, rel=1e-5)
    assert float(rate(100)) == pytest.approx(0.0, abs=1e-6)


def test_wsd_holds_the_rate_until_it_decays_linearly() -> None:
    def rates(**changes: int) -> list[float]:
        config = AdaptConfig(learning_rate=2.0, warmup_ratio=0.1, schedule="wsd", **changes)
        return [float(learning_rate_schedule(config, 100)(step)) for step in (0, 9, 10, 60, 79, 80, 90, 100)]

    np.testing.assert_allclose(rates(), [0.2, 2, 2, 2, 2, 2, 1, 0], atol=1e-6)
    np.testing.assert_allclose(rates(decay_at=60), [0.2, 2, 2, 2, 1.05, 1, 0.5, 0], atol=1e-6)


@pytest.mark.parametrize("changes", [{"schedule": "cosine", "decay_at": 5}, {"schedule": "wsd", "decay_at": 10}])
def test_decay_at_must_be_an_update_of_a_wsd_schedule(changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="--decay_at"):
        trainer.resolve_config(AdaptConfig(steps=10, size="nano", **changes), "adapt", 10, saves=2, length=8)


def test_the_papers_warmup_is_145_steps() -> None:
    rate = learning_rate_schedule(AdaptConfig(learning_rate=3e-4, warmup_ratio=0.01), 14_500)
    assert float(rate(143)) < float(rate(144)) == pytest.approx(3e-4)
    assert float(rate(300)) < 3e-4

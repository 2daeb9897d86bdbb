"""float16: the loss scale follows Pythia's rule, and an overflow skips only one update."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rig import STEPS, Rig

from jaxtempl.errors import UserError
from jaxtempl.training import precision
from jaxtempl.training.loop import Schedule
from jaxtempl.training.precision import HYSTERESIS, INITIAL_SCALE, WINDOW, LossScale
from jaxtempl.training.state import restore_state


def after(steps: str, scale: float = INITIAL_SCALE, finite: int = 0) -> LossScale:
    """Return the scale after steps that were finite (`.`) or overflowed (`!`)."""
    zero = jnp.zeros((), jnp.int32)
    state = LossScale(jnp.float32(scale), jnp.int32(finite), jnp.int32(HYSTERESIS), zero)
    for step in steps:
        state = precision.update_loss_scale(state, jnp.asarray(step == "."))
    return state


@pytest.mark.parametrize(
    ("steps", "factor"), [("...", 1), ("!", 1), ("!!", 0.5), ("!!!", 0.25), ("!.!", 0.5), ("!..", 1)]
)
def test_the_scale_halves_when_its_hysteresis_is_used_up(steps: str, factor: float) -> None:
    assert float(after(steps).scale) == INITIAL_SCALE * factor
    assert int(after(steps).skipped) == steps.count("!")


def test_the_scale_doubles_after_a_window_and_its_hysteresis_resets() -> None:
    grown = after("!.", finite=0)._replace(finite=jnp.int32(WINDOW - 1))
    grown = precision.update_loss_scale(grown, jnp.asarray(True))
    assert float(grown.scale) == 2 * INITIAL_SCALE
    assert (int(grown.finite), int(grown.patience)) == (0, HYSTERESIS)


def test_the_scale_is_at_least_one() -> None:
    assert float(after("!!!!", scale=2.0).scale) == 1.0


def plan(recover: float = 1e9) -> Schedule:
    return Schedule(STEPS, save_every=99, recover_seconds=recover)


def test_float16_losses_match_float32(tmp_path: Path) -> None:
    half, whole = Rig(tmp_path / "half", dtype=jnp.float16), Rig(tmp_path / "whole")
    half.fit(half.fresh(), plan=plan())
    whole.fit(whole.fresh(), plan=plan())
    losses = [[line["loss"] for line in rig.lines()] for rig in (half, whole)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=5e-3)
    assert [line["loss_scale"] for line in half.lines()] == [INITIAL_SCALE] * STEPS
    assert "loss_scale" not in whole.lines()[0]


def test_an_overflow_skips_its_update_and_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "INITIAL_SCALE", 2.0**40)
    rig = Rig(tmp_path, dtype=jnp.float16)
    start = jax.tree.map(np.asarray, rig.fresh().params)
    after_two = rig.fit(rig.fresh(), steps=2, plan=plan())
    jax.tree.map(np.testing.assert_array_equal, after_two.params, start)
    assert after_two.scale is not None
    assert (int(after_two.step), int(after_two.scale.skipped), float(after_two.scale.scale)) == (2, 2, 2.0**39)
    rig.fit(rig.fresh(), steps=3, plan=plan())
    assert [line["skipped"] for line in rig.lines()][:2] == [1, 2]
    assert all("gradient_norm" not in line for line in rig.lines()[:2])


def test_the_scale_resumes_bit_for_bit(tmp_path: Path) -> None:
    whole, cut = Rig(tmp_path / "whole", dtype=jnp.float16), Rig(tmp_path / "cut", dtype=jnp.float16)
    expected = whole.fit(whole.fresh(), plan=plan())
    cut.fit(cut.fresh(), steps=3, plan=plan(recover=0.0))
    jax.tree.map(
        np.testing.assert_array_equal, cut.fit(restore_state(cut.fresh(), cut.checkpoints, 3), plan=plan()), expected
    )


def test_an_overflow_at_scale_one_ends_the_training(tmp_path: Path) -> None:
    rig = Rig(tmp_path, dtype=jnp.float16)
    state = rig.fresh()
    assert state.scale is not None
    broken = state._replace(
        params=jax.tree.map(lambda leaf: leaf * jnp.nan, state.params),
        scale=state.scale._replace(scale=jax.device_put(jnp.float32(1.0), state.step.sharding)),
    )
    with pytest.raises(UserError, match="of step 1 is nan"):
        rig.fit(broken, steps=3, plan=plan())

"""float16: the scale of the loss goes as Pythia's did, and an overflow costs an update and nothing else."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxtempl import batches, optim, partition, precision, run, tasks, train
from jaxtempl.batches import Batch
from jaxtempl.checkpoint import Checkpoints
from jaxtempl.config import AdaptConfig
from jaxtempl.errors import UserError
from jaxtempl.partition import Shape
from jaxtempl.precision import HYSTERESIS, INITIAL_SCALE, WINDOW, LossScale
from jaxtempl.tracking import Tracker
from jaxtempl.train import Plan, TrainState

CONFIG = AdaptConfig(rate=1e-2, warmup=0.2, decay=0.1)
STEPS = 6
VOCABULARY = tiny.ARCHITECTURE.vocabulary
MESH = partition.make_mesh(Shape(1, 1, 1))


def after(steps: str, scale: float = INITIAL_SCALE, finite: int = 0) -> LossScale:
    """The scale after steps that were finite (`.`) or overflowed (`!`)."""
    zero = jnp.zeros((), jnp.int32)
    state = LossScale(jnp.float32(scale), jnp.int32(finite), jnp.int32(HYSTERESIS), zero)
    for step in steps:
        state = precision.adjusted(state, jnp.asarray(step == "."))
    return state


@pytest.mark.parametrize(
    ("steps", "factor"), [("...", 1), ("!", 1), ("!!", 0.5), ("!!!", 0.25), ("!.!", 0.5), ("!..", 1)]
)
def test_the_scale_halves_once_its_patience_is_gone(steps: str, factor: float) -> None:
    assert float(after(steps).scale) == INITIAL_SCALE * factor
    assert int(after(steps).skipped) == steps.count("!")


def test_the_scale_doubles_after_a_window_and_is_patient_again() -> None:
    grown = after("!.", finite=0)._replace(finite=jnp.int32(WINDOW - 1))
    grown = precision.adjusted(grown, jnp.asarray(True))
    assert float(grown.scale) == 2 * INITIAL_SCALE
    assert (int(grown.finite), int(grown.patience)) == (0, HYSTERESIS)


def test_the_scale_stays_above_one() -> None:
    assert float(after("!!!!", scale=2.0).scale) == 1.0


class Rig:
    """A tiny language model ready to train in a precision."""

    def __init__(self, folder: Path, dtype: Any) -> None:
        graphdef = run.graphdef(tiny.ARCHITECTURE, VOCABULARY, dtype)
        self.task, self.optimizer, self.dtype = tasks.causal_lm(graphdef), optim.adamw(CONFIG, STEPS), jnp.dtype(dtype)
        random = np.random.default_rng(0)
        row = lambda: {"tokens": random.integers(2, 90, 16).astype(np.uint16), "segments": np.ones(16, np.uint16)}  # noqa: E731
        self.stream = batches.row_batches([([row() for _ in range(24)], None)], 4, 1, seed=0)
        self.folder, self.checkpoints = folder, Checkpoints(folder / "checkpoints")

    def fresh(self) -> TrainState:
        params = run.random_params(tiny.ARCHITECTURE, VOCABULARY, 0)
        return train.initial_state(params, self.optimizer, MESH, precision.loss_scale(self.dtype))

    def fit(self, state: TrainState, steps: int = STEPS, recover: float = 1e9) -> TrainState:
        def stream(first: int) -> Iterator[Batch]:
            return iter([self.stream[step] for step in range(first, steps)])

        plan = Plan(STEPS, save_every=99, recover_seconds=recover)
        with Tracker(self.folder, STEPS, int(state.step), optim.learning_rate(CONFIG, STEPS)) as tracker:
            return train.fit(self.task, self.optimizer, state, stream, None, plan, self.checkpoints, tracker, MESH)

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]


def test_float16_trains_as_float32_does(tmp_path: Path) -> None:
    half, whole = Rig(tmp_path / "half", jnp.float16), Rig(tmp_path / "whole", jnp.float32)
    half.fit(half.fresh())
    whole.fit(whole.fresh())
    losses = [[line["loss"] for line in rig.lines()] for rig in (half, whole)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=5e-3)
    assert [line["loss_scale"] for line in half.lines()] == [INITIAL_SCALE] * STEPS
    assert "loss_scale" not in whole.lines()[0]


def test_an_overflow_leaves_out_its_update_and_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "INITIAL_SCALE", 2.0**40)
    rig = Rig(tmp_path, jnp.float16)
    start = jax.tree.map(np.asarray, rig.fresh().params)
    after_two = rig.fit(rig.fresh(), steps=2)
    jax.tree.map(np.testing.assert_array_equal, after_two.params, start)
    assert after_two.scale is not None
    assert (int(after_two.step), int(after_two.scale.skipped), float(after_two.scale.scale)) == (2, 2, 2.0**39)
    rig.fit(rig.fresh(), steps=3)
    assert [line["skipped"] for line in rig.lines()][:2] == [1, 2]
    assert all("gradient_norm" not in line for line in rig.lines()[:2])


def test_the_scale_goes_on_where_it_was(tmp_path: Path) -> None:
    whole, cut = Rig(tmp_path / "whole", jnp.float16), Rig(tmp_path / "cut", jnp.float16)
    expected = whole.fit(whole.fresh())
    cut.fit(cut.fresh(), steps=3, recover=0.0)
    jax.tree.map(np.testing.assert_array_equal, cut.fit(train.resume(cut.fresh(), cut.checkpoints, 3)), expected)


def test_an_overflow_at_scale_one_ends_the_training(tmp_path: Path) -> None:
    rig = Rig(tmp_path, jnp.float16)
    state = rig.fresh()
    assert state.scale is not None
    broken = state._replace(
        params=jax.tree.map(lambda leaf: leaf * jnp.nan, state.params),
        scale=state.scale._replace(scale=jax.device_put(jnp.float32(1.0), state.step.sharding)),
    )
    with pytest.raises(UserError, match="of step 1 is nan"):
        rig.fit(broken, steps=3)

"""A small training for tests, in this process."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tiny

from jaxtempl.config.training import AdaptConfig
from jaxtempl.data import loader
from jaxtempl.data.loader import Batch
from jaxtempl.models import factory
from jaxtempl.parallel import mesh
from jaxtempl.parallel.mesh import MeshShape
from jaxtempl.runs.checkpoint import Checkpoints
from jaxtempl.training import loggers, loop, objectives, optimizer, precision
from jaxtempl.training.loop import Schedule
from jaxtempl.training.state import TrainState, initial_state
from jaxtempl.training.tracker import Tracker

STEPS = 6
CONFIG = AdaptConfig(steps=STEPS, learning_rate=1e-2, warmup_ratio=0.2, weight_decay=0.1, schedule="cosine")
MESH = mesh.make_mesh(MeshShape(1, 1, 1))


def rows(count: int = 24) -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(0)
    made = [
        {"tokens": random.integers(2, 90, 16).astype(np.uint16), "segments": np.ones(16, np.uint16)}
        for _ in range(count)
    ]
    made[0]["segments"][9:] = 0
    return made


class Rig:
    """A tiny language model ready to train in a folder."""

    def __init__(
        self, folder: Path, accumulate: int = 1, dtype: Any = jnp.float32, config: AdaptConfig = CONFIG
    ) -> None:
        self.task = objectives.causal_lm(factory.make_graphdef(tiny.ARCHITECTURE, tiny.ARCHITECTURE.vocabulary, dtype))
        self.dtype, self.config = jnp.dtype(dtype), config
        self.optimizer = optimizer.adamw(CONFIG, STEPS)
        self.stream = loader.row_batches([(rows(), None)], 4, accumulate, seed=0)
        self.folder, self.checkpoints = folder, Checkpoints(folder / "checkpoints")

    def fresh(self) -> TrainState:
        params = factory.random_params(tiny.ARCHITECTURE, tiny.ARCHITECTURE.vocabulary, 0)
        return initial_state(params, self.optimizer, MESH, precision.initial_loss_scale(self.dtype))

    def fit(
        self,
        state: TrainState,
        steps: int = STEPS,
        plan: Schedule | None = None,
        spoil: int = -1,
        stopping: Callable[[], bool] = lambda: False,
    ) -> TrainState:
        def stream(first: int) -> Iterator[Batch]:
            return iter([self.stream[step] for step in range(first, steps)])

        plan = plan or Schedule(STEPS, save_every=3, recover_seconds=1e9)
        if spoil >= 0:
            state = state._replace(params=jax.tree.map(lambda leaf: leaf * jnp.nan, state.params))
        told = loggers.open_loggers(self.config, self.folder, int(state.step))
        with Tracker(told, optimizer.learning_rates(CONFIG, STEPS).item) as tracker:
            return loop.fit(self.task, self.optimizer, state, stream, None, plan, self.checkpoints, tracker, stopping)

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]

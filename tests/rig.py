"""A training small enough for tests, in this process."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tiny

from jaxtempl import batches, boards, optim, partition, precision, tasks, train
from jaxtempl.batches import Batch
from jaxtempl.checkpoint import Checkpoints
from jaxtempl.config import AdaptConfig
from jaxtempl.models import build
from jaxtempl.partition import Shape
from jaxtempl.tracking import Tracker
from jaxtempl.train import Plan, TrainState

STEPS = 6
CONFIG = AdaptConfig(steps=STEPS, rate=1e-2, warmup=0.2, decay=0.1, schedule="cosine")
MESH = partition.make_mesh(Shape(1, 1, 1))


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
        self.task = tasks.causal_lm(build.graphdef(tiny.ARCHITECTURE, tiny.ARCHITECTURE.vocabulary, dtype))
        self.dtype, self.config = jnp.dtype(dtype), config
        self.optimizer = optim.adamw(CONFIG, STEPS)
        self.stream = batches.row_batches([(rows(), None)], 4, accumulate, seed=0)
        self.folder, self.checkpoints = folder, Checkpoints(folder / "checkpoints")

    def fresh(self) -> TrainState:
        params = build.random_params(tiny.ARCHITECTURE, tiny.ARCHITECTURE.vocabulary, 0)
        return train.initial_state(params, self.optimizer, MESH, precision.loss_scale(self.dtype))

    def fit(self, state: TrainState, steps: int = STEPS, plan: Plan | None = None, spoil: int = -1) -> TrainState:
        def stream(first: int) -> Iterator[Batch]:
            return iter([self.stream[step] for step in range(first, steps)])

        plan = plan or Plan(STEPS, save_every=3, recover_seconds=1e9)
        if spoil >= 0:
            state = state._replace(params=jax.tree.map(lambda leaf: leaf * jnp.nan, state.params))
        told = boards.opened(self.config, self.folder, int(state.step))
        with Tracker(told, optim.rates(CONFIG, STEPS).item) as tracker:
            return train.fit(self.task, self.optimizer, state, stream, None, plan, self.checkpoints, tracker)

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]

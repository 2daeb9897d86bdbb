"""AdamW with a decay mask by leaf name, and the paper's two schedules."""

import jax
import numpy as np
import optax
from jaxtyping import Float, PyTree

from jaxtempl.config.training import TrainConfig

EPSILON = 1e-8  # ours: the paper states none; it is Pythia's own
NOT_DECAYED = {"bias", "scale"}


def learning_rate_schedule(config: TrainConfig, steps: int) -> optax.Schedule:
    """Linear warm-up over `warmup` of the steps, then cosine or linear decay to zero (paper Tables 1 and 2)."""
    warmup = round(config.warmup_ratio * steps)
    rest = max(steps - warmup, 1)
    decay = {
        "cosine": optax.cosine_decay_schedule(config.learning_rate, rest),
        "linear": optax.linear_schedule(config.learning_rate, 0.0, rest),
    }[config.schedule]
    rise = optax.linear_schedule(config.learning_rate / max(warmup, 1), config.learning_rate, max(warmup - 1, 1))
    return optax.join_schedules([rise, decay], [warmup]) if warmup else decay


def learning_rates(config: TrainConfig, steps: int) -> Float[np.ndarray, " steps"]:
    """The learning rate of each update, on the host, so that telling it asks the device for nothing."""
    return np.asarray(jax.jit(jax.vmap(learning_rate_schedule(config, steps)))(np.arange(steps)), np.float32)


def decay_mask(params: PyTree) -> PyTree[bool]:
    """True at each leaf that weight decay pulls on: kernels and embeddings, told by the leaf's name."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key not in NOT_DECAYED, params)


def adamw(config: TrainConfig, steps: int) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW (paper Tables 1 and 2; `clip` and `EPSILON` are ours)."""
    return optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm),
        optax.adamw(
            learning_rate_schedule(config, steps),
            config.beta1,
            config.beta2,
            EPSILON,
            weight_decay=config.weight_decay,
            mask=decay_mask,
        ),
    )

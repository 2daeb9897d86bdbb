"""AdamW with a decay mask by leaf name, and the learning-rate schedules."""

import jax
import numpy as np
import optax
from jaxtyping import Float, PyTree

from jaxtempl.config.training import TrainConfig

EPSILON = 1e-8  # the paper states none; this is Pythia's
NOT_DECAYED = {"bias", "scale"}


def learning_rate_schedule(config: TrainConfig, steps: int) -> optax.Schedule:
    """Return a linear warm-up over `warmup_ratio` of the steps, then a decay to 0.

    The decay is cosine or linear (paper, Tables 1 and 2), or `wsd`: warm-up, stable, decay (Hu et al., 2024, section
    4.2), whose linear decay starts at `decay_at`. A run with a constant rate has annealed branches at any of its
    checkpoints.
    """
    warmup = round(config.warmup_ratio * steps)
    if config.schedule == "wsd":
        return _warm_up_and_hold(config, warmup, config.decay_at or min(round(0.8 * steps), steps - 1), steps)
    rest = max(steps - warmup, 1)
    decay = {
        "cosine": optax.cosine_decay_schedule(config.learning_rate, rest),
        "linear": optax.linear_schedule(config.learning_rate, 0.0, rest),
    }[config.schedule]
    return optax.join_schedules([_rise(config, warmup), decay], [warmup]) if warmup else decay


def _warm_up_and_hold(config: TrainConfig, warmup: int, decay_at: int, steps: int) -> optax.Schedule:
    hold = optax.constant_schedule(config.learning_rate)
    decay = optax.linear_schedule(config.learning_rate, 0.0, steps - decay_at)
    return optax.join_schedules([_rise(config, warmup), hold, decay], [warmup, decay_at])


def _rise(config: TrainConfig, warmup: int) -> optax.Schedule:
    return optax.linear_schedule(config.learning_rate / max(warmup, 1), config.learning_rate, max(warmup - 1, 1))


def learning_rates(config: TrainConfig, steps: int) -> Float[np.ndarray, " steps"]:
    """Return the learning rate of each update on the host, so that logging it needs no device transfer."""
    return np.asarray(jax.jit(jax.vmap(learning_rate_schedule(config, steps)))(np.arange(steps)), np.float32)


def decay_mask(params: PyTree) -> PyTree[bool]:
    """Return a mask that is true at leaves with weight decay: kernels and embeddings, by the leaf's name."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key not in NOT_DECAYED, params)


def adamw(config: TrainConfig, steps: int) -> optax.GradientTransformation:
    """Return clipping by global norm, then AdamW (Tables 1 and 2; `max_grad_norm` and `EPSILON` are ours)."""
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

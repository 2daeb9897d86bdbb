"""A Hugging Face folder of a tiny model, for tests that read one."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from jaxtempl.huggingface import config, save
from jaxtempl.models.neox import NeoX
from jaxtempl.specs.architecture import NeoXArchitecture

SMALL = NeoXArchitecture(layers=2, hidden=12, heads=2, feed_forward=20, vocabulary=17, rotary_fraction=1.0)
OUTPUTS: dict[config.Head, int] = {"lm": 17, "template": 5}


def random_params(outputs: int) -> dict[str, Any]:
    model = nnx.eval_shape(lambda: NeoX(SMALL, outputs, rngs=nnx.Rngs(0)))
    generator = np.random.default_rng(0)
    shapes = nnx.to_pure_dict(nnx.state(model))
    return jax.tree.map(lambda leaf: generator.standard_normal(leaf.shape, np.float32), shapes)


def assert_same(one: Any, other: Any) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


def saved(folder: Path, head: config.Head = "lm", **options: Any) -> dict[str, Any]:
    params = random_params(OUTPUTS[head])
    save.write(folder, SMALL, params, head, **options)
    return params


def edit_config(folder: Path, **keys: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))

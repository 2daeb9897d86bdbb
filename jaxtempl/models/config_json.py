"""Hugging Face's config.json of a GPT-NeoX model and our Architecture, both ways."""

from collections.abc import Mapping
from typing import Any, Literal

from jaxtempl.errors import UserError
from jaxtempl.models.neox import Architecture

Head = Literal["lm", "template"]

INTEGERS = {  # our field: Hugging Face's key
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "feed_forward": "intermediate_size",
    "vocabulary": "vocab_size",
}

MOST = 1e12  # that a real number of config.json is believed to be

FIXED: dict[str, tuple[Any, str]] = {  # key: the one value that the model has, and what another would need
    "model_type": ("gpt_neox", "another model"),
    "hidden_act": ("gelu", "another activation (gelu is the exact one)"),
    "tie_word_embeddings": (False, "an output that shares the embedding"),
    "attention_bias": (True, "attention without biases"),
}


def architecture_from(config: Any) -> Architecture:
    """The architecture that a Hugging Face config.json describes, by its older or its newer keys.

    Absent keys take transformers' defaults, as it would.

    Args:
        config: what the file holds, whatever that is.

    Raises:
        UserError: the model is not GPT-NeoX as Pythia has it; every reason is named.
    """
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {} if isinstance(config, dict) else None
    if not isinstance(rope, dict):
        raise UserError("config.json is no object of a model's keys with another of its rope; fetch the folder again")
    numbers = _numbers(config, rope)
    faults = _unsupported(config, rope) + _mistyped(config) + _not_positive(numbers)
    if faults:
        raise UserError(f"config.json is of a model that is not supported: {'; '.join(faults)}. Use a Pythia model")
    return Architecture(
        **{field: config[key] for field, key in INTEGERS.items()},
        positions=config.get("max_position_embeddings", 2048),
        rotary_fraction=float(numbers["rotary_pct"]),
        rotary_base=float(numbers["rotary_emb_base"]),
        parallel_residual=config.get("use_parallel_residual", True),
        norm_eps=float(numbers["layer_norm_eps"]),
    )


def hugging_face_config(architecture: Architecture, head: Head) -> dict[str, Any]:
    """The config.json of a model: transformers of both key styles read it."""
    name = {"lm": "GPTNeoXForCausalLM", "template": "GPTNeoXForSequenceClassification"}[head]
    rotary, base = architecture.rotary_fraction, architecture.rotary_base
    return {
        "architectures": [name],
        "model_type": "gpt_neox",
        **{key: getattr(architecture, field) for field, key in INTEGERS.items()},
        "max_position_embeddings": architecture.positions,
        "rotary_pct": rotary,
        "rotary_emb_base": base,
        "rope_parameters": {"rope_type": "default", "partial_rotary_factor": rotary, "rope_theta": base},
        "use_parallel_residual": architecture.parallel_residual,
        "layer_norm_eps": architecture.norm_eps,
        **{key: value for key, (value, _) in FIXED.items() if key != "model_type"},
        "torch_dtype": "float32",
        "dtype": "float32",
    }


def _unsupported(config: Mapping[str, Any], rope: Mapping[str, Any]) -> list[str]:
    found = {key: config.get(key, None if key == "model_type" else value) for key, (value, _) in FIXED.items()}
    wrong = ((key, got) for key, got in found.items() if got != FIXED[key][0])
    faults = [f"{key} is {got!r}, which is {FIXED[key][1]}; only {FIXED[key][0]!r} is" for key, got in wrong]
    kind = rope.get("rope_type", rope.get("type", "default"))
    return faults + ([f"rope_type is {kind!r}; only 'default' is"] if kind != "default" else [])


def _mistyped(config: Mapping[str, Any]) -> list[str]:
    values = {key: config.get(key) for key in INTEGERS.values()}
    values["max_position_embeddings"] = config.get("max_position_embeddings", 2048)
    bad = ((key, value) for key, value in values.items() if type(value) is not int or value < 1)
    faults = [f"{key} is {value!r}, not a whole number above 0" for key, value in bad]
    parallel = config.get("use_parallel_residual", True)
    return faults + ([] if type(parallel) is bool else [f"use_parallel_residual is {parallel!r}, not true or false"])


def _numbers(config: Mapping[str, Any], rope: Mapping[str, Any]) -> dict[str, Any]:
    """Its real numbers, by their older names."""
    return {
        "rotary_pct": rope.get("partial_rotary_factor", config.get("rotary_pct", 0.25)),
        "rotary_emb_base": rope.get("rope_theta", config.get("rotary_emb_base", 10_000)),
        "layer_norm_eps": config.get("layer_norm_eps", 1e-5),
    }


def _not_positive(numbers: Mapping[str, Any]) -> list[str]:
    most = {"rotary_pct": 1.0}  # a share
    return [
        f"{key} is {value!r}, not a number above 0 and up to {most.get(key, MOST):g}"
        for key, value in numbers.items()
        if type(value) not in (int, float) or not 0 < value <= most.get(key, MOST)
    ]

"""Convert between Hugging Face's config.json and an `Architecture`, for GPT-NeoX and BERT."""

from collections.abc import Callable, Mapping
from typing import Any

from jaxtempl.errors import UserError
from jaxtempl.huggingface.mapping import Head
from jaxtempl.specs.architecture import Architecture, BertArchitecture, NeoXArchitecture

MAXIMUM = 1e12  # of a real number in config.json

Integers = Mapping[str, tuple[str, int | None]]  # field: Hugging Face's key and its default, if any
Fixed = Mapping[str, tuple[Any, str]]  # key: the only supported value, and the meaning of others

INTEGERS: Integers = {
    "layers": ("num_hidden_layers", None),
    "hidden": ("hidden_size", None),
    "heads": ("num_attention_heads", None),
    "feed_forward": ("intermediate_size", None),
    "vocabulary": ("vocab_size", None),
}
NEOX_INTEGERS: Integers = {**INTEGERS, "positions": ("max_position_embeddings", 2048)}
BERT_INTEGERS: Integers = {
    **INTEGERS,
    "positions": ("max_position_embeddings", 512),
    "types": ("type_vocab_size", 2),
}

NEOX_FIXED: Fixed = {
    "model_type": ("gpt_neox", "another model"),
    "hidden_act": ("gelu", "another activation (gelu is the exact one)"),
    "tie_word_embeddings": (False, "an output that shares the embedding"),
    "attention_bias": (True, "attention without biases"),
}
BERT_FIXED: Fixed = {
    "model_type": ("bert", "another model"),
    "hidden_act": ("gelu", "another activation (gelu is the exact one)"),
    "tie_word_embeddings": (True, "an output with its own table"),
    "position_embedding_type": ("absolute", "relative positions"),
    "is_decoder": (False, "causal attention"),
    "add_cross_attention": (False, "attention to another model"),
}

CLASSES: dict[tuple[str, Head], str] = {
    ("gpt_neox", "lm"): "GPTNeoXForCausalLM",
    ("gpt_neox", "template"): "GPTNeoXForSequenceClassification",
    ("bert", "lm"): "BertForMaskedLM",
    ("bert", "template"): "BertForSequenceClassification",
}


def architecture_from(config: Any) -> Architecture:
    """Return the architecture that a Hugging Face config.json describes, by its older or its newer keys.

    Absent keys take transformers' defaults.

    Args:
        config: Content of the file, which may be anything.

    Raises:
        UserError: The model is neither a GPT-NeoX nor a BERT that is supported; every reason is listed.
    """
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {} if isinstance(config, dict) else None
    if not isinstance(rope, dict):
        raise UserError("config.json is not an object whose rope_parameters are an object; fetch the folder again")
    return _bert(config) if config.get("model_type") == "bert" else _neox(config, rope)


def _neox(config: Mapping[str, Any], rope: Mapping[str, Any]) -> NeoXArchitecture:
    numbers = _numbers(config, rope)
    kind = rope.get("rope_type", rope.get("type", "default"))
    parallel = config.get("use_parallel_residual", True)
    faults = _unsupported(config, NEOX_FIXED)
    faults += [f"rope_type is {kind!r}; only 'default' is"] if kind != "default" else []
    faults += _mistyped(config, NEOX_INTEGERS)
    faults += [] if type(parallel) is bool else [f"use_parallel_residual is {parallel!r}, not true or false"]
    _refuse(faults + _not_positive(numbers), "a GPT-NeoX model such as Pythia")
    return NeoXArchitecture(
        **_integers(config, NEOX_INTEGERS),
        rotary_fraction=float(numbers["rotary_pct"]),
        rotary_base=float(numbers["rotary_emb_base"]),
        parallel_residual=parallel,
        norm_eps=float(numbers["layer_norm_eps"]),
    )


def _bert(config: Mapping[str, Any]) -> BertArchitecture:
    numbers = {"layer_norm_eps": config.get("layer_norm_eps", 1e-12)}
    faults = _unsupported(config, BERT_FIXED) + _mistyped(config, BERT_INTEGERS) + _not_positive(numbers)
    _refuse(faults, "a BERT model")
    return BertArchitecture(**_integers(config, BERT_INTEGERS), norm_eps=float(numbers["layer_norm_eps"]))


def _refuse(faults: list[str], supported: str) -> None:
    if faults:
        raise UserError(f"config.json describes a model that is not supported: {'; '.join(faults)}. Use {supported}")


def hugging_face_config(architecture: Architecture, head: Head) -> dict[str, Any]:
    """Return the config.json of a model, with the keys of transformers before and since version 5."""
    keys: dict[str, Callable[[Any], dict[str, Any]]] = {"gpt_neox": _neox_keys, "bert": _bert_keys}
    return {
        "architectures": [CLASSES[architecture.family, head]],
        "model_type": architecture.family,
        **keys[architecture.family](architecture),
        "torch_dtype": "float32",
        "dtype": "float32",
    }


def _neox_keys(a: NeoXArchitecture) -> dict[str, Any]:
    return {
        **_stored(a, NEOX_INTEGERS, NEOX_FIXED),
        "rotary_pct": a.rotary_fraction,
        "rotary_emb_base": a.rotary_base,
        "rope_parameters": {
            "rope_type": "default",
            "partial_rotary_factor": a.rotary_fraction,
            "rope_theta": a.rotary_base,
        },
        "use_parallel_residual": a.parallel_residual,
        "layer_norm_eps": a.norm_eps,
    }


def _bert_keys(a: BertArchitecture) -> dict[str, Any]:
    return {**_stored(a, BERT_INTEGERS, BERT_FIXED), "layer_norm_eps": a.norm_eps}


def _stored(a: Architecture, integers: Integers, fixed: Fixed) -> dict[str, Any]:
    numbers = {key: getattr(a, field) for field, (key, _) in integers.items()}
    return numbers | {key: value for key, (value, _) in fixed.items() if key != "model_type"}


def _integers(config: Mapping[str, Any], integers: Integers) -> dict[str, Any]:
    return {field: config.get(key, default) for field, (key, default) in integers.items()}


def _unsupported(config: Mapping[str, Any], fixed: Fixed) -> list[str]:
    found = {key: config.get(key, None if key == "model_type" else value) for key, (value, _) in fixed.items()}
    wrong = ((key, got) for key, got in found.items() if got != fixed[key][0])
    return [f"{key} is {got!r}, which is {fixed[key][1]}; only {fixed[key][0]!r} is" for key, got in wrong]


def _mistyped(config: Mapping[str, Any], integers: Integers) -> list[str]:
    values = {key: config.get(key, default) for key, default in integers.values()}
    bad = ((key, value) for key, value in values.items() if type(value) is not int or value < 1)
    return [f"{key} is {value!r}, not a whole number above 0" for key, value in bad]


def _numbers(config: Mapping[str, Any], rope: Mapping[str, Any]) -> dict[str, Any]:
    """Return the real numbers of a GPT-NeoX, by their older names."""
    return {
        "rotary_pct": rope.get("partial_rotary_factor", config.get("rotary_pct", 0.25)),
        "rotary_emb_base": rope.get("rope_theta", config.get("rotary_emb_base", 10_000)),
        "layer_norm_eps": config.get("layer_norm_eps", 1e-5),
    }


def _not_positive(numbers: Mapping[str, Any]) -> list[str]:
    maximum = {"rotary_pct": 1.0}  # a share
    return [
        f"{key} is {value!r}, not a number above 0 and up to {maximum.get(key, MAXIMUM):g}"
        for key, value in numbers.items()
        if type(value) not in (int, float) or not 0 < value <= maximum.get(key, MAXIMUM)
    ]

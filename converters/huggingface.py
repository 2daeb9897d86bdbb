"""A run as a folder that transformers loads: weights, config, tokenizer, a model card, and a manifest of their sums."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from converters import model_card
from converters.model_card import Padding
from jaxtempl import files, run
from jaxtempl.cases import Template
from jaxtempl.config import ConvertHuggingfaceConfig
from jaxtempl.errors import UserError
from jaxtempl.models import weights
from jaxtempl.run import Run

END_OF_TEXT, PADDING = "<|endoftext|>", "<|padding|>"


def main(config: ConvertHuggingfaceConfig) -> None:
    """Converts the run that `config` names; raises UserError where it cannot."""
    if not config.run:
        raise UserError("no run is named; pass --run=RUN, RUN@STEP, RUN@last or RUN@best")
    found, step = run.resolve(config.run)
    convert(found, step, config.out)


def convert(source: Run, step: int, out: Path, shard_bytes: int = weights.SHARD_BYTES) -> None:
    """Writes the folder, whole or not at all.

    An adapt run becomes a GPTNeoXForCausalLM, a finetune run a GPTNeoXForSequenceClassification.

    Args:
        source: the run.
        step: its checkpoint.
        out: does not exist yet.
        shard_bytes: greatest size of one file of weights; beyond it there are shards and an index.

    Raises:
        UserError: `out` exists, or the tokenizer has no end-of-text token.
    """
    end, padding = special_tokens(source.tokenizer.json)
    config = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": padding.id} | labels(source.templates)
    with files.atomic_folder(out) as folder:
        weights.write(folder, source.architecture, source.params(step), source.head, config, shard_bytes)
        (folder / weights.TOKENIZER).write_text(source.tokenizer.json, encoding="utf-8")
        _write_json(folder / "tokenizer_config.json", tokenizer_config(source, padding))
        (folder / "README.md").write_text(model_card.card(source, step, padding), encoding="utf-8")
        facts = {"run": source.folder.resolve().name, "step": step, "phase": source.phase, **run.provenance()}
        weights.write_manifest(folder, facts)


def labels(templates: Sequence[Template]) -> dict[str, Any]:
    """Slot and template id, both ways, as config.json has them."""
    if not templates:
        return {}
    return {
        "id2label": {str(template.slot): template.id for template in templates},
        "label2id": {template.id: template.slot for template in templates},
    }


def special_tokens(tokenizer_json: str) -> tuple[int, Padding]:
    """The id of end-of-text, and what rows are padded with: where there is no padding token, end-of-text.

    Transformers pools the right-most token that is not padding, so padding must be a token that text never yields.

    Raises:
        UserError: the tokenizer has no end-of-text token.
    """
    added = {token["content"]: token["id"] for token in json.loads(tokenizer_json)["added_tokens"]}
    if END_OF_TEXT not in added:
        raise UserError(
            f"the run's tokenizer has no {END_OF_TEXT}; one of GPT-NeoX is needed for a Hugging Face folder"
        )
    name = PADDING if PADDING in added else END_OF_TEXT
    return added[END_OF_TEXT], Padding(name, added[name])


def tokenizer_config(source: Run, padding: Padding) -> dict[str, Any]:
    """tokenizer_config.json: tokenizer.json as it is, no special id out of text, padding on the right."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "pad_token": padding.token,
        "padding_side": "right",
        "truncation_side": "left",  # the newest text is what matters
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": source.manifest["length"] if source.phase == "finetune" else source.architecture.positions,
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    """Plain JSON: these files are Hugging Face's, so no format number of ours goes in."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

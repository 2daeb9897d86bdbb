"""A run as a folder that transformers loads: weights, config, tokenizer, a model card, and a manifest of their sums."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from converters.huggingface import model_card, special_tokens
from converters.huggingface.special_tokens import SpecialTokens
from converters.verify import exportable
from jaxtempl import files
from jaxtempl.config.converting import ConvertHuggingfaceConfig
from jaxtempl.errors import UserError
from jaxtempl.huggingface import layout, save
from jaxtempl.runs import provenance, run
from jaxtempl.runs.run import Run
from jaxtempl.text.cases import Template


def main(config: ConvertHuggingfaceConfig) -> None:
    """Converts the run that `config` names; raises UserError where it cannot."""
    if not config.run:
        raise UserError("no run is named; pass --run=RUN, RUN@STEP, RUN@last or RUN@best")
    found, step = run.resolve(config.run)
    convert(found, step, config.out)


def convert(source: Run, step: int, out: Path, shard_bytes: int = save.SHARD_BYTES) -> None:
    """Writes the folder, whole or not at all.

    An adapt run becomes a GPTNeoXForCausalLM or a BertForMaskedLM, a finetune run their ForSequenceClassification.

    Args:
        source: the run.
        step: its checkpoint.
        out: does not exist yet.
        shard_bytes: greatest size of one file of weights; beyond it there are shards and an index.

    Raises:
        UserError: `out` exists, the run is an ablation, or the tokenizer lacks a special token.
    """
    exportable.check(source)
    special = special_tokens.read_special_tokens(source.tokenizer.json)
    config = special.in_config | labels(source.templates)
    with files.atomic_folder(out) as folder:
        save.write(folder, source.architecture, source.params(step), source.head, config, shard_bytes)
        (folder / layout.TOKENIZER).write_text(source.tokenizer.json, encoding="utf-8")
        _write_json(folder / "tokenizer_config.json", tokenizer_config(source, special))
        (folder / "README.md").write_text(model_card.render_card(source, step, special), encoding="utf-8")
        facts = {"run": source.folder.resolve().name, "step": step, "phase": source.phase, **provenance.provenance()}
        save.write_manifest(folder, facts)


def labels(templates: Sequence[Template]) -> dict[str, Any]:
    """Slot and template id, both ways, as config.json has them."""
    if not templates:
        return {}
    return {
        "id2label": {str(template.slot): template.id for template in templates},
        "label2id": {template.id: template.slot for template in templates},
    }


def tokenizer_config(source: Run, special: SpecialTokens) -> dict[str, Any]:
    """tokenizer_config.json: tokenizer.json as it is, padding on the right, no special id out of text.

    But for a masked language model's: who asks one what a text hides writes [MASK] into it.
    """
    asked = source.phase == "adapt" and "mask_token" in special.names
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **special.names,
        "padding_side": "right",
        "truncation_side": "left",  # the newest text is what matters
        "split_special_tokens": not asked,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": source.manifest["length"] if source.phase == "finetune" else source.architecture.positions,
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    """Plain JSON: these files are Hugging Face's, so no format number of ours goes in."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

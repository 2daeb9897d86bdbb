"""A run -> a folder that transformers loads: weights, config, tokenizer, model card, and a manifest of checksums."""

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
    """Convert the run that `config` names; raises UserError if it cannot be converted."""
    if not config.run:
        raise UserError("no run is named; pass --run=RUN, RUN@STEP, RUN@last or RUN@best")
    source, step = run.resolve(config.run)
    convert(source, step, config.out)


def convert(source: Run, step: int, out: Path, shard_bytes: int = save.SHARD_BYTES) -> None:
    """Write the folder atomically.

    An adapt run becomes a GPTNeoXForCausalLM or a BertForMaskedLM, a finetune run their ForSequenceClassification.

    Args:
        source: The run.
        step: Step of its checkpoint.
        out: Folder to write; it must not exist.
        shard_bytes: Maximum size of one file of weights; larger weights become shards with an index.

    Raises:
        UserError: `out` exists, the run is an ablation, or the tokenizer lacks a special token.
    """
    exportable.check(source)
    special = special_tokens.read_special_tokens(source.tokenizer.json)
    config = special.config_entries | labels(source.templates)
    with files.atomic_folder(out) as folder:
        save.write(folder, source.architecture, source.params(step), source.head, config, shard_bytes)
        (folder / layout.TOKENIZER).write_text(source.tokenizer.json, encoding="utf-8")
        _write_json(folder / "tokenizer_config.json", tokenizer_config(source, special))
        (folder / "README.md").write_text(model_card.render_card(source, step, special), encoding="utf-8")
        facts = {"run": source.folder.resolve().name, "step": step, "phase": source.phase, **provenance.provenance()}
        save.write_manifest(folder, facts)


def labels(templates: Sequence[Template]) -> dict[str, Any]:
    """Return the entries of config.json that map slots to template ids and back."""
    if not templates:
        return {}
    return {
        "id2label": {str(template.slot): template.id for template in templates},
        "label2id": {template.id: template.slot for template in templates},
    }


def tokenizer_config(source: Run, special: SpecialTokens) -> dict[str, Any]:
    """Return tokenizer_config.json: right padding, and no special token from text.

    A masked language model is the exception: its users write [MASK] into a text.
    """
    reads_special_tokens = source.phase == "adapt" and "mask_token" in special.names
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **special.names,
        "padding_side": "right",
        "truncation_side": "left",  # the newest text is what matters
        "split_special_tokens": not reads_special_tokens,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": source.manifest["length"] if source.phase == "finetune" else source.architecture.positions,
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    """Write plain JSON: Hugging Face defines these files, so they carry no format number of this project."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

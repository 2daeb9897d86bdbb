"""A run -> a folder that transformers loads: weights, config, tokenizer, model card, and a manifest of checksums."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxtyping import PyTree

from converters.huggingface import calibrated_head, model_card, special_tokens
from converters.huggingface.model_card import UNPUBLISHED, Publication
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
    convert(source, step, config.out, publication=Publication(config.license, config.language))


def convert(
    source: Run,
    step: int,
    out: Path,
    shard_bytes: int = save.SHARD_BYTES,
    publication: Publication = UNPUBLISHED,
) -> None:
    """Write the folder atomically.

    An adapt run becomes a GPTNeoXForCausalLM or a BertForMaskedLM. A finetune run becomes their
    ForSequenceClassification, with a class for each active template; `manifest.json` lists the slot of each class.

    Args:
        source: The run.
        step: Step of its checkpoint.
        out: Folder to write; it must not exist.
        shard_bytes: Maximum size of one file of weights; larger weights become shards with an index.
        publication: Licence and languages of the model card.

    Raises:
        UserError: `out` exists, the run is an ablation, all its templates are retired, or the tokenizer lacks a special
            token.
    """
    exportable.check_for_transformers(source)
    special = special_tokens.read_special_tokens(source.tokenizer.json)
    templates = calibrated_head.active_templates(source)
    with files.atomic_folder(out) as folder:
        config = special.config_entries | labels(templates)
        save.write(folder, source.architecture, _params(source, step, templates), source.head, config, shard_bytes)
        (folder / layout.TOKENIZER).write_text(source.tokenizer.json, encoding="utf-8")
        _write_json(folder / "tokenizer_config.json", tokenizer_config(source, special))
        card = model_card.render_card(source, step, special, publication)
        (folder / "README.md").write_text(card, encoding="utf-8")
        save.write_manifest(folder, _facts(source, step, templates))


def _params(source: Run, step: int, templates: Sequence[Template]) -> PyTree:
    params = source.params(step)
    return calibrated_head.calibrate(params, templates, source.temperature(step)) if templates else params


def _facts(source: Run, step: int, templates: Sequence[Template]) -> dict[str, Any]:
    facts = {"run": source.folder.resolve().name, "step": step, "phase": source.phase, **provenance.provenance()}
    if not templates:
        return facts
    return facts | {"temperature": source.temperature(step), "slots": [template.slot for template in templates]}


def labels(templates: Sequence[Template]) -> dict[str, Any]:
    """Return the entries of config.json that map classes to template ids and back."""
    if not templates:
        return {}
    return {
        "id2label": {str(number): template.id for number, template in enumerate(templates)},
        "label2id": {template.id: number for number, template in enumerate(templates)},
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

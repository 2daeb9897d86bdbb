"""A run as a folder that transformers loads: weights, config, tokenizer and a model card."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxtempl import files, run
from jaxtempl.cases import Template
from jaxtempl.config import ConvertConfig
from jaxtempl.errors import UserError
from jaxtempl.models import config_json, weights
from jaxtempl.models.neox import Architecture

END_OF_TEXT, PADDING = "<|endoftext|>", "<|padding|>"

CARD = """---
library_name: transformers
pipeline_tag: {pipeline}
---
# {title}

{layers} layers, hidden {hidden}, {heads} heads (GPT-NeoX), float32. {reads}

```python
from transformers import {kind}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")
model = {kind}.from_pretrained("THIS_FOLDER")
logits = model(**tokenizer([text], return_tensors="pt")).logits
```
"""

USES: dict[config_json.Head, dict[str, str]] = {
    "lm": {
        "title": "Language model adapted to support transcripts",
        "kind": "AutoModelForCausalLM",
        "pipeline": "text-generation",
        "reads": "It reads transcripts, one message a line, each as `<CUSTOMER>: text`, `<SYSTEM>: text` or "
        "`<ADVOCATE>: text`.",
    },
    "template": {
        "title": "Template classifier for support conversations",
        "kind": "AutoModelForSequenceClassification",
        "pipeline": "text-classification",
        "reads": "It reads the newest whole messages of a conversation that fit in its window, joined by one space, "
        "without roles, and scores the {count} templates that `config.json` names.",
    },
}


def main(config: ConvertConfig) -> None:
    """Converts the run that `config` names; raises UserError where it cannot."""
    if not config.run:
        raise UserError("no run is named; pass --run=RUN, RUN@STEP, RUN@last or RUN@best")
    found, step = run.resolve(config.run)
    head: config_json.Head = "template" if found.phase == "finetune" else "lm"
    convert(found.params(step), found.architecture, head, found.templates, found.tokenizer.json, config.out)


def convert(
    params: Mapping[str, Any],
    architecture: Architecture,
    head: config_json.Head,
    templates: Sequence[Template],
    tokenizer_json: str,
    out: Path,
) -> None:
    """Writes the folder, whole or not at all.

    Args:
        params: the model's parameter tree.
        architecture: of `params`.
        head: `lm` makes a GPTNeoXForCausalLM, `template` a GPTNeoXForSequenceClassification.
        templates: the classes by slot; empty for `lm`.
        tokenizer_json: text of the run's tokenizer.json.
        out: does not exist yet.

    Raises:
        UserError: `out` exists, or the tokenizer has no end-of-text token.
    """
    ids = special_ids(tokenizer_json)
    config = {"bos_token_id": ids[END_OF_TEXT], "eos_token_id": ids[END_OF_TEXT], "pad_token_id": ids[PADDING]}
    with files.atomic_folder(out) as folder:
        weights.write(folder, architecture, params, head, config | labels(templates))
        (folder / "tokenizer.json").write_text(tokenizer_json)
        _write_json(folder / "tokenizer_config.json", tokenizer_config(tokenizer_json, architecture))
        (folder / "README.md").write_text(card(architecture, head, len(templates)))


def labels(templates: Sequence[Template]) -> dict[str, Any]:
    """Slot and template id, both ways, as config.json has them."""
    if not templates:
        return {}
    return {
        "id2label": {str(template.slot): template.id for template in templates},
        "label2id": {template.id: template.slot for template in templates},
    }


def special_ids(tokenizer_json: str) -> dict[str, int]:
    """Ids of end-of-text and padding; a tokenizer without padding pads with end-of-text, which no context holds.

    Transformers pools the right-most token that is not padding, so the padding id must be one that text never yields.

    Raises:
        UserError: the tokenizer has no end-of-text token.
    """
    added = {token["content"]: token["id"] for token in json.loads(tokenizer_json)["added_tokens"]}
    if END_OF_TEXT not in added:
        raise UserError(
            f"the run's tokenizer has no {END_OF_TEXT}; one of GPT-NeoX is needed for a Hugging Face folder"
        )
    return {END_OF_TEXT: added[END_OF_TEXT], PADDING: added.get(PADDING, added[END_OF_TEXT])}


def tokenizer_config(tokenizer_json: str, architecture: Architecture) -> dict[str, Any]:
    """tokenizer_config.json: tokenizer.json as it is, no special id out of text, padding on the right."""
    ids = special_ids(tokenizer_json)
    padding = PADDING if ids[PADDING] != ids[END_OF_TEXT] else END_OF_TEXT
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "pad_token": padding,
        "padding_side": "right",
        "truncation_side": "left",  # the newest text is what matters
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": architecture.positions,
    }


def card(architecture: Architecture, head: config_json.Head, count: int) -> str:
    """README.md: what the model reads and how to load it."""
    use = USES[head] | {"reads": USES[head]["reads"].format(count=count)}
    return CARD.format(layers=architecture.layers, hidden=architecture.hidden, heads=architecture.heads, **use)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    """Plain JSON: these files are Hugging Face's, so no format number of ours goes in."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")

"""The special tokens of a run's tokenizer by the names that transformers has for their roles."""

import json
from typing import NamedTuple

from jaxtempl.errors import UserError

END_OF_TEXT, PADDING = "<|endoftext|>", "<|padding|>"
BERT = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "mask_token": "[MASK]", "unk_token": "[UNK]"}
CONFIG_ROLES = ("bos_token", "eos_token", "pad_token")  # those whose ids config.json has


class SpecialTokens(NamedTuple):
    """Special tokens.

    Attributes:
        names: of the tokens, by role, as tokenizer_config.json has them.
        ids: of the same.
    """

    names: dict[str, str]
    ids: dict[str, int]

    @property
    def in_config(self) -> dict[str, int]:
        """The ids that config.json has."""
        return {f"{role}_id": self.ids[role] for role in CONFIG_ROLES if role in self.ids}


def read_special_tokens(tokenizer_json: str) -> SpecialTokens:
    """The special tokens of a tokenizer of GPT-NeoX or BERT.

    A GPT-NeoX without a padding token pads with end-of-text: transformers pools the right-most token that is not
    padding, so padding must be a token that text never yields.

    Raises:
        UserError: the tokenizer lacks one of its family's.
    """
    added = {token["content"]: token["id"] for token in json.loads(tokenizer_json)["added_tokens"]}
    padding = PADDING if PADDING in added else END_OF_TEXT
    neox = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "pad_token": padding}
    names = BERT if BERT["cls_token"] in added else neox
    missing = sorted(set(names.values()) - set(added))
    if missing:
        raise UserError(
            f"the run's tokenizer has no {', '.join(missing)}; one of GPT-NeoX ({END_OF_TEXT}) or of BERT "
            f"({', '.join(BERT.values())}) is needed for a Hugging Face folder"
        )
    return SpecialTokens(names, {role: added[name] for role, name in names.items()})

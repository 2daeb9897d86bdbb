"""The special tokens of a run's tokenizer, by transformers' names of their roles."""

import json
from typing import NamedTuple

from jaxtempl.errors import UserError

END_OF_TEXT, PADDING = "<|endoftext|>", "<|padding|>"
BERT = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "mask_token": "[MASK]", "unk_token": "[UNK]"}
CONFIG_ROLES = ("bos_token", "eos_token", "pad_token")  # roles whose ids are in config.json


class SpecialTokens(NamedTuple):
    """The special tokens of a tokenizer.

    Attributes:
        names: Tokens by role, as in tokenizer_config.json.
        ids: Token ids by role.
    """

    names: dict[str, str]
    ids: dict[str, int]

    @property
    def config_entries(self) -> dict[str, int]:
        """The entries of config.json."""
        return {f"{role}_id": self.ids[role] for role in CONFIG_ROLES if role in self.ids}


def read_special_tokens(tokenizer_json: str) -> SpecialTokens:
    """Read the special tokens of a GPT-NeoX or BERT tokenizer.

    A GPT-NeoX tokenizer without a padding token pads with end-of-text: transformers pools the right-most token that is
    not padding, so padding must be a token that text never yields.

    Raises:
        UserError: The tokenizer lacks a special token of its family.
    """
    added = {token["content"]: token["id"] for token in json.loads(tokenizer_json)["added_tokens"]}
    padding = PADDING if PADDING in added else END_OF_TEXT
    neox = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "pad_token": padding}
    names = BERT if BERT["cls_token"] in added else neox
    missing = sorted(set(names.values()) - set(added))
    if missing:
        raise UserError(
            f"the run's tokenizer has no {', '.join(missing)}; a Hugging Face folder needs those of GPT-NeoX "
            f"({END_OF_TEXT}) or of BERT ({', '.join(BERT.values())})"
        )
    return SpecialTokens(names, {role: added[name] for role, name in names.items()})

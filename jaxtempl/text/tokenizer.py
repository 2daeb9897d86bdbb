"""A tokenizer.json: batch encoding, its end-of-text id, and no special id out of text.

A customer may type `<|endoftext|>`. With `encode_special_tokens` on, those characters are encoded as text;
the end-of-text id enters a sequence only where this package puts it.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer as _Tokenizer

from jaxtempl import files
from jaxtempl.errors import UserError

END_OF_TEXT = ("<|endoftext|>", "[SEP]")  # Pythia's and BERT's name for it
BEGIN, MASK = "[CLS]", "[MASK]"


class Tokenizer:
    """Text to ids of one tokenizer.json.

    Attributes:
        json: the file's own text, kept so that a run can carry it unchanged.
        sha256: hex digest of what it does, however its file is written; names the packed rows that belong to it.
        end_of_text: id put after each packed document.
        begin: ids that a model's sequence begins with: BERT's [CLS], nothing for GPT-NeoX.
        end: ids that it ends with: BERT's [SEP].
        mask: id that hides a token, where there is one: BERT's [MASK].
        special: ids that text never yields.
        vocabulary: number of ids, the added ones included.
    """

    def __init__(self, path: Path, json: str | None = None) -> None:
        """Raises UserError when `path` is missing, too large, or no tokenizer.json with an end-of-text token.

        Args:
            path: The file.
            json: Text of a tokenizer.json that was built from the file, where the file itself is none.
        """
        try:
            files.refuse_large(path)
            self.json = path.read_text(encoding="utf-8") if json is None else json
            self._tokenizer = _Tokenizer.from_str(self.json)
        except FileNotFoundError:
            raise UserError(f"{path} does not exist; name a tokenizer.json") from None
        except UserError:
            raise
        except Exception as error:  # the library raises bare Exception for a malformed file
            raise UserError(f"{path} is not a tokenizer.json: {error}") from None
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.sha256 = hashlib.sha256(self._tokenizer.to_str().encode()).hexdigest()
        self.vocabulary = self._tokenizer.get_vocab_size()
        self.end_of_text = self._end_of_text(path)
        first = self._tokenizer.token_to_id(BEGIN)
        self.begin, self.end = ([], []) if first is None else ([first], [self.end_of_text])
        self.mask = self._tokenizer.token_to_id(MASK)
        added = self._tokenizer.get_added_tokens_decoder()
        self.special = frozenset(id for id, token in added.items() if token.special)

    def _end_of_text(self, path: Path) -> int:
        ids = (self._tokenizer.token_to_id(name) for name in END_OF_TEXT)
        found = next((i for i in ids if i is not None), None)
        if found is None:
            raise UserError(f"{path} has none of the end-of-text tokens {END_OF_TEXT}; a GPT-NeoX tokenizer has one")
        return found

    @property
    def overhead(self) -> int:
        """Special tokens of a sequence."""
        return len(self.begin) + len(self.end)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, no special ones among them; all cores are used."""
        encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encoded]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

"""A tokenizer.json: batch encoding that never yields a special id from text.

A customer may type `<|endoftext|>`. With `encode_special_tokens` on, those characters are encoded as text;
only this package adds special ids to a sequence.
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
    """Encodes text with one tokenizer.json.

    Attributes:
        json: content of the file, which runs and bundles copy unchanged.
        sha256: hex digest of the parsed tokenizer, whatever the file's formatting; names its packed rows.
        end_of_text: id put after each packed document.
        begin: ids before a model's sequence: BERT's [CLS], none for GPT-NeoX.
        end: ids after a model's sequence: BERT's [SEP], none for GPT-NeoX.
        mask: id of BERT's [MASK]; None for GPT-NeoX.
        special: ids that text never yields.
        vocabulary: largest id plus one, added tokens included: the rows that an embedding needs.
        text_ids: ids that text can yield, in order.
    """

    def __init__(self, path: Path, json: str | None = None) -> None:
        """Load a tokenizer; raises UserError if it is missing, too large, or has no end-of-text token.

        Args:
            path: The file.
            json: Text of a tokenizer.json that was built from the file, where the file itself is none.
        """
        try:
            files.refuse_large(path)
            self.json = files.read_text(path) if json is None else json
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
        ids = set(self._tokenizer.get_vocab().values())
        self.vocabulary = max(ids) + 1  # not their count: a vocabulary may have gaps
        self.end_of_text = self._end_of_text(path)
        first = self._tokenizer.token_to_id(BEGIN)
        self.begin, self.end = ([], []) if first is None else ([first], [self.end_of_text])
        self.mask = self._tokenizer.token_to_id(MASK)
        added = self._tokenizer.get_added_tokens_decoder()
        self.special = frozenset(id for id, token in added.items() if token.special)
        self.text_ids = sorted(ids - self.special)

    def _end_of_text(self, path: Path) -> int:
        ids = (self._tokenizer.token_to_id(name) for name in END_OF_TEXT)
        found = next((i for i in ids if i is not None), None)
        if found is None:
            raise UserError(f"{path} has none of the end-of-text tokens {END_OF_TEXT}; a GPT-NeoX tokenizer has one")
        return found

    def check_rows(self, rows: int, model: str) -> None:
        """Check that an embedding has a row for every id. A padded embedding has more rows.

        JAX reads the last row for an id beyond it, where ONNX Runtime fails: neither is the model that was meant.

        Args:
            rows: Rows of the embedding.
            model: Name of the model in the error.

        Raises:
            UserError: An id has no row.
        """
        if self.vocabulary > rows:
            raise UserError(
                f"{model} has a tokenizer of {self.vocabulary:,} ids and an embedding of {rows:,} rows; use the "
                "tokenizer of these weights, or add the missing rows with transformers' resize_token_embeddings"
            )

    @property
    def overhead(self) -> int:
        """Number of special tokens of a sequence."""
        return len(self.begin) + len(self.end)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, without special ids; all cores are used."""
        encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encoded]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

"""A tokenizer.json out of the vocab.txt of an older BERT, equal to the one that transformers builds."""

from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from jaxtempl.errors import UserError

UNKNOWN, BEGIN, END = "[UNK]", "[CLS]", "[SEP]"
SPECIAL = ("[PAD]", UNKNOWN, BEGIN, END, "[MASK]")


def wordpiece_json(words: str, options: Mapping[str, Any]) -> str:
    """Return the tokenizer.json of a WordPiece vocabulary.

    Args:
        words: Content of vocab.txt, one token a line; a token's id is its line.
        options: Content of tokenizer_config.json, of which `do_lower_case`, `strip_accents` and
            `tokenize_chinese_chars` are read. Absent ones take transformers' defaults.

    Raises:
        UserError: A special token of BERT is missing.
    """
    lines = words.removesuffix("\n").split("\n")
    vocabulary = {token: number for number, token in enumerate(lines)}
    missing = [token for token in (UNKNOWN, BEGIN, END) if token not in vocabulary]
    if missing:
        raise UserError(f"vocab.txt has no {', '.join(missing)}; name the vocab.txt of a BERT")
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=UNKNOWN, max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=options.get("tokenize_chinese_chars", True),
        strip_accents=options.get("strip_accents"),
        lowercase=options.get("do_lower_case", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN}:0 $A:0 {END}:0",
        pair=f"{BEGIN}:0 $A:0 {END}:0 $B:1 {END}:1",
        special_tokens=[(token, vocabulary[token]) for token in (BEGIN, END)],
    )
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL if token in vocabulary])
    return tokenizer.to_str()

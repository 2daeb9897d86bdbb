"""The corpora of nano: their shares, the tokenizers trained on them, the datasets, and their overlap with star."""

import gzip
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from bench import runs
from jaxtempl import files
from jaxtempl.text import formats
from jaxtempl.text.cases import Message

WORK = Path("runs/nano")  # relative to the project root
CACHE = WORK / "compiled"
LENGTH, ROWS = 512, 8  # tokens of a row, and rows of an update
STAR_VOCABULARY = 4096
OVERLAP_WORDS = 8  # words of an n-gram that a text hardly shares with an unrelated one


class Source(NamedTuple):
    """A corpus of the base.

    Attributes:
        path: File in the data folder, without `.jsonl.gz`.
        share: Share of the rows drawn.
        vocabulary_share: Share of the records that the tokenizer is trained on.
    """

    path: str
    share: float
    vocabulary_share: float


# 200 M tokens repeat no dialogue more than four times: sgd has 8.1 M, taskmaster4 1.2 M and multidogo 0.4 M.
SOURCES = {
    "books": Source("general/classic_books", 0.560, 0.15),
    "openstax": Source("general/openstax", 0.100, 0.5),
    "officedocs": Source("general/officedocs", 0.044, 1.0),
    "ubuntu_irc": Source("general/ubuntu_irc", 0.106, 0.5),
    "sgd": Source("sgd/train", 0.160, 0.5),
    "taskmaster4": Source("taskmaster4/train", 0.023, 1.0),
    "multidogo": Source("multidogo/train", 0.007, 1.0),
}


def tokenizer_path(size: int) -> Path:
    """Return the tokenizer.json of a number of entries."""
    return WORK / f"tokenizer-{size}.json"


def dataset(size: int, source: str) -> Path:
    """Return the dataset of a source, packed with the tokenizer of a number of entries."""
    return WORK / "data" / str(size) / source


def prepare(data: Path, vocabularies: set[int]) -> None:
    """Train the tokenizers, and write a dataset of each source with each of them, and of star."""
    for size in sorted(vocabularies):
        if not tokenizer_path(size).exists():
            train_tokenizer(data, size, tokenizer_path(size))
        for source, (path, *_) in SOURCES.items():
            kind = "documents" if path.startswith("general") else "train"
            _prepare(size, source, f"--{kind}={data}/{path}.jsonl.gz")
    star = [f"--{side}={data}/star/{part}" for side, part in (("train", "train"), ("test", "dev"))]
    _prepare(STAR_VOCABULARY, "star", *star, f"--templates={data}/star/templates.json")


def star() -> Path:
    """Return the dataset of star, whose packed rows no candidate reads."""
    return dataset(STAR_VOCABULARY, "star")


def _prepare(size: int, source: str, *flags: str) -> None:
    out = dataset(size, source)
    if not out.exists():
        name = f"--tokenizer={tokenizer_path(size)}"
        runs.command("prepare", *flags, name, f"--length={LENGTH}", f"--out={out}", cache=CACHE)


def train_tokenizer(data: Path, size: int, out: Path) -> None:
    """Train a byte-level BPE of `size` entries on a share of every source, tags of the roles included."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.post_processor = processors.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|endoftext|>", "<|padding|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_vocabulary_texts(data), trainer)
    with files.atomic_file(out) as temporary:
        tokenizer.save(str(temporary))


def _vocabulary_texts(data: Path) -> Iterator[str]:
    """Yield a seeded share of each source as `adapt` reads it."""
    generator = np.random.default_rng(0)
    for source in SOURCES.values():
        for text in _texts(data / f"{source.path}.jsonl.gz"):
            if generator.random() < source.vocabulary_share:
                yield text


def _texts(path: Path) -> Iterator[str]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield _text(json.loads(line))


def _text(record: dict[str, Any]) -> str:
    if "text" in record:
        return record["text"]
    return formats.document([Message(m["role"], m["text"], None) for m in record["messages"]])


def overlap(data: Path) -> dict[str, float]:
    """Return the share of star's distinct n-grams of OVERLAP_WORDS words that each source contains.

    All splits of star count. A message is one text, so no n-gram spans two messages.
    """
    wanted = {hash(gram) for part in ("train", "dev") for gram in _grams(_messages(data / f"star/{part}.jsonl.gz"))}
    return {
        name: len(wanted & {hash(gram) for gram in _grams(_texts(data / f"{source.path}.jsonl.gz"))}) / len(wanted)
        for name, source in SOURCES.items()
    }


def _messages(path: Path) -> Iterator[str]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield from (message["text"] for message in json.loads(line)["messages"])


def _grams(texts: Iterable[str]) -> Iterator[tuple[str, ...]]:
    for text in texts:
        words = re.findall(r"\w+", text.casefold())
        yield from zip(*(words[i:] for i in range(OVERLAP_WORDS)), strict=False)

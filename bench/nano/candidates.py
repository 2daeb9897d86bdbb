"""The shapes and vocabularies that are compared for nano, and their pre-training by `bin/adapt`."""

import shutil
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from bench import runs
from bench.nano import corpus
from bench.nano.corpus import CACHE, ROWS, SOURCES
from jaxtempl import files
from jaxtempl.specs.architecture import NeoXArchitecture


class Candidate(NamedTuple):
    """A shape and a vocabulary.

    Attributes:
        layers: Layers.
        hidden: Hidden size.
        heads: Heads.
        vocabulary: Entries of the tokenizer.
        learning_rate: Peak learning rate: 2e-3 at 128 dims, and in inverse proportion to the width elsewhere.
    """

    layers: int
    hidden: int
    heads: int
    vocabulary: int
    learning_rate: float

    @property
    def architecture(self) -> NeoXArchitecture:
        """The candidate as an architecture."""
        return NeoXArchitecture(
            layers=self.layers,
            hidden=self.hidden,
            heads=self.heads,
            feed_forward=4 * self.hidden,
            vocabulary=self.vocabulary,
        )


CANDIDATES = {
    "4x128-8192": Candidate(4, 128, 4, 8192, 2e-3),
    "4x128-4096": Candidate(4, 128, 4, 4096, 2e-3),
    "6x128-4096": Candidate(6, 128, 4, 4096, 2e-3),
    "4x192-4096": Candidate(4, 192, 6, 4096, 1.33e-3),
    "4x256-4096": Candidate(4, 256, 8, 4096, 1e-3),
}


def pretrain(candidate: Candidate, out: Path, steps: int, *flags: str, sources: Collection[str] = SOURCES) -> None:
    """Train a candidate from random weights on sources, by their shares; a repeated call resumes."""
    weights = out.parent / "base-random"
    if not weights.exists():
        _write_random(candidate, weights)
    mixture = ",".join(f"{corpus.dataset(candidate.vocabulary, name)}:{SOURCES[name].share}" for name in sources)
    runs.command(
        "adapt",
        f"--weights={weights}",
        f"--data={mixture}",
        f"--steps={steps}",
        f"--batch_size={ROWS}",
        f"--learning_rate={candidate.learning_rate}",
        "--schedule=wsd",
        "--weight_decay=0.1",
        *flags,
        f"--out={out}",
        cache=CACHE,
    )


def _write_random(candidate: Candidate, folder: Path) -> None:
    """Write random weights and the tokenizer as a Hugging Face folder."""
    import jax

    from jaxtempl.huggingface import save
    from jaxtempl.models import factory

    with files.atomic_folder(folder) as temporary:
        params = jax.device_get(factory.random_params(candidate.architecture, None, 0))
        save.write(temporary, candidate.architecture, params, "lm")
        shutil.copy(corpus.tokenizer_path(candidate.vocabulary), temporary / "tokenizer.json")

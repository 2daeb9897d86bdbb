"""Transcripts to a dataset: cases, labels and packed rows in one folder."""

from collections.abc import Sequence

from jaxtempl.config import PrepareConfig, parse
from jaxtempl.prepare.pipeline import run


def main(argv: Sequence[str]) -> None:
    """`bin/prepare`."""
    run(parse(PrepareConfig, argv))


__all__ = ["main", "run"]

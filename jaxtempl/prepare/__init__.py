"""Transcripts to a dataset: cases, labels and packed rows in one folder."""

from collections.abc import Sequence

from jaxtempl.config import PrepareConfig, dump, parse
from jaxtempl.prepare.pipeline import run


def main(argv: Sequence[str]) -> None:
    """`bin/prepare`."""
    asked = parse(PrepareConfig, argv)
    print(dump(asked), flush=True)
    run(asked)


__all__ = ["main", "run"]

"""`bin/prepare`: make a dataset of transcripts."""

from collections.abc import Sequence

from jaxtempl.config import parsing
from jaxtempl.config.data import PrepareConfig
from jaxtempl.prepare import pipeline


def main(argv: Sequence[str]) -> None:
    """Run `bin/prepare`."""
    config = parsing.parse(PrepareConfig, argv)
    if config.verbose:
        print(parsing.dump(config), flush=True)
    pipeline.run(config)

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
    if config.measure_redaction:
        from jaxtempl.prepare.measure import measure  # needs faker, which nothing else does

        measure.run(config)
    else:
        pipeline.run(config)

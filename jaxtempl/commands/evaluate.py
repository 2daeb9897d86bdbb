"""`bin/evaluate`: measure a run on a split of a dataset."""

from collections.abc import Sequence
from pathlib import Path

from jaxtempl.config import parsing
from jaxtempl.config.evaluation import EvaluateConfig
from jaxtempl.evaluation.evaluate import PAGE, evaluate
from jaxtempl.evaluation.table import format_table


def main(argv: Sequence[str]) -> None:
    """Run `bin/evaluate`."""
    config = parsing.parse(EvaluateConfig, argv)
    if config.verbose:
        print(parsing.dump(config), flush=True)
    report = evaluate(config)
    print(format_table(report))
    print(f"page: {Path(report['out']) / PAGE}")

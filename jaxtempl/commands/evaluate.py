"""`bin/evaluate`: a run on a split of a dataset."""

from collections.abc import Sequence
from pathlib import Path

from jaxtempl.config import parsing
from jaxtempl.config.evaluation import EvaluateConfig
from jaxtempl.evaluation.evaluate import PAGE, evaluate
from jaxtempl.evaluation.table import format_table


def main(argv: Sequence[str]) -> None:
    """Run `bin/evaluate`."""
    asked = parsing.parse(EvaluateConfig, argv)
    print(parsing.dump(asked), flush=True)
    report = evaluate(asked)
    print(format_table(report))
    print(f"page: {Path(report['out']) / PAGE}")

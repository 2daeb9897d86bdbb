"""Requests at given rates to a running server, and how long the answers took: the paper's Table 4. No JAX."""

from collections.abc import Sequence

from jaxtempl.config import LoadtestConfig, dump, parse
from jaxtempl.loadtest import report
from jaxtempl.loadtest.pipeline import PAGE, run


def main(argv: Sequence[str]) -> None:
    """`bin/loadtest`."""
    asked = parse(LoadtestConfig, argv)
    print(dump(asked), flush=True)
    print(report.table(run(asked)))
    print(f"page: {asked.out / PAGE}")


__all__ = ["main", "run"]

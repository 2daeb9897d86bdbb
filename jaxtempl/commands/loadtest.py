"""`bin/loadtest` measures the latencies of a running server at given rates."""

from collections.abc import Sequence

from jaxtempl.config import parsing
from jaxtempl.config.serving import LoadtestConfig
from jaxtempl.loadtest import report
from jaxtempl.loadtest.pipeline import PAGE, run


def main(argv: Sequence[str]) -> None:
    """Run `bin/loadtest`."""
    config = parsing.parse(LoadtestConfig, argv)
    print(parsing.dump(config), flush=True)
    print(report.format_table(run(config)))
    print(f"page: {config.out / PAGE}")

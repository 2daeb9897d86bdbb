"""`bin/adapt`: phase 1, or with `--plan` what it would need."""

from collections.abc import Sequence

from jaxtempl.config import parsing
from jaxtempl.config.training import AdaptConfig
from jaxtempl.parallel import process_group
from jaxtempl.planning import estimate
from jaxtempl.training import adapt, initialization
from jaxtempl.training.preemption import PreemptionHandler


def main(argv: Sequence[str]) -> None:
    """Run `bin/adapt`."""
    config = parsing.parse(AdaptConfig, argv, lambda given: initialization.config_layers("adapt", given))
    if config.plan:
        estimate.print_plan(config)
        return
    with PreemptionHandler() as terminator, process_group.join(config):
        adapt.adapt(config, terminator)

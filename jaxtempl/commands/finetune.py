"""`bin/finetune`: phase 2, or with `--plan` what it would need."""

from collections.abc import Sequence

from jaxtempl.config import parsing
from jaxtempl.config.training import FinetuneConfig
from jaxtempl.parallel import process_group
from jaxtempl.planning import estimate
from jaxtempl.training import finetune, initialization
from jaxtempl.training.preemption import PreemptionHandler


def main(argv: Sequence[str]) -> None:
    """Run `bin/finetune`."""
    config = parsing.parse(FinetuneConfig, argv, lambda given: initialization.config_layers("finetune", given))
    if config.plan:
        estimate.print_plan(config)
        return
    with PreemptionHandler() as terminator, process_group.join(config):
        finetune.finetune(config, terminator)

"""The scaling study: a matrix of adaptations and fine-tunings, run by the project's own commands. No JAX in here."""

import importlib
from collections.abc import Sequence

from jaxtempl.errors import UsageError

COMMANDS = {  # and the module that has its `main`
    "run": "runner",
    "report": "report",
    "advise": "advise",
    "align": "corpora",
    "filter": "filtering",
}


def main(argv: Sequence[str]) -> None:
    """`bin/scaling run|report|advise|align|filter`."""
    name = argv[0] if argv else ""
    if name not in COMMANDS:
        raise UsageError(f"bin/scaling {name or '(nothing)'}: name one of {', '.join(COMMANDS)}; each has a --help")
    importlib.import_module(f"jaxtempl.scaling.{COMMANDS[name]}").main(argv[1:])

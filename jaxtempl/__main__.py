"""`python -m jaxtempl COMMAND`; the scripts in `bin/` call this."""

import importlib
import sys
from collections.abc import Callable, Sequence

from jaxtempl import cli
from jaxtempl.errors import UsageError

COMMANDS = ("prepare", "adapt", "finetune", "evaluate", "suggest", "serve", "loadtest", "scaling", "demo")


def command(name: str) -> Callable[[Sequence[str]], None]:
    """The `main` of a command; its module, and what that needs, is imported only now.

    Raises:
        UsageError: no such command.
    """
    if name not in COMMANDS:
        raise UsageError(f"command {name!r} is unknown; allowed: {', '.join(COMMANDS)}")
    return importlib.import_module(f"jaxtempl.commands.{name}").main


def main() -> None:
    """Exits with the command's code."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    sys.exit(cli.run(lambda argv: command(name)(argv), sys.argv[2:]))


if __name__ == "__main__":
    main()

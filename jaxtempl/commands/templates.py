"""`bin/templates NAME`: compare lists of templates."""

from collections.abc import Callable, Sequence
from pathlib import Path

from jaxtempl import cli
from jaxtempl.config import parsing
from jaxtempl.config.lifecycle import TemplatesDiffConfig


def diff(argv: Sequence[str]) -> None:
    """Run `bin/templates diff`."""
    from jaxtempl.lifecycle import template_diff

    config = parsing.parse(TemplatesDiffConfig, argv)
    found = template_diff.compare(template_diff.read(config.old), template_diff.read(config.new))
    print(template_diff.table(found))
    if config.out:
        template_diff.write(found, Path(config.out))


COMMANDS: dict[str, tuple[Callable[[Sequence[str]], None], type]] = {"diff": (diff, TemplatesDiffConfig)}


def main(argv: Sequence[str]) -> None:
    """Run `bin/templates`."""
    name = cli.named("bin/templates", COMMANDS, argv)
    if name:
        COMMANDS[name][0](argv[1:])

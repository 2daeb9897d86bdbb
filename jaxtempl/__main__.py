"""Dispatch `python -m jaxtempl COMMAND` and `jaxtempl COMMAND`; the scripts in `bin/` call this."""

import os
import sys

import jaxtempl

# `python -m` puts the current folder first on the path, where its modules would replace installed ones.
if __name__ == "__main__" and not sys.flags.safe_path and jaxtempl.__path__ != [f"{sys.path[0]}{os.sep}jaxtempl"]:
    del sys.path[0]

import importlib
import importlib.metadata
from collections.abc import Callable, Mapping, Sequence

from jaxtempl import cli
from jaxtempl.errors import UsageError

COMMANDS: Mapping[str, str] = {
    "prepare": "transcripts to a dataset",
    "adapt": "phase 1: adapt a language model to the transcripts, or plan it",
    "finetune": "phase 2: fine-tune it into a template classifier",
    "evaluate": "measure a run on held-out cases",
    "suggest": "suggest the next templates of one case",
    "serve": "serve a bundle over HTTP",
    "loadtest": "send requests at given rates and measure latency",
    "scaling": "run, report and use scaling studies",
    "experiment": "simulate experiments whose truth is known",
    "templates": "compare lists of templates",
    "demo": "the whole path on embedded data",
}
PLUGINS = "jaxtempl.commands"  # the entry points under which other packages add commands
# Large pages, and memory kept between steps: training on a CPU is up to twice as fast. glibc reads these once, when the
# process starts. `bin/environment.sh` sets the same variables.
ENVIRONMENT: Mapping[str, str] = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_MMAP_MAX_": "0",
    "TOKENIZERS_PARALLELISM": "true",
}


def command(name: str) -> Callable[[Sequence[str]], None]:
    """Return the `main` of a command; its module and its dependencies are imported only here.

    Raises:
        UsageError: There is no such command.
    """
    if name in COMMANDS:
        return importlib.import_module(f"jaxtempl.commands.{name}").main
    for plugin in importlib.metadata.entry_points(group=PLUGINS, name=name):
        return plugin.load()
    allowed = [*COMMANDS, *sorted(importlib.metadata.entry_points(group=PLUGINS).names)]
    raise UsageError(f"command {name!r} is unknown; allowed: {', '.join(allowed)}; see jaxtempl --help")


def help_text() -> str:
    """Return one line a command."""
    plugins = {plugin.name: plugin.load().__doc__ for plugin in importlib.metadata.entry_points(group=PLUGINS)}
    lines = [f"  {name:10}{summary.splitlines()[0]}" for name, summary in {**COMMANDS, **plugins}.items()]
    return "\n".join(["usage: jaxtempl COMMAND --flags; each command has its own --help", *lines])


def run(argv: Sequence[str]) -> None:
    """Run the command that `argv` names, or print the help."""
    name = argv[0] if argv else ""
    if name in ("", "-h", "--help"):
        print(help_text())
        return
    command(name)(argv[1:])


def main() -> None:
    """Exit with the command's code."""
    sys.exit(cli.run(run, sys.argv[1:]))


def script() -> None:
    """Run the console script: restart Python with `ENVIRONMENT` where it is missing, then run `main`."""
    missing = {name: value for name, value in ENVIRONMENT.items() if name not in os.environ}
    if missing and sys.platform == "linux":
        os.execve(sys.executable, [sys.executable, "-P", "-m", "jaxtempl", *sys.argv[1:]], {**os.environ, **missing})
    main()


if __name__ == "__main__":
    main()

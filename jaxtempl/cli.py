"""From argv to an exit code: a user's mistake is one clear line, never a traceback."""

import logging
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType

from jaxtempl.errors import INTERRUPTED_EXIT_CODE, Interrupted, UsageError, UserError


def run(main: Callable[[Sequence[str]], None], argv: Sequence[str]) -> int:
    """Runs a command.

    Returns:
        0 when done, 1 for what the user can mend, 2 for a wrong flag, 75 when SIGTERM stopped a training that the
        same command goes on with, 130 when interrupted at the keyboard, 141 when nobody reads what it prints.
    """
    _quiet()
    try:
        main(argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return INTERRUPTED_EXIT_CODE
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the pipe's reader has gone: say no more
        return 141
    except OSError as error:  # a folder where a file should be, a full disk, no permission
        print(f"error: {error.filename or 'the system'}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command starts again, and a training goes on where it was", file=sys.stderr)
        return 130
    return 0


def named(program: str, commands: Mapping[str, tuple[str, type]], argv: Sequence[str]) -> str:
    """The name of a command that is several, from what follows it; empty where help was asked, and given.

    Args:
        program: `bin/NAME`.
        commands: module and config by name.
        argv: the name first.

    Raises:
        UsageError: none of them is named.
    """
    name = argv[0] if argv else ""
    if name in ("-h", "--help"):
        print(f"usage: {program} NAME --flags; each has its own --help")
        print("\n".join(f"  {name:12} {kind.__doc__}" for name, (_, kind) in commands.items()))
        return ""
    if name not in commands:
        raise UsageError(f"{program} {name or '(nothing)'}: name one of {', '.join(commands)}; each has a --help")
    return name


def _quiet() -> None:
    """Keeps libraries' chatter off the screen; errors of theirs still raise."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # a save that failed is told by our own line
    warnings.filterwarnings("ignore", module="tensorflow_datasets|orbax|grain")
    sys.excepthook = _told_otherwise


def _told_otherwise(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Drops what writers of a checkpoint that failed for want of room print one by one; the save itself raises."""
    if str(error) != "Event loop is closed":
        sys.__excepthook__(kind, error, trace)

"""Run a command's `main` and return its exit code; a user's mistake is one clear line, never a traceback."""

import logging
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType

from jaxtempl.errors import INTERRUPTED_EXIT_CODE, Interrupted, UsageError, UserError


def run(main: Callable[[Sequence[str]], None], argv: Sequence[str]) -> int:
    """Run a command.

    Returns:
        0 on success, 1 for an error that the user can fix, 2 for a wrong flag, 75 when SIGTERM stopped a training that
        the same command resumes, 130 when interrupted at the keyboard, 141 when standard output was closed.
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
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader closed the pipe
        return 141
    except OSError as error:  # a folder where a file should be, a full disk, no permission
        print(f"error: {error.filename or 'the system'}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; run the same command again, which resumes a training", file=sys.stderr)
        return 130
    return 0


def named(program: str, commands: Mapping[str, tuple[object, type]], argv: Sequence[str]) -> str:
    """Return the subcommand that the arguments name, or print the help and return an empty string.

    Args:
        program: Name of the command, as `bin/NAME`.
        commands: Implementation and dataclass of each subcommand.
        argv: Arguments, the subcommand first.

    Raises:
        UsageError: The first argument is not a subcommand.
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
    """Silence the log messages of libraries; their errors still raise."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # a failed save is reported by the error itself
    warnings.filterwarnings("ignore", module="tensorflow_datasets|orbax|grain")
    sys.excepthook = _print_uncaught


def _print_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an uncaught error, except those of a failed checkpoint's writers; the save itself raises."""
    if str(error) != "Event loop is closed":
        sys.__excepthook__(kind, error, trace)

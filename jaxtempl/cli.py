"""Run a command's `main` and return its exit code: an error is one line, and the traceback of a fault is in a file."""

import hashlib
import io
import logging
import os
import platform
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from jaxtempl import __version__, files
from jaxtempl.errors import INTERRUPTED_EXIT_CODE, Interrupted, UsageError, UserError, first_line

PACKAGES = ("jaxtempl", "converters")


def run(main: Callable[[Sequence[str]], None], argv: Sequence[str]) -> int:
    """Run a command.

    Returns:
        0 on success, 1 for an error that the user can fix or a fault of the program, 2 for a wrong flag, 75 when
        SIGTERM stopped a training that the same command resumes, 130 when interrupted at the keyboard, 141 when
        standard output was closed.
    """
    _quiet()
    _replace_unprintable()
    code = _exit_code(main, argv)
    _discard_unwritable()
    return code


def _exit_code(main: Callable[[Sequence[str]], None], argv: Sequence[str]) -> int:
    try:
        main(argv)
        print(end="", flush=True)  # Python would report a full disk or a closed pipe only at its exit
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return INTERRUPTED_EXIT_CODE
    except BrokenPipeError:
        return 141  # the reader closed the pipe
    except OSError as error:  # a folder where a file should be, a full disk, no permission
        print(f"error: {error.filename or 'the system'}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; run the same command again, which resumes a training", file=sys.stderr)
        return 130
    except Exception as error:
        print(f"error: {_explain(error) or _record_fault(error)}", file=sys.stderr)
        return 1
    return 0


def _explain(error: Exception) -> str:
    """Return the line for a library's error that the user can fix, or an empty text."""
    if isinstance(error, ModuleNotFoundError) and error.name and error.name.partition(".")[0] not in PACKAGES:
        return (
            f"the package {error.name.partition('.')[0]} is not installed in {sys.executable}; run bin/setup in a "
            "checkout, or install jaxtempl with pip"
        )
    return _explain_device() if isinstance(error, RuntimeError | AssertionError) else ""


def _explain_device() -> str:
    """Return a line if JAX has no device to compute on, which it reports by several types of error."""
    if not (os.environ.get("JAX_PLATFORMS") and "jax" in sys.modules):
        return ""
    try:
        sys.modules["jax"].devices()
    except (RuntimeError, AssertionError) as error:
        platforms = f"JAX_PLATFORMS={os.environ['JAX_PLATFORMS']}"
        reason = f" ({first_line(error)})" if str(error) else ""
        return f"JAX finds no device for {platforms}{reason}; unset it, or name a platform of this machine, such as cpu"
    return ""


def _record_fault(error: Exception) -> str:
    """Write the traceback of a fault to a file, or to standard error if that fails; return the line that names it.

    The name is a digest of the traceback: a fault that repeats fills no disk, and two processes overwrite no other one.
    """
    lines = "".join(traceback.format_exception(error))
    text = f"jaxtempl {__version__}, Python {platform.python_version()}, {platform.platform()}\n{lines}"
    what = f"a fault of the program ({type(error).__name__}: {first_line(error)})"
    try:
        path = _state_folder() / f"traceback-{hashlib.sha256(text.encode(errors='replace')).hexdigest()[:8]}.txt"
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # a message may quote what was read
        with files.atomic_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    except (OSError, RuntimeError, UserError) as failure:  # a full or read-only disk, no home
        sys.stderr.write(lines)
        return f"{what}; the traceback is above, because no file could be written ({failure}); report both"
    return f"{what}; the traceback is in {path}: report it with that file"


def _state_folder() -> Path:
    """Return the folder for what programs keep of a user (XDG Base Directory Specification).

    Raises:
        RuntimeError: The user has no home.
    """
    chosen = Path(os.environ.get("XDG_STATE_HOME", ""))
    folder = chosen if chosen.is_absolute() else Path.home() / ".local" / "state"
    if not folder.is_absolute():
        raise RuntimeError(f"the home {str(Path.home())!r} is not absolute")
    return folder / "jaxtempl"


def _replace_unprintable() -> None:
    """Print an escape, such as that of U+20AC, for a character that the locale's encoding lacks."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _discard_unwritable() -> None:
    """Discard output that cannot be written; at its exit, Python would report it and change the exit code."""
    try:
        print(end="", flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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

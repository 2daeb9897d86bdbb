"""Errors that the user can fix: each is one clear line, never a traceback.

A message states what happened, what was found, what is allowed and what to do.
"""


class UserError(Exception):
    """Bad input or a state of the world that the user can change; the command exits 1."""


class UsageError(UserError):
    """A flag or a config key that the command does not take; the command exits 2."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type if it has no message."""
    return next(iter(str(error).splitlines()), type(error).__name__)


INTERRUPTED_EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: the same command continues


class Interrupted(Exception):  # noqa: N818 - not an error: everything is saved
    """A training stopped on request; the message states where it resumes."""


class InterruptedEarly(Interrupted):
    """A training stopped on request before its first step, with nothing to save."""

"""Errors that are the user's to mend: each is one clear line, never a traceback.

A message says what is wrong, what was got, what is allowed and what to do.
"""


class UserError(Exception):
    """Bad input or a state of the world that the user can change; the command exits 1."""


class UsageError(UserError):
    """A flag or a config key that the command does not take; the command exits 2."""


def first_line(error: BaseException) -> str:
    """What an error says first; its kind where it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)


INTERRUPTED_EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: run the same command again


class Interrupted(Exception):  # noqa: N818 - no error: all is saved
    """A training stopped on request; the message says where it resumes."""


class InterruptedEarly(Interrupted):
    """A training stopped on request before its first step, with nothing to save."""

"""Locate the package, its commands, configurations and embedded assets, in a checkout and once installed."""

import os
import re
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
ROOT = PACKAGE.parent  # of a checkout
# A wheel carries the configurations inside the package; in a checkout they are at the top, where people edit them.
CONFIGS = next(folder for folder in (ROOT / "configs", PACKAGE / "configs") if folder.is_dir())
ASSETS = PACKAGE / "assets"
SCRIPTS = ROOT / "bin"  # of a checkout; an installed package has its console script instead


def program(command: str) -> list[str]:
    """Return the words that start a command: its script in a checkout, the package itself once installed."""
    script = SCRIPTS / command
    return [str(script)] if script.is_file() else [sys.executable, "-P", "-m", "jaxtempl", command]


def expand_home(text: str) -> str:
    """Return a path with `~/` as the home folder; a shell leaves it as it is after `=`."""
    return os.path.expanduser(text) if text.startswith("~/") else text  # noqa: PTH111 - a Path would change a URL


def split_list(text: str) -> list[str]:
    """Split `A,B,...` at its commas, except at those in the name of an existing path; A may be `DIR:WEIGHT`."""
    pieces, parts = text.split(","), list[str]()
    while pieces:
        joined = [",".join(pieces[:count]) for count in range(1, len(pieces) + 1)]
        existing = [i for i, name in enumerate(joined) if _exists(name) or _exists(re.sub(r":[0-9.]+$", "", name))]
        longest = max(existing, default=0)
        parts.append(joined[longest])
        pieces = pieces[longest + 1 :]
    return parts


def _exists(name: str) -> bool:
    return os.path.exists(expand_home(name))  # noqa: PTH110 - Path.exists raises an error for a name that is too long

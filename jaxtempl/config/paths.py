"""Locate the package, its commands, configurations and embedded assets, in a checkout and once installed."""

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

"""Check bearer tokens against those of a file."""

import hashlib
import hmac
from pathlib import Path

from jaxtempl.errors import UserError


class Tokens:
    """The tokens of a file, one a line; blank lines and lines that start with # are ignored."""

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            UserError: The file is missing, has no token, or has one that a header cannot carry.
        """
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except FileNotFoundError:
            raise UserError(f"{path} does not exist; write tokens to it, one a line") from None
        except UnicodeDecodeError:
            raise UserError(f"{path} is not UTF-8 text; write tokens to it, one a line") from None
        tokens = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
        if not tokens:
            raise UserError(f"{path} has no token; write at least one, one a line")
        if not all(token.isascii() and token.isprintable() and " " not in token for token in tokens):
            raise UserError(f"{path} has a token that a header cannot carry; use ASCII letters, digits and punctuation")
        self._digests = [hashlib.sha256(token.encode()).digest() for token in tokens]

    def admits(self, authorization: bytes) -> bool:
        """Return whether an `Authorization` header has one of the tokens; wrong and right ones take equally long."""
        scheme, _, token = authorization.partition(b" ")
        digest = hashlib.sha256(token.strip()).digest()
        matches = [hmac.compare_digest(digest, allowed) for allowed in self._digests]
        return any(matches) and scheme.lower() == b"bearer"

"""Bearer tokens of a file: who may ask."""

import hashlib
import hmac
from pathlib import Path

from jaxtempl.errors import UserError


class Tokens:
    """The tokens of a file, a line each; blank lines and those that begin with # are none."""

    def __init__(self, path: Path) -> None:
        """Raises UserError where the file is missing or holds no token, or one that no header can carry."""
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            raise UserError(f"{path} does not exist; write tokens to it, one a line") from None
        except UnicodeDecodeError:
            raise UserError(f"{path} is not text in UTF-8; write tokens to it, one a line") from None
        tokens = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not tokens:
            raise UserError(f"{path} holds no token; write one a line, or nobody could be let in")
        if not all(token.isascii() and token.isprintable() and " " not in token for token in tokens):
            raise UserError(f"{path} holds a token that no header can carry; letters, digits and signs are allowed")
        self._digests = [hashlib.sha256(token.encode()).digest() for token in tokens]

    def admits(self, authorization: bytes) -> bool:
        """Whether a header `Authorization` carries one of the tokens; a wrong one takes as long as a right one."""
        scheme, _, token = authorization.partition(b" ")
        digest = hashlib.sha256(token.strip()).digest()
        right = [hmac.compare_digest(digest, known) for known in self._digests]
        return any(right) and scheme.lower() == b"bearer"

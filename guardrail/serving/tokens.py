"""Bearer tokens of a file: one a line, ``#`` begins a comment.

::

    # team search
    8f0c3b2e5a174d6f9be1   # until March
    Zm9vYmFyYmF6cXV4Zm9v

A token is 16 to 512 characters of RFC 6750's ``b64token``. Only their digests are kept, and what a client sends is
compared with every one of them, so that the time says nothing about which was close.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Sequence
from pathlib import Path

from guardrail.errors import ConfigurationError

__all__ = ["Tokens", "read_tokens"]

_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]{16,512}={0,2}")


class Tokens:
    """Tokens that are accepted.

    Args:
        digests: SHA-256 of each.
    """

    __slots__ = ("_digests",)

    def __init__(self, digests: Sequence[bytes]) -> None:
        self._digests = tuple(digests)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokens) and set(self._digests) == set(other._digests)

    def __hash__(self) -> int:
        return hash(frozenset(self._digests))

    def __len__(self) -> int:
        return len(self._digests)

    def accepts(self, token: str) -> bool:
        """Whether a token is one of them."""
        digest = hashlib.sha256(token.encode(errors="replace")).digest()
        found = False
        for known in self._digests:
            found |= hmac.compare_digest(known, digest)
        return found


def read_tokens(path: Path) -> Tokens:
    """Reads a token file.

    Raises:
        ConfigurationError: If it cannot be read, holds no token, or a line is none; the line is named, never shown.
    """
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as exc:
        raise ConfigurationError(f"{path}: not UTF-8 at byte {exc.start}; a token is ASCII") from None
    except OSError as exc:
        raise ConfigurationError(f"cannot read the token file {path}: {exc.strerror}") from exc
    digests = []
    for number, line in enumerate(text.splitlines(), start=1):
        token = line.split("#", 1)[0].strip()
        if not token:
            continue
        if _TOKEN.fullmatch(token) is None:
            raise ConfigurationError(
                f"{path}:{number}: expected a token of 16 to 512 letters, digits and ._~+/-, got {len(token)} "
                "characters; make one with: openssl rand -hex 32"
            )
        digests.append(hashlib.sha256(token.encode()).digest())
    if not digests:
        raise ConfigurationError(f"{path}: no token in it; give one a line, made with: openssl rand -hex 32")
    return Tokens(digests)

"""Stands where a code scanner should be and none is installed: code is then unverified, and text is judged as ever."""

from __future__ import annotations

from collections.abc import Sequence

from guardrail.errors import MissingExtra, ScanError
from guardrail.verdict import CodeBlock, Finding

__all__ = ["MissingScanner"]


class MissingScanner:
    """Raises on every block what kept the real scanner from being built.

    Args:
        error: Names the ``pip install`` to run.
    """

    def __init__(self, error: MissingExtra) -> None:
        self._error = error

    async def scan(self, blocks: Sequence[CodeBlock]) -> list[list[Finding] | ScanError]:
        """Raises ``MissingExtra``."""
        raise self._error

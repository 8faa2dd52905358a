"""Results out, one JSON object a line.

Lines go to ``<output>.partial``, which takes the output's name when the scan is complete: a file under the final name
always holds every row, and an earlier one stays until there is a better. What is not a regular file, a pipe or
``/dev/stdout``, is written directly.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from guardrail.errors import ConfigurationError, GuardrailError
from guardrail.logscan.engine import ScanResult

__all__ = ["ResultWriter"]


class ResultWriter:
    """Writes results to a file; a context manager.

    Args:
        path: Where the results go.

    Attributes:
        writing_to: The file that lines are in until :meth:`commit`.

    Raises:
        ConfigurationError: If the file cannot be created.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(os.path.realpath(path))
        is_replaced = self._path.is_file() or not self._path.exists()
        self.writing_to = self._path.with_name(self._path.name + ".partial") if is_replaced else self._path
        try:
            self._file: BinaryIO = open(self.writing_to, "wb")  # noqa: SIM115  closed by __exit__
        except OSError as exc:
            raise ConfigurationError(f"cannot write {self.writing_to}: {exc.strerror}") from exc

    def write(self, result: ScanResult) -> None:
        """Writes one line.

        Raises:
            GuardrailError: If the file cannot take it, e.g. because the disk is full.
        """
        try:
            self._file.write(result.to_json_line())
        except OSError as exc:
            raise self._lost(exc) from exc

    def commit(self) -> None:
        """Gives the complete file its name.

        Raises:
            GuardrailError: If the file cannot be completed.
        """
        try:
            self._file.close()
            if self.writing_to != self._path:
                os.replace(self.writing_to, self._path)
        except OSError as exc:
            raise self._lost(exc) from exc

    def _lost(self, exc: OSError) -> GuardrailError:
        return GuardrailError(f"cannot write {self.writing_to}: {exc.strerror}; it holds the results up to here")

    def __enter__(self) -> ResultWriter:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._file.close()
        except OSError as close_exc:
            if exc is None:
                raise self._lost(close_exc) from close_exc

"""Results out: JSON Lines, gzipped where the name ends in ``.gz``, Parquet where it ends in ``.parquet``.

Lines go to ``<output>.partial``, which takes the output's name when the scan is complete: a file under the final name
always holds every row, and an earlier one stays until there is a better. What is not a regular file, a pipe or
``/dev/stdout``, is written directly.

:meth:`ResultWriter.sync` returns how many bytes hold whole lines and are on the disk; a writer that goes on is given
that number and cuts off what came later, of which a killed process may have left half. A gzip member ends at each such
point, so that what is kept is a gzip file. Parquet cannot be cut, so it is made of JSON Lines at the end.
"""

from __future__ import annotations

import fcntl
import os
import zlib
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from guardrail.errors import ConfigurationError, GuardrailError

__all__ = ["AppendFile", "ResultWriter"]

_GZIP_WBITS = 31  # zlib's window of 15 bits, and 16 for gzip's header and end
_GZIP_LEVEL = 6


class AppendFile:
    """A file that is written to its end and can be cut back to an earlier one; locked while it is open.

    Args:
        path: Is created where it is not there.
        keep_bytes: How much of what it holds is kept.

    Raises:
        ConfigurationError: If the file cannot be opened, is shorter than that, or another scan writes it.
    """

    def __init__(self, path: Path, keep_bytes: int = 0) -> None:
        self.path = path
        try:
            # Opened without cutting: what another scan is writing must not be lost before the lock says so.
            self._file: BinaryIO = open(path, "ab")  # noqa: SIM115  closed by close()
        except OSError as exc:
            raise ConfigurationError(f"cannot write {path}: {exc.strerror}") from exc
        self._can_cut = path.is_file()
        if self._can_cut:
            self._take(keep_bytes)

    def _take(self, keep_bytes: int) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise ConfigurationError(f"another scan is writing {self.path}") from None
        except OSError:
            pass  # a file system without locks
        size = os.fstat(self._file.fileno()).st_size
        if size < keep_bytes:
            self._file.close()
            raise ConfigurationError(
                f"{self.path} has {size} bytes, expected at least {keep_bytes}: it was changed since the scan stopped; "
                "--restart starts over"
            )
        self._file.truncate(keep_bytes)

    def write(self, data: bytes) -> None:
        """Appends.

        Raises:
            GuardrailError: If the file cannot take it, e.g. because the disk is full.
        """
        try:
            self._file.write(data)
        except OSError as exc:
            raise self.lost(exc) from exc

    def sync(self) -> int:
        """Brings everything to the disk, and returns how many bytes that are.

        Raises:
            GuardrailError: If that cannot be done.
        """
        try:
            self._file.flush()
            if not self._can_cut:
                return 0
            os.fsync(self._file.fileno())
            return os.fstat(self._file.fileno()).st_size
        except OSError as exc:
            raise self.lost(exc) from exc

    def close(self) -> None:
        """Closes the file.

        Raises:
            GuardrailError: If it does not take its last bytes.
        """
        try:
            self._file.close()
        except OSError as exc:
            raise self.lost(exc) from exc

    def lost(self, exc: OSError) -> GuardrailError:
        """Returns what to raise."""
        return GuardrailError(f"cannot write {self.path}: {exc.strerror}; it holds the results up to here")


class ResultWriter:
    """Writes results to a file; a context manager.

    Args:
        path: Where the results go.
        keep_bytes: How much is kept of what an earlier scan left in :attr:`writing_to`, from :meth:`sync`.

    Attributes:
        writing_to: The file that lines are in until :meth:`commit`.

    Raises:
        ConfigurationError: If the file cannot be created, or not be continued.
        MissingExtra: If pyarrow is needed, and not installed.
    """

    def __init__(self, path: str | Path, keep_bytes: int = 0) -> None:
        self._path = Path(os.path.realpath(path))
        is_replaced = self._path.is_file() or not self._path.exists()
        self.writing_to = partial_path(path) if is_replaced else self._path
        self._is_parquet = self._path.suffix == ".parquet"
        if self._is_parquet:
            from guardrail.logscan.parquet import require_pyarrow

            require_pyarrow()
        self._gzip = zlib.compressobj(_GZIP_LEVEL, wbits=_GZIP_WBITS) if self._path.suffix == ".gz" else None
        self._is_member_open = False
        self._file = AppendFile(self.writing_to, keep_bytes)

    def write(self, lines: bytes) -> None:
        """Writes whole lines.

        Raises:
            GuardrailError: If the file cannot take it, e.g. because the disk is full.
        """
        if self._gzip is not None:
            lines = self._gzip.compress(lines)
            self._is_member_open = True
        self._file.write(lines)

    def sync(self) -> int:
        """Brings everything to the disk, and returns how many bytes that are: what a later writer may keep.

        Raises:
            GuardrailError: If that cannot be done.
        """
        if self._gzip is not None and self._is_member_open:
            self._file.write(self._gzip.flush())
            self._gzip = zlib.compressobj(_GZIP_LEVEL, wbits=_GZIP_WBITS)
            self._is_member_open = False
        return self._file.sync()

    def commit(self) -> None:
        """Gives the complete file its name.

        Raises:
            GuardrailError: If the file cannot be completed.
        """
        self.sync()
        self._file.close()
        if self.writing_to == self._path:
            return
        try:
            if self._is_parquet:
                from guardrail.logscan.parquet import results_to_parquet

                made = self._path.with_name(self._path.name + ".making")
                results_to_parquet(self.writing_to, made)
                os.replace(made, self._path)
                self.writing_to.unlink()
            else:
                os.replace(self.writing_to, self._path)
        except OSError as exc:
            raise self._file.lost(exc) from exc

    def __enter__(self) -> ResultWriter:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._file.close()
        except GuardrailError:
            if exc is None:
                raise


def partial_path(output: str | Path) -> Path:
    """Returns the file that results are in until they are complete."""
    path = Path(os.path.realpath(output))
    return path.with_name(path.name + ".partial")

"""What a scan is to read: names on a command line into inputs, and inputs into streams of bytes.

A name is a file, a folder (its logs, at any depth), a pattern (``logs/**/*.jsonl``), ``-`` for standard input, or a URL
that fsspec knows (``s3://``, ``gs://``, ``https://``). gzip and zstd are known by their first bytes, whatever the name.
Folders and patterns are read in the order of their names, so that a scan that goes on finds the same rows.
"""

from __future__ import annotations

import glob
import io
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit

from guardrail.errors import GuardrailError, InvalidInput, MissingExtra

__all__ = ["SUFFIXES", "Input", "Stream", "find_inputs", "open_input"]

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")
"""Names of the logs in a folder, perhaps followed by one of ``COMPRESSED``."""

COMPRESSED = (".gz", ".zst", ".zstd")

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_BUFFER_BYTES = 256 * 1024
_GZIP_READ_BYTES = 32 * 1024  # the rest of it is copied at each piece that is decompressed
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
# What remote file systems call the mark that changes with the content, most telling first.
_STAMPS = ("ETag", "etag", "md5Hash", "content_md5", "mtime", "LastModified", "last_modified", "updated", "created")


@dataclass(frozen=True, slots=True)
class Input:
    """One log.

    Attributes:
        name: What results call it; of a URL without credentials and query.
        target: What is opened: a path, a URL, or ``-``.
        size: In bytes; None where it is not known before it is read.
        stamp: Changes when the content does: the time of the last change in nanoseconds, an ETag; None for a stream.
    """

    name: str
    target: str
    size: int | None = None
    stamp: str | None = None

    @property
    def can_be_read_again(self) -> bool:
        """Whether a second reading gives the same bytes: not so for standard input and pipes."""
        return self.stamp is not None

    def to_dict(self) -> dict[str, Any]:
        """Returns what the manifest says of it."""
        return {"name": self.name, "size": self.size, "stamp": self.stamp}


@dataclass(frozen=True, slots=True)
class Stream:
    """An input that is open.

    Attributes:
        file: Its bytes, decompressed.
        is_plain: Whether ``file`` is the input itself, not decompressed, and can seek.
        position: Bytes of the input that were read so far, compressed as they are; 0 where nobody knows.
        head: The input's first bytes, at most four.
    """

    file: io.BufferedReader
    is_plain: bool
    position: Callable[[], int]
    head: bytes


def find_inputs(names: Sequence[str]) -> list[Input]:
    """Finds what names stand for, in their order.

    Raises:
        InvalidInput: If one stands for nothing, cannot be read, or the same input is named twice.
        MissingExtra: If a URL needs a package that is not installed.
    """
    found: dict[str, Input] = {}
    for name in names:
        for one in _find(name):
            key = one.target if _is_stream(one.target) else os.path.realpath(one.target)
            if key in found:
                raise InvalidInput(f"{one.name} is named twice; its rows would count twice")
            found[key] = one
    return list(found.values())


@contextmanager
def open_input(source: Input) -> Iterator[Stream]:
    """Opens an input.

    Raises:
        OSError: If it cannot be opened.
        MissingExtra: If it is zstd, and pyarrow is not installed.
    """
    if source.target == "-":
        yield _stream(sys.stdin.buffer)
    elif _URL.match(source.target):
        with _remote_errors(source.name), _open_url(source.target) as file:
            yield _stream(file)
    else:
        with open(source.target, "rb", buffering=_BUFFER_BYTES) as file:
            yield _stream(file)


def _stream(raw: Any) -> Stream:
    """Looks at the first bytes, and puts what decompresses between."""
    # fsspec's files are no BufferedReader, nor is what tests put in standard input's place.
    file = raw if isinstance(raw, io.BufferedReader) else io.BufferedReader(raw, _BUFFER_BYTES)
    head = file.peek(4)[:4]
    can_seek = file.seekable()
    position = file.tell if can_seek else _unknown
    if head.startswith(_GZIP):
        inner: Any = _Gunzip(file)
    elif head == _ZSTD:
        inner = _zstd(file)
    else:
        return Stream(file, can_seek, position, head)
    return Stream(io.BufferedReader(inner, _BUFFER_BYTES), False, position, head)


def _unknown() -> int:
    return 0


class _Gunzip(io.RawIOBase):
    """Decompresses gzip, of several members too; ``gzip.GzipFile`` loses what is whole before a damaged place.

    Raises EOFError where the file ends too soon, and zlib.error where its bytes make no sense; both once everything
    before that was read.
    """

    def __init__(self, file: io.BufferedReader) -> None:
        self._file = file
        self._member = zlib.decompressobj(wbits=31)
        self._rest = b""
        self._is_inside = False

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fills a buffer; 0 at the end."""
        view = memoryview(buffer)
        while True:
            data, self._rest = self._rest or self._file.read1(_GZIP_READ_BYTES), b""
            is_end = not data
            if not self._is_inside:  # between members there may be zeros
                data = data.lstrip(b"\0")
                if not data:
                    if is_end:
                        return 0
                    continue
            self._is_inside = True
            made = self._member.decompress(data, len(view))  # without data: what it still holds
            self._rest = self._member.unconsumed_tail
            if self._member.eof:
                self._rest = self._member.unused_data
                self._member, self._is_inside = zlib.decompressobj(wbits=31), False
            elif is_end and not made:
                raise EOFError("the gzip member has no end")
            if made:
                view[: len(made)] = made
                return len(made)


def _zstd(file: BinaryIO) -> Any:
    try:
        import pyarrow as pa
    except ImportError as exc:
        raise MissingExtra("zstd needs pyarrow: pip install 'guardrail[batch]'") from exc
    return pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd")


def _is_stream(target: str) -> bool:
    return target == "-" or bool(_URL.match(target))


def _find(name: str) -> list[Input]:
    if name == "-":
        return [Input("-", "-")]
    if _URL.match(name):
        return _find_urls(name)
    path = Path(name)
    if path.is_dir():
        logs = [one for one in sorted(path.rglob("*")) if one.is_file() and _is_log(one.name)]
        if not logs:
            raise InvalidInput(f"there is no log in the folder {name}: expected names in {', '.join(SUFFIXES)}")
        return [_local(str(one)) for one in logs]
    if not path.exists() and glob.has_magic(name):
        matches = sorted(match for match in glob.glob(name, recursive=True) if not os.path.isdir(match))
        if not matches:
            raise InvalidInput(f"there is no file that {name} matches")
        return [_local(match) for match in matches]
    return [_local(name)]


def _local(name: str) -> Input:
    path = Path(name)
    if not path.exists():
        raise InvalidInput(f"there is no file {name}")
    if not os.access(path, os.R_OK):
        raise InvalidInput(f"{name} cannot be read: permission denied")
    if not path.is_file():  # a pipe
        return Input(name, name)
    status = path.stat()
    return Input(name, name, status.st_size, str(status.st_mtime_ns))


def _is_log(name: str) -> bool:
    lower = name.lower()
    for suffix in COMPRESSED:
        lower = lower.removesuffix(suffix)
    return lower.endswith(SUFFIXES) and not name.startswith(".")


def _find_urls(url: str) -> list[Input]:
    with _remote_errors(_public(url)):
        files, path = _file_system(url)
        if glob.has_magic(path):
            paths = [one for one in sorted(files.glob(path)) if not files.isdir(one)]
        elif files.isdir(path):
            paths = [one for one in sorted(files.find(path)) if _is_log(one.rsplit("/", 1)[-1])]
        else:
            return [_remote(files, path, url)]
        if not paths:
            raise InvalidInput(f"there is no log at {_public(url)}")
        return [_remote(files, one, files.unstrip_protocol(one)) for one in paths]


def _remote(files: Any, path: str, url: str) -> Input:
    info = files.info(path)
    stamp = next((str(info[key]) for key in _STAMPS if info.get(key)), None)
    return Input(_public(url), url, info.get("size"), stamp)


def _file_system(url: str) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs
    except ImportError as exc:
        raise MissingExtra("URLs need fsspec: pip install 'guardrail[batch]'") from exc
    files, path = url_to_fs(url)
    return files, cast("str", path)


def _open_url(url: str) -> Any:
    files, path = _file_system(url)
    return files.open(path, "rb")


@contextmanager
def _remote_errors(name: str) -> Iterator[None]:
    """Translates what file systems of other packages raise; the code that reads inside may raise its own."""
    try:
        yield
    except (GuardrailError, GeneratorExit):
        raise
    except FileNotFoundError as exc:
        raise InvalidInput(f"there is no file {name}") from exc
    except ImportError as exc:  # fsspec names the package: "Install s3fs to access S3"
        raise MissingExtra(f"{name} cannot be opened: {exc}") from exc
    except ValueError as exc:  # "Protocol not known: x"
        raise InvalidInput(f"{name} cannot be opened: no such kind of URL is known to fsspec") from exc
    except Exception as exc:
        raise GuardrailError(f"{name} cannot be read: {type(exc).__name__}") from exc


def _public(url: str) -> str:
    """A URL without what it may hold of secrets: user, password, a signature in its query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

"""Find the code in files and folders: paths -> ``SourceFile`` values to scan, and what is left out and why.

A path that is named is always looked at. In a folder these are left out, each with its reason, never silently:
folders of tools and of other people's code (``.git``, ``node_modules``, virtual environments, ``vendor``), what
``.gitignore`` names, symbolic links, and files that are binary, minified or larger than 1 MB.

The language comes from the name, then from the ``#!`` line; of a named file that has neither, from the text.
"""

from __future__ import annotations

import codecs
import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path, PurePath

from guardrail.extraction import LANGUAGES, canonical_language, extract_code_blocks, guess_language
from guardrail.shield.gitignore import Ignored
from guardrail.verdict import CodeBlock, Span

__all__ = ["MAX_BYTES", "STDIN", "NotScanned", "SourceFile", "Why", "find_files", "read_stdin", "whole_text"]

STDIN = "<stdin>"
"""The path of standard input."""

MAX_BYTES = 1_000_000
"""Larger files are left out: they are rarely written by hand, and one takes the time of hundreds."""

_TOOLS = frozenset(
    {
        *(".git", ".hg", ".svn", ".tox", ".nox", ".eggs", ".gradle", ".terraform", ".idea"),
        *("__pycache__", ".mypy_cache", ".pytest_cache", ".ruff_cache"),
    }
)
_OTHERS = frozenset(
    {"Pods", "bower_components", "jspm_packages", "node_modules", "site-packages", "third_party", "vendor"}
)
_LANGUAGE_OF_NAME = {
    "dockerfile": "dockerfile",
    "containerfile": "dockerfile",
    "makefile": "makefile",
    "gemfile": "ruby",
    "rakefile": "ruby",
    ".bashrc": "bash",
    ".bash_profile": "bash",
    ".profile": "bash",
}
# Suffixes that are no label of a code fence, which is what the table of `guardrail.extraction` holds.
_LANGUAGE_OF_SUFFIX = {
    "pyw": "python",
    "rake": "ruby",
    "gemspec": "ruby",
    "ino": "cpp",
    "ipp": "cpp",
    "inc": "php",
    "bats": "bash",
    "csx": "csharp",
    "tfvars": "hcl",
    "m": "objectivec",
    "mm": "objectivec",
}
_DATA = frozenset({"console", "css", "csv", "diff", "ini", "json", "text", "toml", "xml"})
_SHEBANG = re.compile(r"#!\s*\S*?(?:/env\s+(?:-\S+\s+)*|/)?([A-Za-z]+)[\d.]*(?:\s|$)")
_MINIFIED_NAME = re.compile(r"[.-]min\.\w+$")
# Hand-written code has lines of 30 to 40 characters on average.
_MINIFIED_LINE, _MINIFIED_LEAST = 400, 4_000


class Why(str, Enum):
    """Why something was not scanned."""

    FAILED = "failed"
    """It was to be scanned, and could not be to its end."""
    EXCLUDED = "excluded"
    """A folder of a tool, or of other people's code."""
    IGNORED = "ignored"
    """A ``.gitignore`` names it."""
    LINK = "link"
    """A symbolic link: what it leads to is scanned where it stands."""
    BINARY = "binary"
    MINIFIED = "minified"
    TOO_LARGE = "too large"
    NO_RULES = "no rules"
    """A program in a language without rules."""


@dataclass(frozen=True, slots=True)
class NotScanned:
    """A file or folder that was not scanned.

    Attributes:
        path: As the user would write it; a folder ends in ``/``.
        why: The kind of reason.
        detail: The reason, for people.
        line: Where in the file the code stands that was not scanned, from 1; 0 for all of it.
    """

    path: str
    why: Why
    detail: str
    line: int = 0


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file to scan.

    Attributes:
        path: As the user would write it.
        text: All of it; line ends as they are.
        blocks: The code in it, each with a language; offsets are code points of ``text``.
    """

    path: str
    text: str
    blocks: tuple[CodeBlock, ...]


def find_files(paths: Iterable[Path], languages: frozenset[str]) -> Iterator[SourceFile | NotScanned]:
    """Reads the code of files and of folders, each file once; a folder's files in order before its folders.

    Args:
        paths: Files and folders that exist.
        languages: The languages to scan; a program in another is given as not scanned.

    Yields:
        What to scan and what not. Files that are no programs (images, data, prose) are passed over.
    """
    seen: set[tuple[int, int]] = set()
    for path in paths:
        if path.is_dir():
            for found in _walk(path):
                if isinstance(found, NotScanned):
                    yield found
                else:
                    yield from _read_once(found, languages, seen, is_named=False)
        else:
            yield from _read_once(path, languages, seen, is_named=True)


def read_stdin(data: bytes, language: str | None, languages: frozenset[str]) -> list[SourceFile | NotScanned]:
    """Reads standard input: code of a language, or a message whose code blocks count.

    Args:
        data: All of it.
        language: Of the whole; ``"markdown"`` reads it as a message. None reads it as a message too, unless it holds
            no fence and is clearly code.
        languages: The languages to scan.
    """
    text = _decode(data)
    if language is None and "```" not in text and "~~~" not in text:
        language = guess_language(text)
    if language is not None and language != "markdown" and language not in languages:
        return [NotScanned(STDIN, Why.FAILED, f"there are no rules for {language}")]
    return list(_sources(STDIN, text, language or "markdown", languages))


def whole_text(text: str, language: str) -> CodeBlock:
    """Makes a block that is all of a text."""
    starts = [0, *(match.end() for match in re.finditer("\n", text))]
    return CodeBlock(text, language, Span(0, len(text)), tuple(starts))


# -- folders


def _walk(top: Path) -> Iterator[Path | NotScanned]:
    failures: list[OSError] = []
    ignored = Ignored(top)
    for folder, folders, names in os.walk(top, onerror=failures.append):
        here = Path(folder)
        ignored.enter(here)
        kept = []
        for name in sorted(folders):
            path = here / name
            if reason := _excluded(path):
                yield NotScanned(f"{path}/", Why.EXCLUDED, reason)
            elif path.is_symlink():
                yield NotScanned(f"{path}/", Why.LINK, "a symbolic link")
            elif ignored.matches(path, is_folder=True):
                yield NotScanned(f"{path}/", Why.IGNORED, "named by .gitignore")
            else:
                kept.append(name)
        folders[:] = kept
        for name in sorted(names):
            path = here / name
            if path.is_symlink():
                yield NotScanned(str(path), Why.LINK, "a symbolic link")
            elif ignored.matches(path, is_folder=False):
                yield NotScanned(str(path), Why.IGNORED, "named by .gitignore")
            else:
                yield path
    for failure in failures:
        yield NotScanned(f"{failure.filename}/", Why.FAILED, f"it cannot be read: {failure.strerror}")


def _excluded(path: Path) -> str:
    if path.name in _TOOLS:
        return "a folder of a tool"
    if path.name in _OTHERS:
        return "other people's code"
    if (path / "pyvenv.cfg").is_file() or (path / "conda-meta").is_dir():
        return "a virtual environment"
    return ""


# -- files


def _read_once(
    path: Path, languages: frozenset[str], seen: set[tuple[int, int]], *, is_named: bool
) -> Iterator[SourceFile | NotScanned]:
    try:
        state = path.stat()
        if (state.st_dev, state.st_ino) in seen:
            return
        seen.add((state.st_dev, state.st_ino))
        found = _read(path, state, languages, is_named=is_named)
    except OSError as exc:
        yield NotScanned(str(path), Why.FAILED, f"it cannot be read: {exc.strerror}")
        return
    if isinstance(found, NotScanned):
        # Who names a file wants it scanned: what keeps it from that is a failure.
        yield NotScanned(found.path, Why.FAILED if is_named else found.why, found.detail)
    elif found is not None:
        yield from _sources(str(path), *found, languages)


def _read(
    path: Path, state: os.stat_result, languages: frozenset[str], *, is_named: bool
) -> tuple[str, str] | NotScanned | None:
    """Returns the text and its language, or why it is not scanned; None for what is no program."""
    name = str(path)
    language = _language_of_name(path)
    if not is_named:
        if language in _DATA or not stat.S_ISREG(state.st_mode):
            return None
        if language is None and (path.suffix or not _has_shebang(path)):
            return None
    if state.st_size > MAX_BYTES:
        return NotScanned(name, Why.TOO_LARGE, _too_large(state.st_size))
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)  # a pipe has no size
    if len(data) > MAX_BYTES:
        return NotScanned(name, Why.TOO_LARGE, _too_large(len(data)))
    if _is_binary(data):
        return NotScanned(name, Why.BINARY, "it is binary")
    text = _decode(data)
    language = language or _language_of_shebang(text) or (guess_language(text) if is_named else None)
    if language is None:
        return NotScanned(name, Why.NO_RULES, "its language cannot be told") if is_named else None
    if not is_named and _is_minified(path, text):
        return NotScanned(name, Why.MINIFIED, "it is minified")
    if language != "markdown" and language not in languages:
        return NotScanned(name, Why.NO_RULES, f"there are no rules for {language}")
    return text, language


def _too_large(size: int) -> str:
    return f"it has {size} bytes or more; files up to {MAX_BYTES} are scanned"


def _sources(name: str, text: str, language: str, languages: frozenset[str]) -> Iterator[SourceFile | NotScanned]:
    if language != "markdown":
        yield SourceFile(name, text, (whole_text(text, language),) if text.strip() else ())
        return
    blocks = []
    for block in extract_code_blocks(text):
        of = block.language if block.language is not None else guess_language(block.code)
        if not block.code.strip() or of in _DATA:
            continue
        if of in languages:
            blocks.append(CodeBlock(block.code, of, block.span, block.line_starts))
        else:
            line = text.count("\n", 0, block.span.start) + 1
            label = "unlabelled code" if of is None else of if of in LANGUAGES else "the language of its label"
            yield NotScanned(name, Why.NO_RULES, f"there are no rules for {label}", line)
    yield SourceFile(name, text, tuple(blocks))


def _language_of_name(path: PurePath) -> str | None:
    name, suffix = path.name.lower(), path.suffix[1:].lower()
    language = _LANGUAGE_OF_NAME.get(name) or _LANGUAGE_OF_SUFFIX.get(suffix) or canonical_language(suffix)
    if language in LANGUAGES:
        return language
    return "dockerfile" if name.startswith(("dockerfile.", "containerfile.")) else None


def _has_shebang(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"#!"


def _language_of_shebang(text: str) -> str | None:
    match = _SHEBANG.match(text.split("\n", 1)[0][:200])
    language = canonical_language(match.group(1)) if match else None
    return language if language in LANGUAGES else None


def _is_binary(data: bytes) -> bool:
    return b"\0" in data[:8192] and not data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))


def _is_minified(path: Path, text: str) -> bool:
    if _MINIFIED_NAME.search(path.name.lower()):
        return True
    return len(text) >= _MINIFIED_LEAST and len(text) > _MINIFIED_LINE * (text.count("\n") + 1)


def _decode(data: bytes) -> str:
    """Source is UTF-8 or says otherwise by its mark; else each byte is taken for a character: places stay right."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", errors="replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")

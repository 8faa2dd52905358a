"""Files for semgrep to read: a code block -> the file as it stands, and variants that a parser may still understand.

A block from a chat is often not a whole program: a method without its class, a tail cut off, ``...`` for what was
left out. A *variant* keeps the text of the block, code point for code point, and adds around it
(:mod:`guardrail.shield.repairs`), or blanks characters one for one (``...`` lines, prompts, a template's tags); or the
file gets another dialect's suffix (TypeScript, C++). Behind each stands the canary of its language.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import overload

from guardrail.shield.languages import CANARY, DIALECTS, LANGUAGES
from guardrail.shield.repairs import Shape, is_in_doubt, make_shapes
from guardrail.shield.repairs.data import blank_tags
from guardrail.verdict import CodeBlock

__all__ = [
    "CANARY",
    "LANGUAGES",
    "MAX_TARGETS",
    "Readings",
    "Target",
    "encode",
    "likeliest_dialect",
    "make_targets",
    "plain_text",
]

MAX_TARGETS = 16
"""The plain file and its variants; one costs about 2 ms."""

_ADDED = 4  # most of what a repair may add, in sizes of the code: nothing that is pasted needs more
_ADDED_CHARS = 400
_OTHER_DIALECTS = 3  # of the shapes, likeliest first, that are also read as each further dialect


@dataclass(frozen=True)
class Target:
    """A file to scan: ``prefix`` + body + ``suffix``; body has as many code points as the code it stands for.

    Attributes:
        name: Of the file.
        language: A key of ``LANGUAGES``.
        prefix: Written before the body.
        body: The code, or as many code points with some of them blanked.
        suffix: Written after it, the canary last.
        proves: Whether the code is verified when the file is understood to its end; not so where code may have been
            read as a string.
    """

    name: str
    language: str
    prefix: str
    body: str
    suffix: str
    proves: bool = True

    @property
    def text(self) -> str:
        return self.prefix + self.body + self.suffix


def encode(text: str) -> bytes:
    return text.encode("utf-8", errors="replace")  # a lone surrogate becomes "?": one code point for one


class Readings(Sequence[Target]):
    """The file for a block, and after it the variants to try where that one is not understood.

    A variant is made when it is asked for: most blocks need none.

    Args:
        targets: At least one.
    """

    def __init__(self, targets: Iterator[Target]) -> None:
        self._made: list[Target] = []
        self._more = targets

    def __len__(self) -> int:
        self._made.extend(self._more)
        return len(self._made)

    @overload
    def __getitem__(self, place: int) -> Target: ...
    @overload
    def __getitem__(self, place: slice) -> list[Target]: ...
    def __getitem__(self, place: int | slice) -> Target | list[Target]:
        last = place.stop if isinstance(place, slice) else place + 1
        missing = None if last is None or last <= 0 else max(last - len(self._made), 0)
        self._made.extend(islice(self._more, missing))
        return self._made[place]


def make_targets(block: CodeBlock, stem: str) -> Readings:
    """Returns the file for a block and its variants; their names begin with ``stem``."""
    return Readings(_targets(block, stem))


def plain_text(block: CodeBlock) -> tuple[str, frozenset[str]]:
    """Returns the code as semgrep is to read it, and the languages, in semgrep's names, that its readings are in."""
    language = block.language or ""
    return _normalise(block.code, language), frozenset(LANGUAGES[dialect].rules for dialect in _dialects(language))


def likeliest_dialect(block: CodeBlock) -> str:
    """Returns the key of ``LANGUAGES`` that the plain file of a block has."""
    return _dialects(block.language or "")[0]


def _dialects(language: str) -> tuple[str, ...]:
    return DIALECTS.get(language, (language,))


def _targets(block: CodeBlock, stem: str) -> Iterator[Target]:
    language = block.language or ""
    body = _normalise(block.code, language)
    count = 0
    seen: set[tuple[str, str]] = set()
    for dialect, shape in islice(_readings(body, language), 4 * MAX_TARGETS):
        whole = shape.prefix + shape.body + shape.suffix
        is_long = len(whole) - len(body) > _ADDED * len(body) + _ADDED_CHARS
        if is_long or (dialect, whole) in seen:
            continue
        seen.add((dialect, whole))
        known = LANGUAGES[dialect]
        name = f"{stem}{count}{known.suffix}"
        yield Target(name, dialect, shape.prefix, shape.body, f"{shape.suffix}\n{known.canary}", shape.proves)
        count += 1
        if count == MAX_TARGETS:
            return


def _readings(code: str, language: str) -> Iterator[tuple[str, Shape]]:
    """Yields readings with their dialects: the plain one first, then those of all dialects that are likeliest."""
    plain = Shape("", code, "", proves=not is_in_doubt(code, language))
    if plain.proves and language != "php":  # most blocks need no other
        yield _dialects(language)[0], plain
    cleaned = _blank_elisions(code, language)
    shapes = [plain, Shape("", cleaned, "")]
    repaired = make_shapes(cleaned, language)
    if shapes[0].proves:
        shapes += repaired
    else:  # the text as it stands is proof only as the last of the repairs
        shapes[1:] = repaired
    if language == "php":
        shapes = [_php(shape) for shape in shapes]
        # Page mode proves nothing of bare code, which would all be page text: only for text that opens as a page.
        if code.lstrip().startswith("<"):
            shapes[1:1] = [Shape("", code, "\n<?php "), Shape("", code, "")]
    first, *others = _dialects(language)
    early = 1 + _OTHER_DIALECTS
    yield from ((first, shape) for shape in shapes[:early])
    for dialect in others:
        yield from ((dialect, shape) for shape in shapes[:early])
    yield from ((first, shape) for shape in shapes[early:])


_INVISIBLE = dict.fromkeys(map(ord, "\ufeff\u200b\u200c\u200d\u2060\u00ad\0"), " ")
_SEPARATORS = {0x2028: "\n", 0x2029: "\n"}


def _normalise(code: str, language: str) -> str:
    """Maps characters one for one to what the language's own reader makes of them, where semgrep's differs."""
    if code.isascii() and "\0" not in code:
        return code
    code = encode(code).decode().translate(_INVISIBLE)
    if language in ("javascript", "typescript", "tsx"):
        return code.translate(_SEPARATORS)  # both end a // comment
    if language == "python":  # identifiers are compared in NFKC: fullwidth "eval" is eval
        wide = {
            ord(c): n
            for c in set(code)
            if not c.isascii() and (n := unicodedata.normalize("NFKC", c)).isalnum() and n.isascii() and len(n) == 1
        }
        return code.translate(wide)
    return code


_DIRECTIVES = ("if", "elif", "else", "endif", "region", "endregion", "pragma", "nullable")
_FORMAT_MACROS = re.compile(r"\b(?:PRI|SCN)[diouxX](?:8|16|32|64|MAX|PTR)\b")  # inttypes.h, between string literals


def _blank_elisions(code: str, language: str) -> str:
    """Blanks what only stands between code: lines of dots, directives of C#, format macros of C, tags in YAML.

    In Python also the prompts of a session, whose output becomes comments.
    """
    if language == "yaml":
        code = blank_tags(code)
    elif language in ("c", "cpp"):
        code = _FORMAT_MACROS.sub(lambda found: " " * len(found[0]), code)
    lines = code.split("\n")
    is_session = language == "python" and code.lstrip().startswith(">>>")
    for i, line in enumerate(lines):
        text = line.strip()
        if is_session:
            if line.startswith((">>>", "...")):
                lines[i] = line[4:] + " " * min(4, len(line)) if len(line) > 3 else " " * len(line)
            elif line:
                lines[i] = "#" + line[1:]
        elif (text and not text.strip(".…") and language != "python") or (
            language == "csharp" and text.startswith("#") and text[1:].lstrip().startswith(_DIRECTIVES)
        ):
            lines[i] = " " * len(line)
    return "\n".join(lines)


def _php(shape: Shape) -> Shape:
    """Puts code without an opening tag into PHP mode; text that starts with ``<`` is a page and is left as it is."""
    text = shape.body
    has_tag = text.lstrip().startswith("<") and "<?" in text
    in_page = text.rfind("?>") > max(text.rfind("<?"), -1)
    prefix = ("" if has_tag else "<?php ") + shape.prefix
    return shape._replace(prefix=prefix, suffix=shape.suffix + ("\n<?php " if in_page else ""))

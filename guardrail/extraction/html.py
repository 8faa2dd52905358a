r"""Find code in HTML: ``<pre>``, and ``<code>`` of several lines -> blocks with the place of each line.

``<pre>`` opens a block where it starts its line, where its text has several lines, or where it holds a ``<code>``; an
inline ``<code>`` is like inline backticks and is none. One that is never closed counts to the end of the message where
it starts its line. What stands between backticks on one line opens nothing. The language is that of a class
(``language-x``, ``lang-x``, ``brush: x``) or of a ``lang`` attribute.

Entities are decoded and tags of text (``<span>``, ``<br>``) taken out, so after the first of them in a line columns are
too small by what was taken; a line's start is exact, and every place lies inside the block. Other angle brackets are
kept: models write ``List<String>`` in a ``<pre>`` as it is.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from dataclasses import dataclass
from html import unescape

from guardrail.language import LANGUAGES, canonical_language
from guardrail.verdict import CodeBlock, Span

__all__ = ["find_html_blocks"]

_OPEN = re.compile(r"<(?:[pP][rR][eE]|[cC][oO][dD][eE])[\s>]")
_TOKEN = re.compile(r"<(/?)([pP][rR][eE]|[cC][oO][dD][eE])((?:\s[^<>]{0,300})?)>|`+|[\r\n]")
_CLASS = re.compile(
    r"(?:language-|lang-|brush:\s{0,4}|highlight-source-|\blang=[\"']?|class=[\"']?)([\w+#.-]{1,40})", re.IGNORECASE
)
_TEXT_TAG = (
    r"(?:</?(?:span|code|b|i|u|em|strong|mark|font|kbd|samp|var|tt|div|p)(?:\s[^<>\r\n]{0,300})?/?>"
    r"|<a\s[^<>\r\n]{1,300}>|</a>)"
)
_TAGS = re.compile(_TEXT_TAG, re.IGNORECASE)
_LEADING_TAGS = re.compile(f"(?:{_TEXT_TAG})*", re.IGNORECASE)
_LINE_END = re.compile(r"\r\n|\r|\n|<br[ \t]{0,4}/?>(?:\r\n|\r|\n)?", re.IGNORECASE)
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_QUOTE_PREFIX = re.compile(r"[ \t]*(?:>[ \t]?)+")


@dataclass
class _Element:
    """An open ``<pre>`` or ``<code>``: where its text starts, and what is known of it."""

    name: str
    start: int
    is_at_line_start: bool
    prefix: str
    attributes: str
    has_code: bool = False


def find_html_blocks(text: str, fences: list[tuple[int, int]]) -> list[CodeBlock]:
    """Finds the code in HTML.

    Args:
        text: The message.
        fences: Places of fenced code, in order: nothing is looked for inside; where one stands inside a ``<pre>``, what
            is around it are blocks of their own.

    Returns:
        The blocks, in order.
    """
    if "<" not in text or _OPEN.search(text) is None:
        return []
    blocks: list[CodeBlock] = []
    element: _Element | None = None
    ticks = line_start = index = 0
    for token in _TOKEN.finditer(text):
        start = token.start()
        while index < len(fences) and fences[index][1] <= start:
            index += 1
        if index < len(fences) and fences[index][0] <= start:
            continue
        mark = text[start]
        if mark in "\r\n":
            line_start, ticks = token.end(), 0
        elif mark == "`":
            length = token.end() - start
            ticks = length if not ticks else 0 if ticks == length else ticks
        elif token[1]:
            if element is not None and token[2].lower() == element.name:
                _close(text, element, start, fences, blocks)
                element = None
        elif not ticks or element is not None:
            before = text[line_start : min(start, line_start + 100)]
            is_first = start - line_start < 100 and not before.strip(" \t>")
            name = token[2].lower()
            if element is None or (name == "pre" and is_first and not element.is_at_line_start):
                element = _Element(name, token.end(), is_first, before if ">" in before else "", token[3])
            elif name == "code" and element.name == "pre" and not element.has_code:
                element.has_code = True
                element.attributes += token[3]
    if element is not None and element.name == "pre" and element.is_at_line_start:
        _close(text, element, len(text), fences, blocks)
    return blocks


def _close(text: str, element: _Element, end: int, fences: list[tuple[int, int]], blocks: list[CodeBlock]) -> None:
    has_lines = _LINE_END.search(text, element.start, end) is not None
    if not has_lines and (element.name == "code" or not (element.is_at_line_start or element.has_code)):
        return
    language = _language(element.attributes)
    at = element.start
    first, last = (bisect_left(fences, (place, 0)) for place in (element.start, end))
    for fence_start, fence_end in [*fences[first:last], (end, end)]:
        block = _block(text, at, fence_start, language, bool(element.prefix))
        if block is not None:
            blocks.append(block)
        at = fence_end


def _language(attributes: str) -> str | None:
    for match in _CLASS.finditer(attributes):
        language = canonical_language(match[1])
        if language in LANGUAGES:
            return language
    return None


def _block(text: str, start: int, end: int, language: str | None, is_quoted: bool) -> CodeBlock | None:
    lines: list[str] = []
    starts: list[int] = []
    at = start
    while at <= end:
        found = _LINE_END.search(text, at, end)
        stop = found.start() if found else end
        quote = _QUOTE_PREFIX.match(text, at, stop) if is_quoted and lines else None
        first = quote.end() if quote else at
        tags = _LEADING_TAGS.match(text, first, stop)
        first = tags.end() if tags else first
        line = _ENTITY.sub(_decode, _TAGS.sub("", text[first:stop]))
        for part in line.split("\n"):
            lines.append(part)
            starts.append(first)
        if found is None:
            break
        at = found.end()
    while lines and not lines[0].strip():
        del lines[0], starts[0]
    while lines and not lines[-1].strip():
        del lines[-1], starts[-1]
    if not lines:
        return None
    return CodeBlock("\n".join(lines), language, Span(starts[0], max(end, starts[-1])), tuple(starts))


def _decode(entity: re.Match[str]) -> str:
    return unescape(entity[0]).replace("\r", "\n")

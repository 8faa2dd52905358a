r"""Find the code blocks of Markdown: text -> ``MarkdownBlock`` values with exact places.

The grammar is the block structure of CommonMark 0.31 (https://spec.commonmark.org/0.31.2/): fences of backticks and
tildes, indented code, both also inside block quotes and list items. The scanner goes through the lines once and keeps
a stack of open containers; the prefix that a container asks for (``> ``, or the width of a list marker) is taken off
each line of code.

A line ends at ``\n``, ``\r\n`` or a lone ``\r``; ``code`` joins its lines with ``\n`` and has none at its end. Offsets
are code points of the message. For each line of ``code``, ``text[line_starts[i]:]`` starts with that line, with one
exception: where taking off an indentation cuts a tab in two, the rest of the tab stands in ``code`` as spaces, and
``line_starts[i]`` is the tab's place.

A fence that is never closed counts to the end of its container: an answer cut short is still judged.

Known differences from CommonMark, each on the side of finding more code or of bounded work:

- A fence with a known language also opens behind words (``Sure: ```python``), as models write it; CommonMark sees text
  there, and opens a fence where this one closes. It needs no prefix of its container, and closes behind code, too.
- HTML blocks and link reference definitions are not recognised: a fence inside ``<div>`` is still a fence.
- Containers nested more than 32 deep are flattened.
- Entities and backslash escapes in an info string are left as they are; so is NUL in code.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from guardrail.language import LANGUAGES, canonical_language
from guardrail.verdict import CodeBlock, Span

__all__ = ["MarkdownBlock", "find_markdown_blocks"]

_MAX_DEPTH = 32  # bounds the work per line: a blank line is matched against every open list item
_LINE_END = re.compile(r"\r\n|\r|\n")
_BLANKS = re.compile(r"[ \t]*")
_FENCE = re.compile(r"`{3,}|~{3,}")
_FENCE_BEHIND_WORDS = re.compile(r"(`{3,})[ \t]*([A-Za-z][\w+#.-]{0,30})[ \t]*$")
# Indented code follows a line without text (blank, marks of containers, a rule, a heading), or a container's mark.
_INDENTED = re.compile(
    r"(?:\A|^[ \t>*+\-_=\d.)]*(?:#[^\r\n]*)?(?:\r\n|\r|\n))[ \t>*+\-\d.)]*(?:    |\t)"
    r"|^[ \t>*+\-\d.)]*[>*+\-.)](?:    |[ ]{0,3}\t)",
    re.MULTILINE,
)
_MARKER = re.compile(r"[-+*](?=[ \t]|$)|[0-9]{1,9}[.)](?=[ \t]|$)")
_HEADING = re.compile(r"#{1,6}(?=[ \t]|$)")
_SETEXT = re.compile(r"(?:=+|-+)[ \t]*$")


@dataclass(frozen=True, slots=True)
class MarkdownBlock:
    """A code block and its place with the fences.

    Attributes:
        block: The code.
        start: Where the line of the opening fence, or the first line of indented code, starts.
        end: Where the line of the closing fence, or the last line of code, ends.
        is_fenced: Whether it has a fence, or is indented.
    """

    block: CodeBlock
    start: int
    end: int
    is_fenced: bool


def find_markdown_blocks(text: str) -> list[MarkdownBlock]:
    """Finds the fenced and the indented code blocks of a message, in order.

    Args:
        text: The message, CommonMark or plain text; any size, in time linear in it.

    Returns:
        Each block, with its language where the info string gives one.
    """
    # A message without a mark of code is the common case and costs a few searches.
    if "```" not in text and "~~~" not in text and not _may_hold_indented(text):
        return []
    scanner = _Scanner(text)
    start = 0
    for match in _LINE_END.finditer(text):
        scanner.line(start, match.start())
        start = match.end()
    if start < len(text):
        scanner.line(start, len(text))
    scanner.close_leaf()
    return scanner.blocks


def _may_hold_indented(text: str) -> bool:
    if "    " not in text and "\t" not in text:
        return False
    # For an expression only a line feed starts a line.
    return "\r" in text or _INDENTED.search(text) is not None


@dataclass
class _Container:
    """An open block quote (width 0) or list item, with the columns its lines are indented by."""

    width: int
    is_empty: bool = False  # a list item whose marker line had nothing after the marker


@dataclass
class _Leaf:
    """The code block being read; ``fence`` is empty for an indented block, and loose if it opened behind words."""

    fence: str
    indent: int
    language: str | None
    start: int
    outer_start: int
    is_loose: bool = False
    lines: list[str] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    end: int = 0
    outer_end: int = 0


class _Scanner:
    """Reads lines in order; ``pos``, ``col`` and ``spare`` are the place in the current line.

    ``spare`` counts the columns of the tab at ``pos`` that are still to be read, where some were taken off.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.blocks: list[MarkdownBlock] = []
        self._containers: list[_Container] = []
        self._leaf: _Leaf | None = None
        self._in_paragraph = False
        self._start = self._pos = self._col = self._spare = self._end = 0

    def line(self, start: int, end: int) -> None:
        """Reads one line, without its line end."""
        self._start, self._pos, self._end, self._col, self._spare = start, start, end, 0, 0
        matched = self._match_containers()
        is_whole = matched == len(self._containers)
        if self._leaf is not None and self._leaf.fence and (is_whole or self._leaf.is_loose):
            self._fence_line(self._leaf)
            return
        if not is_whole and not (self._leaf is None and self._in_paragraph):
            self._close_containers(matched)
        # A line that opens no container and no block goes on with the paragraph, even without its prefix ("lazy").
        self._open_blocks(matched)

    def close_leaf(self) -> None:
        """Ends the block being read, if there is one, and keeps it."""
        leaf, self._leaf = self._leaf, None
        if leaf is None:
            return
        lines, starts = leaf.lines, leaf.starts
        if not leaf.fence:
            while lines and not lines[-1].strip(" \t"):
                lines.pop()
                starts.pop()
        first = starts[0] if starts else leaf.start
        last = starts[-1] if starts else leaf.start
        end = max(first, min(_line_end(self.text, last), leaf.end) if starts else first)
        block = CodeBlock("\n".join(lines), leaf.language, Span(first, end), tuple(starts) or (first,))
        outer_end = max(end, leaf.outer_end if leaf.fence else end)
        self.blocks.append(MarkdownBlock(block, leaf.outer_start, outer_end, bool(leaf.fence)))

    # -- containers

    def _match_containers(self) -> int:
        for index, container in enumerate(self._containers):
            blank = self._is_blank()
            if container.width == 0:
                if self._indent(3) > 3 or not self._take_quote():
                    return index
            elif blank and container.is_empty:
                return index  # an item may begin with one blank line, not two
            elif blank or self._indent(container.width) >= container.width:
                self._take_columns(container.width)
                container.is_empty = False
            else:
                return index
        return len(self._containers)

    def _close_containers(self, keep: int) -> None:
        if keep < len(self._containers):
            self.close_leaf()
            self._in_paragraph = False
            del self._containers[keep:]

    def _take_quote(self) -> bool:
        at = self._skip_blanks()
        if at >= self._end or self.text[at] != ">":
            return False
        self._take_columns(self._indent(3))
        self._pos += 1
        self._col += 1
        self._spare = 0
        if self._indent(1) >= 1:
            self._take_columns(1)
        return True

    def _open_blocks(self, matched: int) -> None:
        text = self.text
        is_lazy = matched < len(self._containers)
        while True:
            if self._is_blank():
                self._blank_line(is_lazy, matched)
                return
            indent = self._indent(4)
            if indent >= 4:
                if not self._in_paragraph:
                    self._indented_line()
                return
            at = self._skip_blanks()
            char = text[at]
            if char == ">":
                self._leave(is_lazy, matched)
                is_lazy = False
                self._take_quote()
                if len(self._containers) < _MAX_DEPTH:
                    self._containers.append(_Container(0))
                continue
            may_underline = char == "-" and self._in_paragraph and not is_lazy
            if self._is_rule(at, char) and not (may_underline and _is_setext(text, at, self._end)):
                self._leave(is_lazy, matched)
                return
            if len(self._containers) < _MAX_DEPTH and self._take_marker(at, indent, is_lazy, matched):
                is_lazy = False
                continue
            self._leaf_line(at, indent, is_lazy, matched)
            return

    def _take_marker(self, at: int, indent: int, is_lazy: bool, matched: int) -> bool:
        match = _MARKER.match(self.text, at, self._end)
        if match is None:
            return False
        is_empty = _BLANKS.match(self.text, match.end(), self._end).end() >= self._end  # type: ignore[union-attr]
        marker = match.group()
        # Only a list that starts at 1 and has text may interrupt a paragraph of its own container.
        interrupts = self._in_paragraph and not is_lazy
        if interrupts and (is_empty or (len(marker) > 1 and int(marker[:-1]) != 1)):
            return False
        self._leave(is_lazy, matched)
        self._take_columns(indent)
        self._pos += len(marker)
        self._col += len(marker)
        self._spare = 0
        after = self._indent(5)
        width = 1 if is_empty or after >= 5 else after
        if not is_empty:
            self._take_columns(width)
        else:
            self._pos = self._end
        self._containers.append(_Container(indent + len(marker) + width, is_empty))
        return True

    def _leave(self, is_lazy: bool, matched: int) -> None:
        """Ends the paragraph or indented block before a new block opens."""
        if is_lazy:
            self._close_containers(matched)
        self.close_leaf()
        self._in_paragraph = False

    # -- leaves

    def _blank_line(self, is_lazy: bool, matched: int) -> None:
        if is_lazy:
            self._close_containers(matched)
        self._in_paragraph = False
        if self._leaf is not None:
            self._append(self._leaf, 4)

    def _indented_line(self) -> None:
        if self._leaf is None:
            self._leaf = _Leaf("", 4, None, self._pos, self._start)
        self._append(self._leaf, 4)

    def _leaf_line(self, at: int, indent: int, is_lazy: bool, matched: int) -> None:
        text, end = self.text, self._end
        match = _FENCE.match(text, at, end)
        if match is not None and not (match.group()[0] == "`" and text.find("`", match.end(), end) >= 0):
            self._leave(is_lazy, matched)
            info = canonical_language(text[match.end() : min(end, match.end() + 400)])
            self._open_fence(match.group(), indent, info)
            return
        if (behind := self._fence_behind_words(at)) is not None:
            self._leave(is_lazy, matched)
            fence, language = behind
            self._open_fence(fence, indent, language, is_loose=True)
            return
        if _HEADING.match(text, at, end):
            self._leave(is_lazy, matched)
            return
        if self._leaf is not None:
            self.close_leaf()
        if self._in_paragraph and not is_lazy and _is_setext(text, at, end):
            self._in_paragraph = False
            return
        self._in_paragraph = True

    def _fence_behind_words(self, at: int) -> tuple[str, str] | None:
        """Returns the fence and the known language with which the line ends."""
        first = self.text.find("```", at, self._end)
        match = _FENCE_BEHIND_WORDS.match(self.text, first, self._end) if first > at else None
        language = canonical_language(match[2]) if match is not None else None
        return (match[1], language) if match is not None and language in LANGUAGES else None

    def _open_fence(self, fence: str, indent: int, language: str | None, *, is_loose: bool = False) -> None:
        inner_start = min(_next_line(self.text, self._end), len(self.text))
        self._leaf = _Leaf(fence, indent, language, inner_start, self._start, is_loose, outer_end=self._end)

    def _fence_line(self, leaf: _Leaf) -> None:
        if self._indent(4) <= 3:
            at = self._skip_blanks()
            match = _FENCE.match(self.text, at, self._end)
            if match is not None and match.group()[0] == leaf.fence[0] and len(match.group()) >= len(leaf.fence):
                after = _BLANKS.match(self.text, match.end(), self._end)
                if after is not None and after.end() >= self._end:
                    leaf.outer_end = self._end
                    self.close_leaf()
                    return
        if leaf.is_loose and (code := self.text[self._pos : self._end].rstrip(" \t")).endswith(leaf.fence):
            leaf.outer_end, self._end = self._end, self._pos + len(code.rstrip("`"))
            self._append(leaf, leaf.indent)
            self.close_leaf()
            return
        self._append(leaf, leaf.indent)

    def _append(self, leaf: _Leaf, indent: int) -> None:
        self._take_columns(min(self._indent(indent), indent))
        start = self._pos
        if self._spare and start < self._end:
            leaf.lines.append(" " * self._spare + self.text[start + 1 : self._end])
        else:
            leaf.lines.append(self.text[start : self._end])
        leaf.starts.append(start)
        leaf.end = self._end

    def _is_rule(self, at: int, char: str) -> bool:
        if char not in "-_*":
            return False
        line = self.text[at : self._end]
        count = line.count(char)
        return count >= 3 and count + line.count(" ") + line.count("\t") == len(line)

    # -- columns; a tab goes to the next multiple of four

    def _is_blank(self) -> bool:
        return self._skip_blanks() >= self._end

    def _skip_blanks(self) -> int:
        match = _BLANKS.match(self.text, self._pos, self._end)
        return match.end() if match else self._pos

    def _indent(self, limit: int) -> int:
        """Returns the columns of white space here; may stop counting once past ``limit``."""
        pos, col, spare, columns = self._pos, self._col, self._spare, 0
        while pos < self._end and columns <= limit:
            char = self.text[pos]
            if char == "\t":
                step = spare or 4 - col % 4
            elif char == " ":
                step = 1
            else:
                break
            columns += step
            col += step
            pos += 1
            spare = 0
        return columns

    def _take_columns(self, columns: int) -> None:
        while columns > 0 and self._pos < self._end:
            char = self.text[self._pos]
            if char not in " \t":
                return
            step = (self._spare or 4 - self._col % 4) if char == "\t" else 1
            if step > columns:
                self._spare = step - columns
                self._col += columns
                return
            self._pos += 1
            self._col += step
            self._spare = 0
            columns -= step


def _is_setext(text: str, at: int, end: int) -> bool:
    return _SETEXT.match(text, at, end) is not None


def _line_end(text: str, start: int) -> int:
    match = _LINE_END.search(text, start)
    return match.start() if match else len(text)


def _next_line(text: str, end: int) -> int:
    match = _LINE_END.match(text, end)
    return match.end() if match else end

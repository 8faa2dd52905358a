r"""Text that has come and is not checked yet: how far can it be checked now?

::

    |-- done --|-- lookback --|-- checked next --|-- held: sentence or code block not complete --|
                              checked_through    boundary()                                      length

A piece ends where a sentence, a line or a code block does, and never inside a block: from a line before its fence to
the end of the line that closes it everything is held. A text without any of these is cut at a space, and in the end
anywhere. Short sentences wait for their neighbours, since a check costs a model call.

The work is linear in the text, however it was cut into deltas. A delta is only looked at by itself, with the end of
the line before it, for what may end a piece. Looking for code blocks reads all that is held, so it is paid for: each
code point that comes brings ``_CREDIT`` of them. Where the credit is used up text is held longer, never shorter.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass

from guardrail.extraction import extract_code_blocks
from guardrail.extraction.markdown import find_markdown_blocks

__all__ = ["LOOKBACK", "HeldText", "Piece"]

LOOKBACK = 240
"""Code points before a piece that are judged again with it, so that a sentence has its context: two sentences or three.
With even a long piece they stay within one window of the embedded model, 192 tokens."""

# About four words: less waits for its neighbours, or for the end.
_LEAST_PIECE = 16
# Text without an end of sentence is cut at a space after so many code points, and anywhere after twice as many.
_LONGEST_PIECE = 600
# Code points that may be read again for each one that comes; ordinary answers use five.
_CREDIT = 32
_FIRST_CREDIT = 4096
# The same for checks of the whole answer so far, which cost model calls.
_WHOLE_CREDIT = 4
_FIRST_WHOLE_CREDIT = 8192
# What a line that closes a fence can be long, for the look at single deltas.
_LINE = 200

# A mark at the end of what has come counts: the next word may be long in coming.
_SENTENCE_END = re.compile(r"[.!?…][\"'”’)\]]?(?=\s|\Z)|[。！？][”’」』）]?|\n")  # noqa: RUF001 - full-width marks end sentences too
_CLOSER = re.compile(r"^[ \t>]*(?:`{3,}|~{3,})[ \t]*\r?\n|</(?:pre|code)", re.IGNORECASE | re.MULTILINE)
# As code in prose: what stands right after a backtick is talk of a tag.
_TAG = re.compile(r"(?<!`)<(pre|code)[\s>]", re.IGNORECASE)
_TEXT = re.compile(r"\S")
# The lines before the first new line of a diff: only with it they are code.
_DIFF_HEAD = ("--- ", "+++ ", "diff --git ", "index ")
_DIFF_LINES = (*_DIFF_HEAD, "@@ ", "-")


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of the answer to be judged.

    Attributes:
        text: The part, with what of the text before it is its context.
        start: Where ``text`` starts in the answer.
        code_from: Where in ``text`` code that has not been scanned can start.
    """

    text: str
    start: int
    code_from: int


class HeldText:
    """An answer as it comes, from one side; what of it can be checked, on the other.

    Attributes:
        length: Code points that have come.
        checked_through: Code points that have been checked.
    """

    def __init__(self) -> None:
        self.length = 0
        self.checked_through = 0
        # The answer is _done + _tail + _new. The tail starts where the next check may, at _tail_start.
        self._done: list[str] = []
        self._tail = ""
        self._tail_start = 0
        self._new: list[str] = []
        # Ends of pieces within the lookback; all stand outside code blocks, so a check may start at any of them.
        self._starts = [0]
        # Where the line of checked_through starts, or somewhere in it: what opens a block stands at the start of one.
        self._line_start = 0
        self._line = ""
        self._may_end = False
        self._is_in_block = self._is_misled = self._has_code = False
        self._next_look = _LONGEST_PIECE
        self._credit = _FIRST_CREDIT
        self._whole_credit = _FIRST_WHOLE_CREDIT

    def add(self, delta: str) -> None:
        """Takes the next part of the answer."""
        self._new.append(delta)
        self.length += len(delta)
        self._credit += _CREDIT * len(delta)
        self._whole_credit += _WHOLE_CREDIT * len(delta)
        seen = len(self._line)
        line = self._line + delta
        if self._is_in_block:
            # Of the lines before only the last is new, where the delta completes it.
            first = self._line.rfind("\n") + 1
            self._may_end = self._may_end or ("\n" in delta and _CLOSER.search(line, first) is not None)
        else:
            # A mark that stood at the end before may have a quotation mark or its space now.
            self._may_end = self._may_end or _SENTENCE_END.search(line, max(seen - 2, 0)) is not None
        self._line = line[-_LINE:]

    def boundary(self) -> int:
        """Returns how far the text can be checked now; ``checked_through`` where there is nothing to check."""
        held = self.length - self.checked_through
        cost = self.length - self._line_start
        is_worth_it = (self._may_end and not self._is_misled) or held >= self._next_look
        if held < _LEAST_PIECE or not is_worth_it or cost > self._credit:
            return self.checked_through
        self._credit -= cost
        was_in_block = self._is_in_block
        self._merge()
        boundary = self._look()
        # A block that a fence has not closed has more of them, and they are not looked at one by one.
        self._is_misled = self._is_in_block and was_in_block and (self._may_end or self._is_misled)
        self._may_end = False
        held = self.length - boundary
        # While a block is open only what may close it counts, and else a look at every eighth more of text.
        self._next_look = max(held + held // 8, _LONGEST_PIECE if not self._is_in_block else _LEAST_PIECE)
        return boundary

    def piece(self, boundary: int) -> Piece:
        """Returns what is to be judged so that the text is checked up to a boundary."""
        start = next((b for b in self._starts if b >= self.checked_through - LOOKBACK), self.checked_through)
        start = min(start, self._line_start)
        text = self._tail[start - self._tail_start : boundary - self._tail_start]
        return Piece(text, start, self._line_start - start if self._has_code else 0)

    def advance(self, boundary: int, *, forget: bool = False) -> None:
        """Takes note that the text is checked up to a boundary.

        Args:
            boundary: What :meth:`boundary` gave.
            forget: Whether the text before it shall not be judged again with the pieces that follow.
        """
        self.checked_through = boundary
        newline = self._tail.rfind("\n", self._line_start - self._tail_start, boundary - self._tail_start)
        if newline >= 0:
            self._line_start = self._tail_start + newline + 1
        if boundary - self._line_start > LOOKBACK:
            # It would be read again for each sentence. Its last letter is enough: what follows stands within a line.
            self._line_start = self._tail_start + len(self._tail[: boundary - self._tail_start].rstrip()) - 1
        self._starts = [] if forget else [b for b in self._starts if b >= boundary - LOOKBACK]
        self._starts.append(boundary)
        cut = min(self._starts[0], self._line_start) - self._tail_start
        self._done.append(self._tail[:cut])
        self._tail = self._tail[cut:]
        self._tail_start += cut

    def may_judge_whole(self, through: int) -> bool:
        """Whether a check of the whole text up to a place is paid for; if so, it counts as done."""
        if through > self._whole_credit:
            return False
        self._whole_credit -= through
        return True

    def text(self, through: int | None = None) -> str:
        """Returns the answer as it has come, or its part before an offset that is not below ``checked_through``."""
        self._merge()
        end = None if through is None else through - self._tail_start
        return "".join([*self._done, self._tail[:end]])

    def cut(self, start: int, end: int) -> str:
        """Returns a part of the text that does not start before ``checked_through``."""
        self._merge()
        return self._tail[start - self._tail_start : end - self._tail_start]

    def _merge(self) -> None:
        if self._new:
            self._tail += "".join(self._new)
            self._new.clear()

    def _look(self) -> int:
        """Looks for the last place that ends a piece and is outside of code blocks."""
        text, first = self._tail, self._line_start - self._tail_start
        checked = self.checked_through - self._tail_start
        held = text[first:]
        blocks = [(start + first, end + first) for start, end in _blocks(held)]
        self._has_code = self._has_code or bool(blocks)
        self._is_in_block = bool(blocks) and blocks[-1][1] > len(text)
        limit, is_diff = len(text), "@@ -" in held
        ends = [match.end() for match in _SENTENCE_END.finditer(text, checked)]
        while ends:
            end = ends.pop()
            while blocks and blocks[-1][0] >= end:
                limit = blocks.pop()[0]
            if blocks and end < blocks[-1][1]:
                continue
            if end - checked >= _LEAST_PIECE and not _ends_with_diff_head(text, checked, end, is_diff):
                # White space alone cannot be judged: it waits for the words after it.
                return end + self._tail_start if text[checked:end].strip() else self.checked_through
        if blocks:
            limit = min(limit, max(blocks[0][0], checked))
        if limit - checked < _LONGEST_PIECE or not text[checked:limit].strip():
            return self.checked_through
        space = text.rfind(" ", checked, limit) + 1
        if space > checked and text[checked:space].strip():
            return space + self._tail_start
        return limit + self._tail_start if limit - checked >= 2 * _LONGEST_PIECE else self.checked_through


def _blocks(text: str) -> list[tuple[int, int]]:
    """Returns where code blocks stand, with their fences, in order and apart; an open one ends beyond the text."""
    if '"cell_type"' in text and text.lstrip().startswith("{"):
        return [(0, len(text) + 1)]  # a notebook is code from end to end
    found: list[tuple[int, int]] = []
    fenced = [block for block in find_markdown_blocks(text) if block.is_fenced]
    for fence in fenced:
        is_closed = fence.end > fence.block.span.end
        found.append((fence.start, _line_after(text, fence.end - 1 if is_closed else fence.end)))
    is_diff = "@@ -" in text
    blocks = extract_code_blocks(text)
    for block in blocks:
        index = bisect_right(fenced, block.span.start, key=lambda fence: fence.start)
        if index and block.span.start <= fenced[index - 1].end:
            continue
        # A tag is at most one line before the code; a diff's first code comes after more.
        start = _line_before(text, text.rfind("\n", 0, block.span.start) + 1)
        while is_diff and start and text.startswith(_DIFF_LINES, before := _line_before(text, start)):
            start = before
        found.append((start, _line_after(text, block.span.end)))
    if (tag := _open_tag(text, blocks[-1].span.end if blocks else 0)) is not None:
        found.append((tag, len(text) + 1))
    return _apart(found)


def _open_tag(text: str, start: int) -> int | None:
    """Returns where the line starts in which, after an offset, an element of code opens that is not closed yet."""
    if "<" not in text:
        return None
    lower = text.lower()
    closed = {name: lower.rfind(f"</{name}>") for name in ("pre", "code")}
    for match in _TAG.finditer(text, start):
        if match.start() > closed[match[1].lower()]:
            return text.rfind("\n", 0, match.start()) + 1
    return None


def _apart(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Returns spans in order, those that meet as one."""
    apart: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if apart and start < apart[-1][1]:
            apart[-1] = (apart[-1][0], max(end, apart[-1][1]))
        else:
            apart.append((start, end))
    return apart


def _line_after(text: str, end: int) -> int:
    """Returns where the line of the first text after a block ends, which closes it; beyond the text without one."""
    closing = _TEXT.search(text, end)
    newline = text.find("\n", closing.start()) if closing else -1
    return newline + 1 if newline >= 0 else len(text) + 1


def _line_before(text: str, line: int) -> int:
    return text.rfind("\n", 0, max(line - 1, 0)) + 1


def _ends_with_diff_head(text: str, start: int, end: int, is_diff: bool) -> bool:
    line = text.rfind("\n", start, end - 1) + 1
    return text.startswith(_DIFF_LINES if is_diff else _DIFF_HEAD, max(line, start))

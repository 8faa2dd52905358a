r"""Find the code in a message: text -> ``CodeBlock`` values with exact places and a language.

The first step of Code Shield; what is found here is what a scanner sees. Found are:

- fenced and indented code of Markdown (:mod:`~guardrail.extraction.markdown`);
- ``<pre>``, and ``<code>`` of several lines, in HTML (:mod:`~guardrail.extraction.html`);
- diffs, fenced or as they stand: for each file its new lines (:mod:`~guardrail.extraction.diffs`);
- console sessions in a block: the commands, without prompts and output (:mod:`~guardrail.extraction.sessions`);
- notebooks, fenced or as the whole message: their code cells (:mod:`~guardrail.extraction.notebooks`);
- one line that fetches a script and runs it, in prose or inline (:mod:`~guardrail.extraction.oneliners`).

Other inline code is too short to be judged and is not a block. Offsets are code points of the message. For each line of
``code``, ``line_starts[i]`` is where its first character stands, and the line stands there as it is, with three
exceptions in which columns are approximate, never outside the block: a tab cut in two by an indentation, entities and
tags in HTML, escapes in a notebook's strings.

Blocks do not share code, but those of a notebook's languages interleave. A fence wins over everything that starts in it
or reaches into it, and HTML and diffs win over indented code.
"""

from __future__ import annotations

import re
from bisect import bisect_right

from guardrail.extraction.diffs import find_diffs, new_code
from guardrail.extraction.html import find_html_blocks
from guardrail.extraction.markdown import MarkdownBlock, find_markdown_blocks
from guardrail.extraction.notebooks import notebook_code
from guardrail.extraction.oneliners import find_oneliners
from guardrail.extraction.sessions import is_session, session_commands
from guardrail.language import LANGUAGES, canonical_language, guess_language
from guardrail.verdict import CodeBlock, Span

__all__ = ["LANGUAGES", "canonical_language", "extract_code_blocks", "guess_language"]

_DIFF_START = re.compile(r"\s*(?:diff --git |--- \S[^\n]*\n\+\+\+ |@@ -\d)")


def extract_code_blocks(text: str) -> list[CodeBlock]:
    """Finds the code blocks of a message, in order.

    Args:
        text: The message, CommonMark or plain text; any size, in time linear in it.

    Returns:
        Each block, with its language where the message gives one. Blocks without a language are left so; see
        :func:`guess_language`.
    """
    whole = _notebook(text)
    if whole is not None:
        return whole
    markdown = find_markdown_blocks(text)
    fences = [(found.start, found.end) for found in markdown if found.is_fenced]
    special = find_diffs(text, fences)
    special += _outside(find_html_blocks(text, fences), [block.span for block in special])
    blocks = list(special)
    spans = sorted((block.span for block in special), key=lambda span: span.start)
    taken = list(spans)
    for found in markdown:
        if found.is_fenced or not _meets(spans, found.start, found.end):
            blocks += _unfold(found)
            taken.append(Span(found.start, found.end))
    blocks += _outside(find_oneliners(text), taken)
    blocks.sort(key=lambda block: block.span.start)
    return blocks


def _notebook(text: str) -> list[CodeBlock] | None:
    """Reads a message that is a notebook's file; None where it is not."""
    if '"cell_type"' not in text or not text.lstrip().startswith("{"):
        return None
    return notebook_code(CodeBlock(text, None, Span(0, len(text)), _line_starts(text)))


def _unfold(found: MarkdownBlock) -> list[CodeBlock]:
    """Reads the code out of a block that holds it in another form: a diff, a session, a notebook."""
    block = found.block
    language, code = block.language, block.code
    inner: list[CodeBlock] | None = None
    if language == "diff" or (language is None and _DIFF_START.match(code)):
        inner = new_code(block)
    elif language in ("console", "bash", None) and is_session(block):
        inner = session_commands(block)
    elif language in ("json", "ipynb", None) and '"cell_type"' in code:
        inner = notebook_code(block)
    return inner or [block]


def _outside(blocks: list[CodeBlock], spans: list[Span]) -> list[CodeBlock]:
    spans = sorted(spans, key=lambda span: span.start)
    return [block for block in blocks if not _meets(spans, block.span.start, block.span.end)]


def _meets(spans: list[Span], start: int, end: int) -> bool:
    """Whether a place meets one of some spans, which are in order and apart."""
    index = bisect_right(spans, start, key=lambda span: span.start)
    return (index > 0 and spans[index - 1].end > start) or (index < len(spans) and spans[index].start < end)


def _line_starts(text: str) -> tuple[int, ...]:
    return (0, *(match.end() for match in re.finditer("\n", text)))

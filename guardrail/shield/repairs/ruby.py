"""Repairs of Ruby fragments: an ``end`` for each ``def``, ``if`` or ``do`` that has none, and the other way round."""

from __future__ import annotations

from collections.abc import Iterator

from guardrail.shield.repairs.tokens import CLOSER_OF, OPENER_OF, STRING, Token, tokenize

__all__ = ["repairs"]

_BLOCKS = frozenset(["class", "module", "def", "begin", "case", "for"])
_MODIFIERS = frozenset(["if", "unless", "while", "until"])  # a block only where a statement or a value starts
_STARTS = frozenset("=(|,;[{&!?:>") | {"return", "then", "else", "do", "and", "or", "not", "when", "begin"}
_LEADS = {
    "when": "case x;",
    "in": "case x;",
    "else": "if x;",
    "elsif": "if x;",
    "rescue": "begin;",
    "ensure": "begin;",
}


def repairs(code: str, language: str, lead: str) -> Iterator[tuple[str, str]]:
    """Yields what to write before and after code, likeliest first.

    Args:
        code: The fragment.
        language: ``"ruby"``.
        lead: What opens the string that the code starts in; part of each prefix.
    """
    found = tokenize(lead + code, language)
    opened, unopened, middles = _match(found.tokens)
    opened = opened[1:] if middles and opened[:1] == ["?"] else opened
    for opener in ("begin;", "def f;", "class A;", "f do;"):
        outer = [opener] * len(unopened)
        before = "".join({"end": opener, ")": "f(", "]": "[", "}": "f {"}[text] for text in reversed(unopened))
        if middles:
            at = before.find(opener)
            before = before[:at] + middles + before[at + len(opener) :] if outer and at >= 0 else middles + before
        closed = "".join("\nend" if text in ("end", "?") else CLOSER_OF[text] for text in reversed(opened))
        if middles and "end" not in unopened:
            closed += "\nend"
        yield before + lead, found.tail + closed
        if opener == "begin;":
            yield before + lead, found.tail + closed + "\nend"
            if "\nend" in closed:
                yield before + lead, found.tail + closed.replace("\nend", "", 1)
            yield before + lead, found.tail + " x" + closed
        yield opener + before + lead, found.tail + closed + "\nend"


def _match(tokens: list[Token]) -> tuple[list[str], list[str], str]:
    """Returns what is open, what is closed only, and what a ``when`` or ``else`` without a head needs before it."""
    stack: list[str] = []
    unopened: list[str] = []
    lead = ""
    in_loop_head = False
    for i, token in enumerate(tokens):
        text = token.text
        before = tokens[i - 1].text if i else ""
        follows = tokens[i + 1].text if i + 1 < len(tokens) else ""
        is_name = before in (".", "@", "$", "def") or (before == ":" and tokens[i - 1].at + 1 == token.at)
        is_key = follows == ":" and tokens[i + 1].at == token.at + len(text)
        if token.indent >= 0:
            in_loop_head = False
        if text in CLOSER_OF or text == "${":
            stack.append("{" if text == "${" else text)
        elif text in OPENER_OF:
            _close(stack, unopened, OPENER_OF[text], text)
        elif text == STRING or is_name or (is_key and text != "else"):
            continue
        elif text in _BLOCKS:
            if not (text == "def" and _is_endless(tokens, i)) and not (text == "for" and token.indent < 0):
                stack.append("end")
                in_loop_head = text == "for"
        elif text in _MODIFIERS:
            if token.indent >= 0 or before in _STARTS or i == 0:
                stack.append("end")
                in_loop_head = text in ("while", "until")
        elif text == "do":
            if not in_loop_head:
                stack.append("end")
            in_loop_head = False
        elif text == "end":
            _close(stack, unopened, "end", "end")
        elif text in _LEADS and token.indent >= 0 and "end" not in stack[-12:] and not lead:
            lead = _LEADS[text] if not unopened else lead
    return stack, unopened, lead


def _close(stack: list[str], unopened: list[str], opener: str, closer: str) -> None:
    if stack and stack[-1] == opener:
        stack.pop()
    elif opener in stack[-6:]:
        while stack.pop() != opener:
            pass
    else:
        unopened.append(closer)


def _is_endless(tokens: list[Token], at: int) -> bool:
    """Whether the ``def`` here is one line with ``=``: ``def name(x) = x``."""
    depth = 0
    for i in range(at + 2, min(at + 40, len(tokens))):
        text = tokens[i].text
        if tokens[i].indent >= 0:
            return False
        depth += (text in CLOSER_OF) - (text in OPENER_OF)
        if depth == 0 and text == "=":
            return i + 1 < len(tokens) and tokens[i + 1].indent < 0 and tokens[i - 1].at + 1 < tokens[i].at
        if depth == 0 and text not in OPENER_OF and text not in ".?!" and i > at + 3 and tokens[i - 1].text == ")":
            return False
    return False

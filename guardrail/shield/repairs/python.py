"""Repairs of Python fragments: levels that later lines fall back to are opened, and what is open at the end is closed.

A fragment of a function's end starts deeper than it goes on, among the arguments of a call, or in a docstring; one of a
function's start ends with a head that has no body, or in a ``try`` that has no ``except``.
"""

from __future__ import annotations

from collections.abc import Iterator

from guardrail.shield.repairs.tokens import CLOSER_OF, OPENER_OF, Token, first_of_lines, tokenize

__all__ = ["repairs"]

_CALLS = {")": "f(", "]": "[", "}": "{"}
_OPERATORS = frozenset("=+-*/%|&<>.@") | {"and", "or", "not", "in", "is", "if", "else", "return", "lambda", "import"}


def repairs(code: str, language: str, lead: str) -> Iterator[tuple[str, str]]:
    """Yields what to write before and after code, likeliest first.

    Args:
        code: The fragment.
        language: ``"python"``.
        lead: What opens the string that the code starts in; part of each prefix.
    """
    found = tokenize(lead + code, language)
    tokens = found.tokens
    open_, unopened = _match(tokens)
    call = "".join(_CALLS[closer] for closer in reversed(unopened))
    lines = [(token.indent, token.text) for _, token in first_of_lines(_after(tokens, len(unopened)))]
    closed = found.tail + "".join(CLOSER_OF[bracket] for bracket in reversed(open_))
    pad = "\n" + " " * (_last_indent(code) + 4) + "pass" + _handlers(lines)
    head = _head(lines, is_inside=bool(call or lead))
    before = head + call + lead
    last = tokens[-1].text if tokens and not found.tail.strip() else ""
    yield lead, closed
    yield before, closed
    yield before, closed + pad
    if last in _OPERATORS:
        yield before, " x" + closed + pad
    if open_ or last == ")":
        yield before, closed + ":" + pad
    if lines and lines[-1][1] == "@":
        yield before, f"{closed}\n{' ' * lines[-1][0]}def f(): pass{_handlers(lines)}"
    if len(lines) > 1 and lines[0][0] < lines[1][0] and not (call or lead):
        # The first line lost its indentation: it stands as deep as the next one.
        spaces = " " * lines[1][0]
        rest = _head([(lines[1][0], ""), *lines[1:]], is_inside=True)
        yield rest + ("" if rest.endswith(spaces) else spaces), closed
        yield rest + ("" if rest.endswith(spaces) else spaces), closed + pad
    if call:
        simple = "".join(OPENER_OF[closer] for closer in reversed(unopened))
        yield simple + lead, closed
    yield lead, closed + pad


def _match(tokens: list[Token]) -> tuple[list[str], list[str]]:
    """Returns the open brackets, and the closers without an opener."""
    stack: list[str] = []
    unopened: list[str] = []
    for token in tokens:
        if token.text in CLOSER_OF:
            stack.append(token.text)
        elif token.text in OPENER_OF:
            if stack and CLOSER_OF[stack[-1]] == token.text:
                stack.pop()
            elif not any(CLOSER_OF[bracket] == token.text for bracket in stack[-8:]):
                unopened.append(token.text)
    return stack, unopened


def _after(tokens: list[Token], unopened: int) -> list[Token]:
    """Returns the tokens as they are where as many brackets were opened before them."""
    return [Token("(", 0, 0)] * unopened + tokens if unopened else tokens


def _head(lines: list[tuple[int, str]], *, is_inside: bool) -> str:
    """Returns the heads of the blocks that the lines stand in.

    Args:
        lines: Indentation and first word of each logical line.
        is_inside: Whether the first one goes on with what stands before the code.
    """
    if not lines:
        return ""
    if is_inside:
        lines = [(lines[1][0] if len(lines) > 1 else 0, ""), *lines[1:]]
    first, word = lines[0]
    levels: list[tuple[int, str]] = []
    for indent, text in lines:
        if not levels or indent < levels[-1][0]:
            levels.append((indent, "try" if text in ("except", "finally") else "if 1"))
    head = "if 1:\n" if levels[-1][0] > 0 else ""
    head += "".join(f"{' ' * indent}{opener}:\n" for indent, opener in reversed(levels[1:]))
    pad = " " * first
    if is_inside:
        return head + pad
    if word in ("except", "finally"):
        head += f"{pad}try:\n{pad} pass\n"
    elif word in ("else", "elif"):
        head += f"{pad}if 1:\n{pad} pass\n"
    elif word == "case":
        head += f"{' ' * max(first - 1, 0)}match 1:\n"
    return head


def _handlers(lines: list[tuple[int, str]]) -> str:
    """Returns an ``except`` for each ``try`` that has none, the innermost first."""
    open_: list[int] = []
    for indent, word in lines:
        while open_ and indent < open_[-1]:
            open_.pop()
        if open_ and open_[-1] == indent:
            open_.pop()
        if word == "try":
            open_.append(indent)
    return "".join(f"\n{' ' * indent}except: pass" for indent in reversed(open_)) + "\n"


def _last_indent(code: str) -> int:
    text = code.rstrip()
    line = text[text.rfind("\n") + 1 :]
    return len(line) - len(line.lstrip())

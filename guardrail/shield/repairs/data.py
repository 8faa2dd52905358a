"""Repairs of configuration: levels of YAML that later lines fall back to, and blocks of HCL that are only closed."""

from __future__ import annotations

from collections.abc import Iterator

from guardrail.shield.repairs.tokens import CLOSER_OF, OPENER_OF, tokenize

__all__ = ["blank_tags", "hcl_repairs", "yaml_repairs"]


def hcl_repairs(code: str, language: str, lead: str) -> Iterator[tuple[str, str]]:
    """Yields what to write before and after code: a ``}`` without an opener ends a block or an object."""
    found = tokenize(lead + code, language)
    stack: list[str] = []
    unopened: list[str] = []
    for token in found.tokens:
        if token.text in CLOSER_OF:
            stack.append(token.text)
        elif token.text in OPENER_OF:
            if stack and CLOSER_OF[stack[-1]] == token.text:
                stack.pop()
            else:
                unopened.append(token.text)
    last = found.tokens[-1].text if found.tokens else ""
    operand = " 0" if last in ("=", "&&", "||", "?", ":", "+", "==") and not found.tail.strip() else ""
    after = found.tail + operand + "".join("\n" * (c == "{") + CLOSER_OF[c] for c in reversed(stack))
    for is_object in (False, True):
        before, is_inside = "", False
        for closer in reversed(unopened):
            if is_inside and before.endswith(("(", "[")):
                name = ""
            else:
                name = "g = " if closer != "}" or is_inside or is_object else "g "
            before += name + {")": "f(", "]": "[", "}": "{\n"}[closer]
            is_inside = is_inside or closer != "}" or is_object
        yield before + lead, after
        yield "g {\n" + before + lead, after + "\n}"
        yield "g = [\n" + before + lead, after + "\n]"


def yaml_repairs(code: str, language: str, lead: str) -> Iterator[tuple[str, str]]:
    """Yields what to write before code that starts on a deeper level than it goes on.

    First as if it started among keys; then as if its first levels were the lines of a block scalar, such as a script.
    """
    levels: list[tuple[int, bool]] = []  # indentation and whether it is a list, each time it falls below all before
    for line in code.split("\n"):
        text = line.strip()
        if not text or text.startswith("#") or text in ("---", "..."):
            continue
        indent = len(line) - len(line.lstrip(" "))
        if not levels or indent < levels[-1][0]:
            levels.append((indent, text.startswith("- ") or text == "-"))
    tail = tokenize(code, language).tail if code.rstrip().endswith(("]", "}", '"', "'")) else ""
    for depth in range(min(len(levels), 3) + 1):
        prefix = ""
        for indent, is_item in reversed(levels[max(depth, 1) :]):
            pad = " " * indent
            prefix += f"{pad}g:\n{pad}- g:\n" if is_item else f"{pad}g:\n"
        if depth:
            indent = levels[depth - 1][0]
            if depth == len(levels) and indent == 0:
                return
            prefix = (prefix[:-1] if prefix else "g:") + f" |\n{' ' * max(indent, 1)}g\n"
        yield prefix + lead, tail.strip("\n")


def blank_tags(code: str) -> str:
    """Makes a template's tags plain text, one for one: whole lines become blank, and values become words."""
    if "{{" not in code and "{%" not in code:
        return code
    return "\n".join(map(_blank_tags_of_line, code.split("\n")))


def _blank_tags_of_line(line: str) -> str:
    text = line.strip()
    if text.startswith("{%") or (text.startswith("{{") and text.endswith("}}")):
        return " " * len(line)
    if "{{" not in line and "{%" not in line:
        return line
    head, sign, value = line.partition(": ")
    if not sign and text.startswith("- "):
        at = line.index("- ") + 1
        head, sign, value = line[:at], line[at], line[at + 1 :]
    if sign and value.lstrip().startswith(("{{", "{%")):
        for tag in ("{{", "}}", "{%", "%}"):
            value = value.replace(tag, "__")
    return head + sign + value

"""Repairs of code that is a fragment: a block's code -> what may be written around it so that a parser understands it.

One module for each family of languages yields prefixes and suffixes, likeliest first. Code that starts inside a comment
or a string is read with what opens it before it.

*A reading in which code is a string proves nothing.* The same mark opens and closes a string that spans lines
(``\"\"\"``, a backtick, PHP's quotes), so of a fragment it cannot be told which of its parts are code. Where its marks
are odd in number, it is also read the other way round: what either reading finds counts, and the reading that is as
it stands counts as proof only after the other one was scanned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from guardrail.shield.languages import LANGUAGES
from guardrail.shield.repairs import braces, data, python, ruby, shell
from guardrail.shield.repairs.tokens import Tokens, tokenize

__all__ = ["Shape", "is_in_doubt", "make_shapes"]


class Shape(NamedTuple):
    """A reading of a block: what to write around its code.

    Attributes:
        prefix: Before the code.
        body: The code, or as many code points with some of them blanked.
        suffix: After it.
        proves: Whether the code is verified when this is understood to its end.
    """

    prefix: str
    body: str
    suffix: str
    proves: bool = True


_Family = Callable[[str, str, str], Iterator[tuple[str, str]]]
_FAMILIES: dict[str, _Family] = {
    **dict.fromkeys(braces.GRAMMARS, braces.repairs),
    "python": python.repairs,
    "ruby": ruby.repairs,
    "bash": shell.repairs,
    "dockerfile": shell.docker_repairs,
    "hcl": data.hcl_repairs,
    "yaml": data.yaml_repairs,
}


def make_shapes(code: str, language: str) -> list[Shape]:
    """Returns readings of code that is not understood as it stands, likeliest first."""
    family = _FAMILIES[language]
    tokens = tokenize(code, language)
    lead = "/*" if LANGUAGES[language].slashes and _starts_in_comment(code) else ""
    upright = [Shape(prefix, code, suffix) for prefix, suffix in family(code, language, lead)]
    mark = tokens.mark or _doubtful_mark(code, tokens)
    if not mark and language == "csharp" and tokens.has_broken_string:
        # The end of a verbatim string looks like the start of another one, which ends with its line.
        turned = [Shape(prefix, code, suffix) for prefix, suffix in family(code, language, '@"')]
        return [*upright[:3], *turned[:4], *upright[3:]]
    if not mark:
        return upright
    turned = [Shape(prefix, code, suffix) for prefix, suffix in family(code, language, mark)]
    # A finding of the reading as it stands is kept though the other one be the proof.
    return [upright[0]._replace(proves=False), *turned[:4], *upright[1:], *turned[4:], Shape("", code, "\n\n")]


def is_in_doubt(code: str, language: str) -> bool:
    """Whether what seems to be a string of its own may be the code between two strings that are cut off."""
    return bool(_doubtful_mark(code, tokenize(code, language)))


_CLOSES_STATEMENT = (";", ")", ",", "}", "]", ".")
_CODE_SIGNS = ("(", "=")
_GOES_ON = frozenset("(,=[{:+%&|?<>!-*/$@") | {"return", "in", "and", "or", "not", "echo"}


def _doubtful_mark(code: str, tokens: Tokens) -> str:
    """Returns the mark of a string that stands where a statement starts and looks like code inside; else nothing."""
    starts = dict(tokens.strings)
    before = ""
    for i, token in enumerate(tokens.tokens):
        if token.at in starts and (i == 0 or (token.indent >= 0 and before not in _GOES_ON)):
            size = 3 if code.startswith(code[token.at] * 3, token.at) else 1
            inside = code[token.at + size : starts[token.at] - size]
            first, _, rest = inside.partition("\n")
            is_end = not first.strip() or first.lstrip().startswith(_CLOSES_STATEMENT)
            if is_end and any(_looks_like_code(line) for line in rest.split("\n")):
                return code[token.at : token.at + size]
        before = token.text
    return ""


def _looks_like_code(line: str) -> bool:
    text = line.strip()
    return text.endswith((";", "{", ")", ":", "}")) and any(sign in text for sign in _CODE_SIGNS)


def _starts_in_comment(code: str) -> bool:
    """Whether a comment ends in code before one starts, by a line that ends with its end or holds no string.

    Or whether it does not end: all lines start with a star.
    """
    end, opening = code.find("*/"), code.find("/*")
    if end < 0 and opening < 0:
        lines = [line.split(maxsplit=1) for line in code.split("\n")]
        return any(lines) and all(words[:1] in ([], ["*"]) for words in lines)
    if end < 0 or 0 <= opening < end:
        return False
    start, stop = code.rfind("\n", 0, end) + 1, code.find("\n", end)
    behind = code[end + 2 : stop if stop >= 0 else len(code)]
    return not behind.strip() or not any(quote in code[start:end] for quote in "\"'`")

"""What a regular expression cannot match without: expression -> literals of which one stands in every match.

The idea is that of RE2's prefilters (https://github.com/google/re2/blob/main/re2/prefilter.h): a part of an expression
that can match only a few texts gives those texts; in a sequence such parts are joined; of all that is found, the set
with the longest literals is kept. The expression is only parsed, by Python's own parser, and never run.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from typing import Any

if sys.version_info >= (3, 11):
    from re import _constants as codes
    from re import _parser as parser
else:
    import sre_constants as codes
    import sre_parse as parser

__all__ = ["required_literals"]

_MOST = 256  # texts in a set that is worth looking for
_SHORTEST = 2
_FLAGS = re.compile(r"\(\?[ims]+\)")

_Texts = frozenset[str]


def required_literals(expression: str) -> tuple[frozenset[str], bool] | None:
    """Returns literals of which at least one stands in every text that the expression matches.

    Args:
        expression: A PCRE; one that Python reads otherwise or not at all gives None.

    Returns:
        The literals, casefolded where case does not count, and whether it counts; None where nothing is known.
    """
    # Flags in the middle hold from there on: case counts only where it counts everywhere.
    flags = "".join(_FLAGS.findall(expression)) + "".join(re.findall(r"\(\?[a-z]+:", expression))
    counts = "i" not in flags
    try:
        tree = parser.parse(_FLAGS.sub("", expression))
    except (re.error, RecursionError, OverflowError):
        return None
    exact, best = _of_sequence(tree)
    found = _better(best, exact)
    if found is None or len(found) > _MOST:
        return None
    return (found if counts else frozenset(map(str.casefold, found))), counts


def _of_sequence(items: Any) -> tuple[_Texts | None, _Texts | None]:
    """Returns all texts that a sequence can match, if few, and the best literals that it needs."""
    whole: _Texts | None = frozenset([""])
    run: _Texts = frozenset([""])
    best: _Texts | None = None
    for code, value in items:
        exact, needed = _of_item(code, value)
        best = _better(best, needed)
        longer = None if exact is None else _join(run, exact)
        if longer is not None:
            run = longer
        else:
            whole = None
            best = _better(best, run)
            run = exact if exact is not None else frozenset([""])
    best = _better(best, run)
    return (run if whole is not None else None), best


def _of_item(code: Any, value: Any) -> tuple[_Texts | None, _Texts | None]:
    """The same for one item; what matches no character, as an anchor does, matches the empty text."""
    if code is codes.LITERAL:
        return frozenset([chr(value)]), None
    if code is codes.IN:
        return _of_class(value), None
    if code is codes.AT:
        return frozenset([""]), None
    if code in (codes.ASSERT, codes.ASSERT_NOT):
        return frozenset([""]), None
    if code is codes.SUBPATTERN:
        return _of_sequence(value[-1])
    if code is codes.BRANCH:
        return _of_branches(value[1])
    if code in (codes.MAX_REPEAT, codes.MIN_REPEAT):
        least, most, body = value
        exact, needed = _of_sequence(body)
        if (least, most) == (0, 1) and exact is not None:
            return exact | {""}, None
        return None, _better(needed, exact) if least >= 1 else None
    return None, None


def _of_branches(branches: Iterable[Any]) -> tuple[_Texts | None, _Texts | None]:
    parts = [_of_sequence(branch) for branch in branches]
    exact = [texts for texts, _ in parts if texts is not None]
    needed = [_better(best, texts) for texts, best in parts]
    known = [texts for texts in needed if texts is not None]
    return (
        frozenset[str]().union(*exact) if len(exact) == len(parts) else None,
        frozenset[str]().union(*known) if len(known) == len(parts) else None,
    )


def _of_class(items: Iterable[Any]) -> _Texts | None:
    characters: set[str] = set()
    for code, value in items:
        if code is not codes.LITERAL:
            return None
        characters.add(chr(value))
    return frozenset(characters) if len(characters) <= 8 else None


def _join(heads: _Texts, tails: _Texts) -> _Texts | None:
    if len(heads) * len(tails) > _MOST:
        return None
    return frozenset(head + tail for head in heads for tail in tails)


def _better(one: _Texts | None, other: _Texts | None) -> _Texts | None:
    """Returns the set that fewer texts satisfy: that with the longer shortest literal, then the smaller one."""
    usable = [texts for texts in (one, other) if texts and min(map(len, texts)) >= _SHORTEST and len(texts) <= _MOST]
    return max(usable, key=lambda texts: (min(map(len, texts)), -len(texts))) if usable else None

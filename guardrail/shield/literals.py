"""What a regular expression cannot match without: expression -> formula over literals.

The idea is that of RE2's prefilters (https://github.com/google/re2/blob/main/re2/prefilter.h): a part of an expression
that can match only a few texts gives those texts; in a sequence such parts are joined, and each run of them has to be
there. The expression is only parsed, by Python's own parser, and never run.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from typing import Any

from guardrail.shield.formulas import Formula, all_of, any_of, literal

if sys.version_info >= (3, 11):
    from re import _constants as codes
    from re import _parser as parser
else:
    import sre_constants as codes
    import sre_parse as parser

__all__ = ["required_by"]

_MOST = 256  # texts in a set that is worth looking for
_SHORTEST = 2
_SINGLES = "@<>{}[]`#&|%$^~!?*"  # signs that are worth looking for alone
_FLAGS = re.compile(r"\(\?[ims]+\)")

_Texts = frozenset[str]


def required_by(expression: str) -> Formula:
    """Returns a formula that every text meets in which the expression matches something.

    Args:
        expression: A PCRE; one that Python reads otherwise or not at all gives True.
    """
    # Flags in the middle hold from there on: case counts only where it counts everywhere.
    flags = "".join(_FLAGS.findall(expression)) + "".join(re.findall(r"\(\?[a-z]+:", expression))
    try:
        tree = parser.parse(_FLAGS.sub("", expression))
    except (re.error, RecursionError, OverflowError):
        return True
    reader = _Reader(is_case_sensitive="i" not in flags)
    exact, needed = reader.sequence(tree)
    if exact is not None and _is_anchored(tree):
        # What is matched is the whole of a name or of an expression, so nothing of a word stands next to it.
        return reader.one_of(exact, is_word=True)
    return needed if exact is None else reader.one_of(exact)


def _is_anchored(tree: Any) -> bool:
    items = list(tree)
    begins, ends = (codes.AT, codes.AT_BEGINNING), ((codes.AT, codes.AT_END), (codes.AT, codes.AT_END_STRING))
    return len(items) > 1 and items[0] == begins and items[-1] in ends


class _Reader:
    """Reads parts of an expression: all texts that a part can match, if few, and else a formula of what it needs."""

    def __init__(self, *, is_case_sensitive: bool) -> None:
        self._is_case_sensitive = is_case_sensitive

    def one_of(self, texts: _Texts, *, is_word: bool = False) -> Formula:
        """Returns the formula of a set of texts; True where one of them is too short to be worth looking for."""
        if not texts or len(texts) > _MOST or not all(len(t) >= _SHORTEST or (t and t in _SINGLES) for t in texts):
            return True
        if is_word:
            return any_of(literal(t, is_case_sensitive=self._is_case_sensitive, is_word=True) for t in sorted(texts))
        if self._is_case_sensitive:
            return "some", tuple(sorted(texts))
        return "any", tuple(sorted(set(map(str.casefold, texts))))

    def sequence(self, items: Any) -> tuple[_Texts | None, Formula]:
        whole = True
        run: _Texts = frozenset([""])
        needed: list[Formula] = []
        for code, value in items:
            exact, need = self._item(code, value)
            needed.append(need)
            longer = None if exact is None else _join(run, exact)
            if longer is not None:
                run = longer
            else:
                whole = False
                needed.append(self.one_of(run))
                run = exact if exact is not None else frozenset([""])
        if whole:
            return run, True
        return None, all_of([*needed, self.one_of(run)])

    def _item(self, code: Any, value: Any) -> tuple[_Texts | None, Formula]:
        """The same for one item; what matches no character, as an anchor does, matches the empty text."""
        if code is codes.LITERAL:
            return frozenset([chr(value)]), True
        if code is codes.IN:
            return _of_class(value), True
        if code is codes.AT:
            return frozenset([""]), True
        if code in (codes.ASSERT, codes.ASSERT_NOT):
            return frozenset([""]), True
        if code is codes.SUBPATTERN:
            return self.sequence(value[-1])
        if code is codes.BRANCH:
            return self._branches(value[1])
        if code in (codes.MAX_REPEAT, codes.MIN_REPEAT):
            least, most, body = value
            exact, needed = self.sequence(body)
            if (least, most) == (0, 1) and exact is not None:
                return exact | {""}, True
            if least < 1:
                return None, True
            return None, needed if exact is None else self.one_of(exact)
        return None, True

    def _branches(self, branches: Iterable[Any]) -> tuple[_Texts | None, Formula]:
        parts = [self.sequence(branch) for branch in branches]
        exact = [texts for texts, _ in parts if texts is not None]
        if len(exact) == len(parts):
            return frozenset[str]().union(*exact), True
        return None, any_of(needed if texts is None else self.one_of(texts) for texts, needed in parts)


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

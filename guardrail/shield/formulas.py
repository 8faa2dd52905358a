"""Necessary conditions on a text: what must stand in it, combined by *and* and *or*.

::

    True                 always met
    ("word", text)       a word of the text, a run of letters, digits and underscores, is this one
    ("name", folded)     the same, whatever the case
    ("some", texts)      one of them stands in the text
    ("any", folded)      the same, whatever the case
    ("match", text)      this expression of RE2, whose time is linear in the text, is found in it
    ("and" | "or", formulas)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

try:
    import re2
except ImportError:  # what cannot be looked for counts as found
    re2 = None

__all__ = ["Formula", "TextSet", "View", "all_of", "any_of", "fault_in", "holds", "keys_of", "literal"]

Formula = Any
"""A tuple as above, or True; hashable."""

_WORD = re.compile(r"\w+")


class View:
    """A text as formulas look at it.

    Args:
        text: Code as semgrep is to read it.
    """

    __slots__ = ("folded", "names", "text", "words")

    def __init__(self, text: str) -> None:
        self.text = text
        self.folded = text.casefold()
        self.words = frozenset(_WORD.findall(text))
        self.names = frozenset(map(str.casefold, self.words))


def holds(formula: Formula, view: View) -> bool:
    """Tells whether a formula is met."""
    if formula is True:
        return True
    kind, value = formula
    if kind == "word":
        return value in view.words
    if kind == "name":
        return value in view.names
    if kind in ("some", "any"):
        text = view.text if kind == "some" else view.folded
        for part in value:  # noqa: SIM110  # a generator would take as long again as the search
            if part in text:
                return True
        return False
    if kind == "match":
        return re2 is None or _compiled(value).search(view.text) is not None
    test = all if kind == "and" else any
    return test(holds(part, view) for part in value)


def fault_in(expression: str) -> str | None:
    """Says why RE2 cannot use an expression; None where it can, or is not installed."""
    if re2 is None:
        return None
    try:
        _compiled(expression)
    except re2.error as exc:
        return str(exc.args[0].decode() if isinstance(exc.args[0], bytes) else exc)
    return None


class TextSet:
    """Texts that are looked for all at once: a tenth of the time that one search for each of them takes.

    Args:
        texts: Not empty, any number of them.
    """

    _END = "\0end of the text\0"
    """Stands behind what is searched: a search that does not come to it tells nothing of the texts."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = list(dict.fromkeys(texts))
        self._set = None
        if re2 is None or not self._texts:
            return
        options = _options()
        options.literal = True
        options.max_mem = 1 << 26
        self._set = re2.Set.SearchSet(options)
        for text in (*self._texts, self._END):
            self._set.Add(text)
        self._set.Compile()

    def found_in(self, text: str) -> list[str]:
        """Returns those that stand in a text."""
        if self._set is not None:
            places = self._set.Match(text + self._END) or ()
            if len(self._texts) in places:
                return [self._texts[place] for place in places if place < len(self._texts)]
        return [part for part in self._texts if part in text]


@cache  # expressions of rules, not of users
def _compiled(expression: str) -> Any:
    return re2.compile(expression, _options())


def _options() -> Any:
    options = re2.Options()
    options.log_errors = False
    return options


def literal(text: str, *, is_case_sensitive: bool = True, is_word: bool = False) -> Formula:
    """Returns the formula of a text that stands there.

    Args:
        text: Not empty.
        is_case_sensitive: Whether its case counts.
        is_word: Whether nothing can stand directly before or behind it that would make it part of a longer word.
    """
    text = text if is_case_sensitive else text.casefold()
    if is_word and _WORD.fullmatch(text):
        return ("word" if is_case_sensitive else "name"), text
    return ("some" if is_case_sensitive else "any"), (text,)


def all_of(formulas: Iterable[Formula]) -> Formula:
    """Returns what is met where all are."""
    parts = tuple(dict.fromkeys(_flat("and", formulas)))
    return ("and", parts) if len(parts) > 1 else parts[0] if parts else True


def any_of(formulas: Iterable[Formula]) -> Formula:
    """Returns what is met where one is; True where there are none, since nothing is known then."""
    parts = tuple(dict.fromkeys(_flat("or", formulas)))
    if not parts or True in parts:
        return True
    return ("or", parts) if len(parts) > 1 else parts[0]


def _flat(kind: str, formulas: Iterable[Formula]) -> Iterator[Formula]:
    for formula in formulas:
        if formula is True:
            if kind == "or":
                yield True
        elif formula[0] == kind:
            yield from formula[1]
        else:
            yield formula


def keys_of(formula: Formula) -> frozenset[Formula] | None:
    """Returns single conditions of which one at least is met where the formula is; None where there are no such."""
    if formula is True:
        return None
    kind, value = formula
    if kind == "match":
        return None
    if kind not in ("and", "or"):
        return frozenset([formula])
    parts = [keys_of(part) for part in value]
    known = [part for part in parts if part is not None]
    if kind == "or":
        return None if len(known) < len(parts) else frozenset[Formula]().union(*known)
    return min(known, key=_cost) if known else None


def _cost(keys: frozenset[Formula]) -> tuple[int, int]:
    """Looking up a word is cheap; few and long conditions are met by few texts."""
    shortest = min(len(value) if kind in ("word", "name") else min(map(len, value)) for kind, value in keys)
    searched = sum(kind in ("some", "any") for kind, _ in keys)
    return 4 * searched + len(keys), -shortest

"""Which reading of a block semgrep will understand: told by tree-sitter's parsers before semgrep is asked.

A reading that semgrep does not understand costs as much as one that it does, and half of the blocks from chats need a
repair. Tree-sitter's grammars, many of which semgrep uses itself, agree with it on nineteen blocks in twenty about
whether a reading is whole (measured on 937 snippets of CyberSecEval and on the cases of our rules, cut and with stray
signs), in a few tenths of a millisecond. They only say what is tried: what counts is what semgrep understands.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from guardrail.shield.report import is_scrap
from guardrail.shield.targets import LANGUAGES, Readings, Target

if TYPE_CHECKING:
    from ast_grep_py import SgNode

__all__ = ["Choice", "choose"]

_GRAMMARS = LANGUAGES.keys() - {"dockerfile"}
_MOST_CHARS = 5000  # of a block; a reading of so many takes a millisecond or two, and there are up to 16
_NEAREST = 3  # readings that are scanned beside the plain one where none is whole: their findings count
_MOST_SCRAPS = 4


class Choice(NamedTuple):
    """The readings to scan.

    Attributes:
        targets: At least one, likeliest first.
        is_told: Whether a parser looked at them; then a block of which semgrep understands none is not looked at again.
    """

    targets: Sequence[Target]
    is_told: bool


def choose(readings: Sequence[Target]) -> Choice:
    """Puts the reading first that a parser understands; where it understands none, keeps those nearest to it.

    Where all that a parser does not understand is too little to hold a weakness, a reading without it comes first.

    Args:
        readings: The plain one and its variants. Readings that prove nothing until others were scanned, and those in
            languages without a grammar, stay as they are.
    """
    plain = readings[0]
    has_grammar = plain.language in _GRAMMARS and not _is_page(plain)
    if not plain.proves or len(plain.body) > _MOST_CHARS or not has_grammar:
        return Choice(readings, is_told=False)
    found = _errors(plain)
    if not found:  # whole, or no parser is there
        return Choice(readings, is_told=False)
    errors = [found]
    for reading in islice(readings, 1, None):
        found = _errors(reading) if reading.proves else None
        if found is None:
            return Choice(readings, is_told=False)
        if not found:
            return Choice(Readings(_led_by([*_before(reading, plain), reading], readings)), is_told=False)
        errors.append(found)
    nearest = sorted(range(1, len(readings)), key=lambda at: (len(errors[at]), at))[:_NEAREST]
    kept = [0, *sorted(nearest)]
    chosen = [readings[at] for at in kept]
    for at in kept:
        if (cleared := _clear(readings[at], errors[at])) is not None:
            chosen = list(_led_by([*_before(readings[at], plain), cleared], chosen))
            break
    return Choice(chosen, is_told=True)


def _before(reading: Target, plain: Target) -> list[Target]:
    """What is scanned before a reading: one that blanks lines may talk a finding away."""
    return [] if reading.body == plain.body else [plain]


def _led_by(first: Sequence[Target], targets: Iterable[Target]) -> Iterator[Target]:
    names = {target.name for target in first}
    yield from first
    yield from (target for target in targets if target.name not in names)


def _is_page(plain: Target) -> bool:
    """Whether it is a page with PHP in it; the grammar knows PHP alone."""
    return plain.language == "php" and ("?>" in plain.body or plain.body.lstrip().startswith("<"))


def _errors(reading: Target) -> list[SgNode] | None:
    try:
        from ast_grep_py import SgRoot
    except ImportError:
        return None
    return SgRoot(reading.text, reading.language).root().find_all(kind="ERROR")


def _clear(reading: Target, errors: Sequence[SgNode]) -> Target | None:
    """Blanks what a parser does not understand; None where that may hold a weakness, or does not make it whole."""
    if len(errors) > _MOST_SCRAPS:
        return None
    body, shift = reading.body, len(reading.prefix)
    for error in errors:
        text, start = error.text(), error.range().start.index - shift
        if not is_scrap(text) or start < 0 or reading.body[start : start + len(text)] != text:
            return None
        body = body[:start] + " " * len(text) + body[start + len(text) :]
    cleared = replace(reading, name=f"b{reading.name}", body=body)
    return None if _errors(cleared) else cleared

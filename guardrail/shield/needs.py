"""What a rule cannot match without, drawn from the rule itself: names and texts of its patterns and expressions.

A pattern's names stand in what it matches, and so do the words of its fixed strings. What is bound to a metavariable
stands in the text, so an expression that it has to match tells more. What this misses, the rule's author can state:
``metadata.needs`` lists texts of which one has to be there, compared without case; more than one such list, and each
has to give one. ``metadata.needs-match`` lists expressions of RE2, each of which has to be found; in them
``(?#comment)`` stands for a comment of C, and ``(?#gap)`` for the white space and comments that may part two tokens;
``(?#hash-gap)`` is the same in Python, with the dots of a pasted session.

Only what is plainly necessary counts: nothing of ``pattern-not``, no keyword and no type, for which a pattern also
takes other spellings.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from guardrail.shield.formulas import Formula, all_of, any_of, literal
from guardrail.shield.literals import required_by

__all__ = ["expressions_of", "needs_of"]

_COMMENT = r"//[^\n]*|/\*(?s:.*?)\*/"
_SHORTHANDS = {
    "(?#gap)": rf"(?:\s|{_COMMENT})*",
    "(?#comment)": _COMMENT,
    "(?#hash-gap)": r"[\s\\]*((#[^\n]*|\.\.\.)[\s\\]*)*",
}


def needs_of(rule: Mapping[str, Any]) -> Formula:
    """Returns a formula that every text meets in which the rule matches.

    Args:
        rule: As it stands in its YAML file.
    """
    stated: list[Formula] = [
        ("any", tuple(sorted(map(str.casefold, texts)))) for texts in rule["metadata"].get("needs", ())
    ]
    stated += [("match", expression) for expression in expressions_of(rule)]
    if rule.get("mode", "search") == "taint":
        sides = [rule.get("pattern-sources"), rule.get("pattern-sinks")]
        return all_of([*stated, *(any_of(map(_of_item, side)) for side in sides if isinstance(side, list))])
    return all_of([*stated, _of_item(rule)])


def expressions_of(rule: Mapping[str, Any]) -> list[str]:
    """Returns the expressions of ``metadata.needs-match`` as RE2 reads them."""
    expressions = [str(expression) for expression in rule["metadata"].get("needs-match", ())]
    for short, long in _SHORTHANDS.items():
        expressions = [expression.replace(short, long) for expression in expressions]
    return expressions


def _of_item(item: Any) -> Formula:
    """Returns what an item of a rule needs; everything in it has to hold."""
    if not isinstance(item, Mapping):
        return True
    parts: list[Formula] = []
    for key, value in item.items():
        if key in ("pattern", "pattern-inside") and isinstance(value, str):
            parts.append(_of_pattern(value))
        elif key == "patterns" and isinstance(value, list):
            parts += map(_of_item, value)
        elif key == "pattern-either" and isinstance(value, list):
            parts.append(any_of(map(_of_item, value)))
        elif key == "pattern-regex" and isinstance(value, str):
            parts.append(required_by(value))
        elif key == "metavariable-regex" and isinstance(value, Mapping) and not value.get("constant-propagation"):
            parts.append(required_by(str(value.get("regex"))))
        elif key == "metavariable-pattern" and isinstance(value, Mapping) and "language" not in value:
            parts.append(_of_item(value))
    return all_of(parts)


_STRING = re.compile(r"""\"(?:[^"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)*'|`[^`]*`""")
_NAME = re.compile(r"(?<![\w$#])([A-Za-z_]\w{2,})(?![\w$])(\s*\()?")
_STRING_WORD = re.compile(r"[A-Za-z_]\w{2,}")
# Of all languages together: keywords, types, and names that a pattern also finds where they are left out.
_NOT_NECESSARY = frozenset(
    """
    abstract and any array as assert assert_eq async auto await begin bool boolean break byte case catch catch_unwind
    chan char class const const_cast constructor continue decltype def default defer defined del delete dict do done
    double dynamic dynamic_cast echo elif else elseif elsif empty end ensure enum esac exit explicit export extends
    extern external false fi final finally float float32 float64 fn for foreach friend from fun func function get
    global go goto if implements implicit import in infer init inline inout instanceof int int16 int32 int64 int8
    interface internal is isize isset java javax lambda lateinit let list long match mod module mut mutable namespace
    new nil noexcept none not null nullptr operator or override package partial pass print private protected pub
    public raise readonly ref register reinterpret_cast require rescue return rune sealed self set short signed size_t
    sizeof static static_cast std str string struct subscript super suspend switch synchronized system then this throw
    throws trait true try type typedef typename typeof uint uint16 uint32 uint64 uint8 uintptr undefined union unless
    unsafe unset unsigned until use using usize val var virtual void volatile wchar_t when where while with xor yield
    """.split()  # noqa: SIM905  # as it can be read
)
# The same before a parenthesis, where keywords are fewer and a type or a namespace is a function.
_NO_CALLS = frozenset(
    """
    and array assert assert_eq async await begin case catch catch_unwind class const_cast constructor def defer
    defined del delete do dynamic_cast echo elif else elseif elsif empty end ensure exit fn for foreach from fun func
    function if import in init instanceof int is isset lambda let list match new not or print raise reinterpret_cast
    require rescue return self sizeof static_cast super switch synchronized then this throw try typeof unless unset
    until using var when where while with xor yield
    """.split()  # noqa: SIM905
)
_METAVARIABLE = re.compile(r"\$[A-Z_]|\$\.\.\.")
_HEREDOC = re.compile(r"<<[-~]?[\"'A-Z]")


def _of_pattern(pattern: str) -> Formula:
    """Returns the names and the words of fixed strings in a pattern, and ``==`` or ``!=`` where it compares."""
    bare = _STRING.sub('""', pattern)
    if "//" in bare or "#" in bare or _HEREDOC.search(bare):
        return True
    found = ((name.casefold(), _NO_CALLS if call else _NOT_NECESSARY) for name, call in _NAME.findall(bare))
    names = {name for name, unnecessary in found if name not in unnecessary}
    signs = [sign for sign in ("==", "!=") if sign in bare]
    return all_of(
        [
            *(literal(name, is_case_sensitive=False, is_word=True) for name in sorted(names)),
            *(literal(sign) for sign in signs),
            *_of_strings(pattern),
        ]
    )


def _of_strings(pattern: str) -> Iterator[Formula]:
    """Yields what the strings in a pattern need, word by word: code may put a string together from pieces."""
    for found in _STRING.findall(pattern):
        inner = found[1:-1]
        if inner.startswith("=~/"):
            yield required_by(inner[3:].rpartition("/")[0])
        elif not _METAVARIABLE.search(inner) and "..." not in inner and "\\" not in inner:
            for word in _STRING_WORD.findall(inner):
                yield literal(word, is_case_sensitive=False)

"""Which rules can match a text at all: what a rule must find in it, tested by substring search before semgrep runs.

Semgrep itself knows what a file must hold for a rule to match it and prints it: ``semgrep-core -prefilter_of_rules``
gives, for each rule, a formula over identifiers. It gives none where one alternative of a rule has no identifier; so
another formula is drawn from the rule itself: names that are called or selected in its patterns, comparisons, and the
literals that its ``metavariable-regex`` and ``pattern-regex`` cannot do without, since what a metavariable is bound to
stands in the text. What that misses, the rule's author can state: ``metadata.needs`` lists texts of which one has to be
there, compared without case; more than one such list, and each has to give one.

A formula is a *necessary* condition. Where nothing is known of a rule, or of a part of one, it counts as met; so a
block without a candidate is a block in which no rule can match, however it is parsed.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guardrail.errors import ScanError
from guardrail.shield.literals import required_literals
from guardrail.shield.oneshot import kill_group, make_environment
from guardrail.shield.rulebook import Rulebook

__all__ = ["Gate"]

_TIMEOUT_S = 60.0

# A formula: True; ("word", text); ("some", texts): one of them; ("any", casefolded texts): one of them in whatever
# case; ("and" | "or", formulas).
Formula = Any


@dataclass(frozen=True, slots=True)
class _Entry:
    """A rule's formula, and the texts at least one of which it needs; no such text: always a candidate."""

    rule_id: str
    formula: Formula
    keys: frozenset[Formula]


class Gate:
    """Tells the rules that can match a text from those that cannot.

    Args:
        formulas: A formula for each rule; a rule that is missing is always a candidate.
        rulebook: The rules.
    """

    def __init__(self, formulas: Mapping[str, Formula], rulebook: Rulebook) -> None:
        self._always: dict[str, list[str]] = {}
        self._by_key: dict[str, dict[Formula, list[_Entry]]] = {}
        for rule in rulebook.rules.values():
            formula = formulas.get(rule.id, True)
            keys = _keys(formula)
            for language in rule.languages:
                if keys is None:
                    self._always.setdefault(language, []).append(rule.id)
                    continue
                entry = _Entry(rule.id, formula, keys)
                table = self._by_key.setdefault(language, {})
                for key in keys:
                    table.setdefault(key, []).append(entry)

    @classmethod
    def load(cls, core: Path, rulebook: Rulebook) -> Gate:
        """Asks semgrep for the formulas of all rules; takes about a second.

        Raises:
            ScanError: If semgrep gives none.
        """
        languages = {language for rule in rulebook.rules.values() for language in rule.languages}
        try:
            with tempfile.TemporaryDirectory(prefix="guardrail-gate-") as folder:
                (Path(folder) / "rules.json").write_bytes(rulebook.for_semgrep(languages))
                process = subprocess.Popen(
                    ["semgrep-core", "-prefilter_of_rules", "rules.json"],  # noqa: S607  # a name, not what is run
                    executable=core,
                    cwd=folder,
                    env=make_environment(Path(folder)),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
                try:
                    output, _ = process.communicate(timeout=_TIMEOUT_S)
                finally:
                    kill_group(process)
            given = {entry["rule_id"]: _read(entry["filter"]) for entry in json.loads(output)}
        except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError, IndexError) as exc:
            raise ScanError(f"expected formulas of {len(rulebook.rules)} rules, got {type(exc).__name__}") from exc
        drawn = {rule.id: _of_rule(rule.source) for rule in rulebook.rules.values()}
        return cls({name: _all_of([given.get(name, True), formula]) for name, formula in drawn.items()}, rulebook)

    def candidates(self, text: str, languages: Iterable[str]) -> list[str]:
        """Returns the ids of the rules that can match a text, in no particular order.

        Args:
            text: Code as semgrep is to read it.
            languages: In semgrep's names.
        """
        found: list[str] = []
        folded = text.casefold()
        for language in languages:
            found += self._always.get(language, ())
            tested: set[str] = set()
            for key, entries in self._by_key.get(language, {}).items():
                if _holds(key, text, folded):
                    for entry in entries:
                        if entry.rule_id not in tested:
                            tested.add(entry.rule_id)
                            if _holds(entry.formula, text, folded):
                                found.append(entry.rule_id)
        return found


def _holds(formula: Formula, text: str, folded: str) -> bool:
    if formula is True:
        return True
    kind, value = formula
    if kind == "word":
        return value in text
    if kind == "some":
        return any(literal in text for literal in value)
    if kind == "any":
        return any(literal in folded for literal in value)
    test = all if kind == "and" else any
    return test(_holds(part, text, folded) for part in value)


def _keys(formula: Formula) -> frozenset[Formula] | None:
    """Returns single conditions of which one at least is met where the formula is; None where there are no such."""
    if formula is True:
        return None
    kind, value = formula
    if kind in ("word", "some", "any"):
        return frozenset([formula])
    parts = [_keys(part) for part in value]
    if kind == "or":
        return None if None in parts else frozenset[Formula]().union(*(part for part in parts if part is not None))
    known = [part for part in parts if part is not None]
    return min(known, key=_cost) if known else None


def _cost(keys: frozenset[Formula]) -> tuple[int, int]:
    """Few and long conditions are met by few texts."""
    shortest = min(len(value) if kind == "word" else min(map(len, value)) for kind, value in keys)
    return len(keys), -shortest


def _all_of(formulas: Iterable[Formula]) -> Formula:
    parts = tuple(dict.fromkeys(formula for formula in formulas if formula is not True))
    return ("and", parts) if len(parts) > 1 else parts[0] if parts else True


def _any_of(formulas: Iterable[Formula]) -> Formula:
    parts = tuple(dict.fromkeys(formulas))
    if not parts or True in parts:
        return True
    return ("or", parts) if len(parts) > 1 else parts[0]


def _of_expression(pattern: Any) -> Formula:
    found = required_literals(pattern) if isinstance(pattern, str) else None
    return True if found is None else ("some" if found[1] else "any", tuple(sorted(found[0])))


# -- semgrep's formulas: "None" | ["Some", formula]; formula: ["And" | "Or", [formula]] | ["Pred", predicate];
# predicate: ["Idents", [text]] | ["Regexp", expression]


def _read(given: Any) -> Formula:
    return True if given == "None" else _read_formula(given[1])


def _read_formula(given: Any) -> Formula:
    kind, value = given
    if kind == "And":
        return _all_of(map(_read_formula, value))
    if kind == "Or":
        return _any_of(map(_read_formula, value))
    if kind != "Pred":
        return True
    kind, value = value
    if kind == "Idents":
        return _all_of(("word", str(word)) for word in value)
    return _of_expression(value)


# -- formulas drawn from the rule itself, of the parts that are plainly necessary


def _of_rule(source: Mapping[str, Any]) -> Formula:
    stated = [("any", tuple(sorted(map(str.casefold, texts)))) for texts in source["metadata"].get("needs", ())]
    if source.get("mode", "search") == "taint":
        sides = [source.get("pattern-sources"), source.get("pattern-sinks")]
        return _all_of([*stated, *(_any_of(map(_of_item, side)) for side in sides if isinstance(side, list))])
    return _all_of([*stated, _of_item(source)])


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
            parts.append(_any_of(map(_of_item, value)))
        elif key == "pattern-regex":
            parts.append(_of_expression(value))
        elif key == "metavariable-regex" and isinstance(value, Mapping) and not value.get("constant-propagation"):
            parts.append(_of_expression(value.get("regex")))
        elif key == "metavariable-pattern" and isinstance(value, Mapping) and "language" not in value:
            parts.append(_of_item(value))
    return _all_of(parts)


_STRING = re.compile(r"""\"(?:[^"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)*'|`[^`]*`""")
_NAME = re.compile(r"(?<![\w$.@#])([A-Za-z_]\w{2,})(?=\()|(?<=[\w)\]]\.)([A-Za-z_]\w{2,})(?![\w$])")
_KEYWORDS = frozenset(
    [
        "and",
        "array",
        "as",
        "assert",
        "async",
        "await",
        "case",
        "catch",
        "catch_unwind",
        "const",
        "def",
        "default",
        "defer",
        "defined",
        "del",
        "delete",
        "do",
        "elif",
        "else",
        "elseif",
        "empty",
        "end",
        "ensure",
        "eval",
        "exit",
        "fn",
        "for",
        "foreach",
        "fun",
        "func",
        "function",
        "if",
        "in",
        "init",
        "is",
        "isset",
        "lambda",
        "let",
        "list",
        "match",
        "new",
        "not",
        "or",
        "print",
        "raise",
        "require",
        "rescue",
        "return",
        "select",
        "self",
        "sizeof",
        "subscript",
        "super",
        "switch",
        "synchronized",
        "then",
        "this",
        "throw",
        "try",
        "typeof",
        "unless",
        "unset",
        "until",
        "using",
        "var",
        "void",
        "when",
        "while",
        "with",
        "yield",
    ]
)


def _of_pattern(pattern: str) -> Formula:
    """Returns the names that a pattern calls or selects, and ``==`` or ``!=`` where it compares."""
    bare = _STRING.sub('""', pattern)
    if "//" in bare or "<<" in bare or "#" in bare:
        return True
    names = {name for pair in _NAME.findall(bare) for name in pair if name and name not in _KEYWORDS}
    signs = [sign for sign in ("==", "!=") if sign in bare]
    return _all_of(("any", (text.casefold(),)) for text in [*sorted(names), *signs])

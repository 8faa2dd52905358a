"""Which rules can match a text at all: what a rule must find in it, looked up before semgrep runs.

Semgrep itself knows what a file must hold for a rule to match it and prints it: ``semgrep-core -prefilter_of_rules``
gives, for each rule, a formula over identifiers. It gives none where one alternative of a rule has no identifier; so
another formula is drawn from the rule itself (:mod:`guardrail.shield.needs`).

A formula is a *necessary* condition. Where nothing is known of a rule, or of a part of one, it counts as met; so a
block without a candidate is a block in which no rule can match, however it is parsed.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guardrail.errors import ScanError
from guardrail.shield.formulas import Formula, TextSet, View, all_of, any_of, holds, keys_of, literal
from guardrail.shield.literals import required_by
from guardrail.shield.needs import needs_of
from guardrail.shield.oneshot import kill_group, make_environment
from guardrail.shield.rulebook import Rulebook

__all__ = ["Gate"]

_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class _Entry:
    """A rule and its formula."""

    rule_id: str
    formula: Formula


class _Index:
    """The rules of one language, by what they need: words are looked up, other texts searched for."""

    def __init__(self, entries: Iterable[_Entry]) -> None:
        self._unkeyed: list[_Entry] = []
        self._words: dict[str, list[_Entry]] = {}
        self._names: dict[str, list[_Entry]] = {}
        self._texts: dict[str, list[_Entry]] = {}
        self._folded: dict[str, list[_Entry]] = {}
        for entry in entries:
            self._add(entry)
        self._text_set, self._folded_set = TextSet(self._texts), TextSet(self._folded)

    def _add(self, entry: _Entry) -> None:
        """Adds a rule under each of its keys."""
        keys = keys_of(entry.formula)
        if keys is None:
            self._unkeyed.append(entry)
            return
        tables = {"word": self._words, "name": self._names, "some": self._texts, "any": self._folded}
        for kind, value in keys:
            for text in (value,) if kind in ("word", "name") else value:
                tables[kind].setdefault(text, []).append(entry)

    def candidates(self, view: View) -> set[str]:
        """Returns the rules whose formula is met."""
        met = [self._words[word] for word in view.words & self._words.keys()]
        met += [self._names[name] for name in view.names & self._names.keys()]
        met += [self._texts[text] for text in self._text_set.found_in(view.text)]
        met += [self._folded[text] for text in self._folded_set.found_in(view.folded)]
        tried = {entry.rule_id: entry.formula for entries in (self._unkeyed, *met) for entry in entries}
        return {rule_id for rule_id, formula in tried.items() if holds(formula, view)}


class Gate:
    """Tells the rules that can match a text from those that cannot.

    Args:
        formulas: A formula for each rule; a rule that is missing is always a candidate.
        rulebook: The rules.
    """

    def __init__(self, formulas: Mapping[str, Formula], rulebook: Rulebook) -> None:
        entries: dict[str, list[_Entry]] = {}
        for rule in rulebook.rules.values():
            for language in rule.languages:
                entries.setdefault(language, []).append(_Entry(rule.id, formulas.get(rule.id, True)))
        self._languages = {language: _Index(rules) for language, rules in entries.items()}

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
        drawn = {rule.id: needs_of(rule.source) for rule in rulebook.rules.values()}
        return cls({name: all_of([given.get(name, True), formula]) for name, formula in drawn.items()}, rulebook)

    def candidates(self, text: str, languages: Iterable[str]) -> set[str]:
        """Returns the ids of the rules that can match a text.

        Args:
            text: Code as semgrep is to read it.
            languages: In semgrep's names.
        """
        view = View(text)
        indexes = [index for language in languages if (index := self._languages.get(language)) is not None]
        return set[str]().union(*(index.candidates(view) for index in indexes))


# -- semgrep's formulas: "None" | ["Some", formula]; formula: ["And" | "Or", [formula]] | ["Pred", predicate];
# predicate: ["Idents", [text]] | ["Regexp", expression]


def _read(given: Any) -> Formula:
    return True if given == "None" else _read_formula(given[1])


def _read_formula(given: Any) -> Formula:
    kind, value = given
    if kind == "And":
        return all_of(map(_read_formula, value))
    if kind == "Or":
        return any_of(map(_read_formula, value))
    if kind != "Pred":
        return True
    kind, value = value
    if kind == "Idents":
        return all_of(_named(str(word)) for word in value)
    return required_by(value)


# PHP's two names for one thing: a pattern with either finds both, and semgrep asks for the first.
_ALSO = {"exit": "die"}


def _named(word: str) -> Formula:
    names = [word, _ALSO[word]] if word in _ALSO else [word]
    return any_of(literal(name, is_word=True) for name in names)

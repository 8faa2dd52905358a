"""Results as JSON text, quickly: ``decision_json(d) == json.dumps(d.to_dict(), ensure_ascii=False)``, to the byte.

A scan writes a decision for each row, and nearly all are alike but for their numbers. So the text is put together from
pieces, of which those about sources, policies and categories are kept; what is rare goes through ``json``. A test holds
the two ways to the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from pydantic_core import to_json

from guardrail.taxonomy import HazardCategory
from guardrail.verdict import Action, Decision, Outcome, Rail, Source, Verdict

__all__ = ["decision_json", "dumps", "place_json"]


def _other(value: object) -> str:
    # A cell of Parquet that holds bytes which are no text.
    return f"{len(value)} bytes" if isinstance(value, bytes) else str(value)


dumps = json.JSONEncoder(ensure_ascii=False, default=_other).encode
"""``json.dumps`` for results: text as it is; what JSON does not know as text."""

# ``Enum.value`` is a call, and there are a dozen for each verdict.
_CATEGORY = {category: f'"{category.value}"' for category in HazardCategory}
_WORD: dict[Action | Outcome | Rail, str] = {
    member: f'"{member.value}"' for kind in (Action, Outcome, Rail) for member in kind
}
_float = float.__repr__  # what ``json`` uses, for numpy's too
_FLOATS = {float}
_NOTHING = '"categories": [], "findings": [], "unscanned": [], "detail": ""}'  # the end of most verdicts
_SLOT = "\0"  # stands in no JSON text
_POSITIONAL = 1e-4  # ``repr`` writes less than this with an exponent, and pydantic not yet


def decision_json(decision: Decision) -> str:
    """Returns a decision as JSON text."""
    verdicts = decision.verdicts
    numbers = [_numbers(verdict) for verdict in verdicts]
    if len(verdicts) != 1 or decision.reasons:
        return _put_together(decision, numbers)
    verdict = verdicts[0]
    if verdict.categories or verdict.findings or verdict.unscanned or verdict.detail:
        return _put_together(decision, numbers)
    # Nothing but numbers: nine of ten rows of a common log.
    ((probability, scores),) = numbers
    before, between, middle, between, after = _frame(
        decision.action, decision.rail, decision.policy_name, decision.policy_hash, verdict.outcome, verdict.source
    )
    return f"{before}{probability}{between}{scores}{middle}{probability}{between}{scores}{after}"


@lru_cache(maxsize=64)
def _frame(action: Action, rail: Rail, name: str, policy_hash: str, outcome: Outcome, source: Source) -> list[str]:
    """The text of a decision on one verdict without anything to say, in the pieces between its numbers."""
    decision = Decision(action, rail, (Verdict(outcome, source),), (), name, policy_hash)
    return _put_together(decision, [(_SLOT, _SLOT)]).split(_SLOT)


def _put_together(decision: Decision, numbers: list[tuple[str, str]]) -> str:
    """A decision of which the numbers of each verdict are text already."""
    verdicts = decision.verdicts
    with_probability = [text for text, _ in numbers if text != "null"]
    with_scores = [text for _, text in numbers if text != "{}"]
    if len(with_probability) > 1 or len(with_scores) > 1:
        probability, scores = _number(decision.unsafe_probability), _scores(decision.scores)
    else:
        probability, scores = (with_probability or ["null"])[0], (with_scores or ["{}"])[0]
    named = [verdict for verdict in verdicts if verdict.categories]
    found = [verdict for verdict in verdicts if verdict.findings]
    return (
        f"{_head(decision.action, decision.outcome, decision.rail)}"
        f"{_categories(decision.categories) if named else '[]'}, "
        f'"unsafe_probability": {probability}, "scores": {scores}, '
        f'"findings": {_dicts(decision.findings) if found else "[]"}, "reasons": {_dicts(decision.reasons)}, '
        f'"policy": {_policy(decision.policy_name, decision.policy_hash)}, '
        f'"verdicts": [{", ".join(map(_verdict, verdicts, numbers))}]}}'
    )


def _verdict(verdict: Verdict, numbers: tuple[str, str]) -> str:
    rest = _NOTHING
    if verdict.categories or verdict.findings or verdict.unscanned or verdict.detail:
        rest = (
            f'"categories": {_categories(verdict.categories)}, "findings": {_dicts(verdict.findings)}, '
            f'"unscanned": {dumps(list(verdict.unscanned))}, "detail": {dumps(verdict.detail)}}}'
        )
    return (
        f'{{"outcome": {_WORD[verdict.outcome]}, {_source(verdict.source)}, '
        f'"unsafe_probability": {numbers[0]}, "scores": {numbers[1]}, {rest}'
    )


def _numbers(verdict: Verdict) -> tuple[str, str]:
    """A verdict's probability and scores."""
    probability, scores = verdict.unsafe_probability, verdict.scores
    if scores and type(probability) is float:
        texts = _floats([*scores.values(), probability])
        last = texts.pop()
        return last, _named(tuple(scores), texts)
    return _number(probability), _scores(scores)


def _scores(scores: Mapping[HazardCategory, float]) -> str:
    return _named(tuple(scores), _floats(list(scores.values()))) if scores else "{}"


def _named(categories: tuple[HazardCategory, ...], texts: list[str]) -> str:
    pieces = _between(categories).copy()
    pieces[1::2] = texts
    return "".join(pieces)


@lru_cache(maxsize=64)
def _between(categories: tuple[HazardCategory, ...]) -> list[str]:
    """What stands around the numbers of an object of scores, with a place for each number between two of them."""
    pieces = [f", {_CATEGORY[category]}: " for category in categories]
    pieces[0] = "{" + pieces[0][2:]
    return [*(part for piece in pieces for part in (piece, "")), "}"]


def _floats(values: list[float]) -> list[str]:
    """The text of numbers in 0..1: what ``repr`` gives, which takes a microsecond each, in a tenth of the time."""
    if set(map(type, values)) != _FLOATS:  # numpy's, or an int of a plug-in
        return [_float(value) if isinstance(value, float) else dumps(value) for value in values]
    texts = to_json(values)[1:-1].decode().split(",")
    if min(values) < _POSITIONAL:
        for place, value in enumerate(values):
            if value < _POSITIONAL:
                texts[place] = _float(value)
    return texts


def _number(value: float | None) -> str:
    return _floats([value])[0] if value is not None else "null"


@lru_cache(maxsize=64)
def _head(action: Action, outcome: Outcome, rail: Rail) -> str:
    return f'{{"decision": {_WORD[action]}, "outcome": {_WORD[outcome]}, "rail": {_WORD[rail]}, "categories": '


def _categories(categories: Iterable[HazardCategory]) -> str:
    return f"[{', '.join([_CATEGORY[category] for category in categories])}]"


def _dicts(values: Iterable[Any]) -> str:
    return dumps([value.to_dict() for value in values]) if values else "[]"


def place_json(row_id: Any, file: str, line: int, turn: int, content_hash: str) -> str:
    """Returns where a result is from as the first members of a JSON object, its bracket not closed."""
    name = str(row_id) if type(row_id) is int else dumps(row_id)
    return f'{{"id": {name}, "file": {_text(file)}, "line": {line}, "turn": {turn}, "hash": "{content_hash}"'


@lru_cache(maxsize=64)
def _text(text: str) -> str:
    return dumps(text)


@lru_cache(maxsize=64)
def _source(source: Source) -> str:
    return dumps({"model": source.model, "revision": source.revision, "template_hash": source.template_hash})[1:-1]


@lru_cache(maxsize=64)
def _policy(name: str, policy_hash: str) -> str:
    return dumps({"name": name, "hash": policy_hash})

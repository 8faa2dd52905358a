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
_SCORE = {category: f'"{category.value}": ' for category in HazardCategory}
_WORD: dict[Action | Outcome | Rail, str] = {
    member: f'"{member.value}"' for kind in (Action, Outcome, Rail) for member in kind
}
_float = float.__repr__  # what ``json`` uses, for numpy's too


def decision_json(decision: Decision) -> str:
    """Returns a decision as JSON text."""
    verdicts = decision.verdicts
    scores = [_scores(verdict.scores) for verdict in verdicts]
    with_scores = [text for text in scores if text != "{}"]
    all_scores = with_scores[0] if with_scores else "{}"
    if len(with_scores) > 1:
        all_scores = _scores(decision.scores)
    named = any(verdict.categories for verdict in verdicts)
    return (
        f'{{"decision": {_WORD[decision.action]}, "outcome": {_WORD[decision.outcome]}, '
        f'"rail": {_WORD[decision.rail]}, "categories": {_categories(decision.categories) if named else "[]"}, '
        f'"unsafe_probability": {_number(decision.unsafe_probability)}, "scores": {all_scores}, '
        f'"findings": {_dicts(decision.findings)}, "reasons": {_dicts(decision.reasons)}, '
        f'"policy": {_policy(decision.policy_name, decision.policy_hash)}, '
        f'"verdicts": [{", ".join(map(_verdict, verdicts, scores))}]}}'
    )


def _verdict(verdict: Verdict, scores: str) -> str:
    unscanned = dumps(list(verdict.unscanned)) if verdict.unscanned else "[]"
    detail = dumps(verdict.detail) if verdict.detail else '""'
    return (
        f'{{"outcome": {_WORD[verdict.outcome]}, {_source(verdict.source)}, '
        f'"unsafe_probability": {_number(verdict.unsafe_probability)}, "scores": {scores}, '
        f'"categories": {_categories(verdict.categories)}, "findings": {_dicts(verdict.findings)}, '
        f'"unscanned": {unscanned}, "detail": {detail}}}'
    )


def _scores(scores: Mapping[HazardCategory, float]) -> str:
    try:
        return f"{{{', '.join([_SCORE[category] + _float(score) for category, score in scores.items()])}}}"
    except TypeError:  # an int, e.g. of a plug-in
        return dumps({category.value: score for category, score in scores.items()})


def _number(value: float | None) -> str:
    if value is None:
        return "null"
    return _float(value) if isinstance(value, float) else dumps(value)


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

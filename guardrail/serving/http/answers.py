"""Exchanges and decisions -> the JSON of OpenAI's API, with one field of our own: ``guardrail``.

A blocked exchange is an answer like any other, whose text is the policy's block message and whose ``finish_reason`` is
``content_filter``. The field ``guardrail`` has the decisions in the one form that all doors write
(:meth:`~guardrail.verdict.Decision.to_dict`); OpenAI's clients keep it as an extra attribute.

Source: OpenAI API reference, "The chat completion object", "The chat completion chunk object", "The moderation object".
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from guardrail.serving.http.backends import Usage
from guardrail.taxonomy import HazardCategory
from guardrail.verdict import Action, Decision, Exchange, ReasonKind

__all__ = ["DONE", "Answer", "encode", "event", "models_to_dict", "moderation_to_dict"]

DONE = b"data: [DONE]\n\n"
"""The last event of a stream."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What all parts of one answer say of it.

    Attributes:
        request_id: The request's id.
        model: What answered.
        created: Seconds since 1970.
    """

    request_id: str
    model: str
    created: int

    def completion(self, exchange: Exchange, *, finish_reason: str, usage: Usage | None) -> dict[str, Any]:
        """Returns the whole answer."""
        message = {"role": "assistant", "content": exchange.text, "refusal": None}
        choice = {
            "index": 0,
            "message": message,
            "finish_reason": _finish(exchange, finish_reason),
            "logprobs": None,
        }
        return {
            **self._head("chat.completion"),
            "choices": [choice],
            "usage": _usage(usage),
            "guardrail": self._guardrail(exchange),
        }

    def first_chunk(self) -> dict[str, Any]:
        """Returns the first part of a stream, which names the role."""
        return self._chunk({"role": "assistant", "content": ""}, None)

    def text_chunk(self, text: str) -> dict[str, Any]:
        """Returns a part with text."""
        return self._chunk({"content": text}, None)

    def last_chunk(self, exchange: Exchange, *, finish_reason: str) -> dict[str, Any]:
        """Returns the part that says how the answer ended."""
        return {**self._chunk({}, _finish(exchange, finish_reason)), "guardrail": self._guardrail(exchange)}

    def usage_chunk(self, usage: Usage | None) -> dict[str, Any]:
        """Returns the part with token counts, which has no choice."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": _usage(usage)}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": f"chatcmpl-{self.request_id}", "object": kind, "created": self.created, "model": self.model}

    def _chunk(self, delta: Mapping[str, str], finish_reason: str | None) -> dict[str, Any]:
        choice = {"index": 0, "delta": dict(delta), "finish_reason": finish_reason, "logprobs": None}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def _guardrail(self, exchange: Exchange) -> dict[str, Any]:
        return {
            "request_id": self.request_id,
            "is_blocked": exchange.is_blocked,
            "decision": exchange.decision.to_dict(),
            "prompt_decision": exchange.prompt_decision.to_dict(),
            "attempts": len(exchange.attempts),
        }


def event(data: Mapping[str, Any]) -> bytes:
    """Returns an event of a stream: one line, whatever counts as a line break where it is read."""
    return b"data: " + encode(data) + b"\n\n"


def encode(data: Mapping[str, Any]) -> bytes:
    """Returns JSON in ASCII, which holds half of a surrogate pair and U+2028, at which many readers split lines."""
    return json.dumps(data, ensure_ascii=True, separators=(",", ":")).encode("ascii")


def moderation_to_dict(decisions: Sequence[Decision], *, request_id: str, model: str) -> dict[str, Any]:
    """Returns the answer to a moderation request; result i belongs to text i."""
    return {
        "id": f"modr-{request_id}",
        "model": model,
        "results": [_moderation(decision) for decision in decisions],
        "guardrail": {"request_id": request_id},
    }


def _moderation(decision: Decision) -> dict[str, Any]:
    """``flagged`` says that the text may not be shown; a category is true where the policy minds it."""
    minded = {
        reason.subject
        for reason in decision.reasons
        if reason.kind is ReasonKind.HAZARD and reason.action is not Action.ALLOW
    }
    scores = decision.scores
    return {
        "flagged": not decision.action.releases,
        "categories": {category.value: category.value in minded for category in HazardCategory},
        # No score is no zero: null where nobody gave one.
        "category_scores": {category.value: scores.get(category) for category in HazardCategory},
        "category_applied_input_types": {category.value: ["text"] for category in HazardCategory},
        "guardrail": decision.to_dict(),
    }


def models_to_dict(model: str | None) -> dict[str, Any]:
    """Returns the list of models: the one that answers, if any does."""
    entry = {"id": model, "object": "model", "created": 0, "owned_by": "guardrail"}
    return {"object": "list", "data": [] if model is None else [entry]}


def _finish(exchange: Exchange, finish_reason: str) -> str:
    return "content_filter" if exchange.is_blocked else finish_reason


def _usage(usage: Usage | None) -> dict[str, int] | None:
    if usage is None:
        return None
    total = usage.prompt_tokens + usage.completion_tokens
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": total,
    }

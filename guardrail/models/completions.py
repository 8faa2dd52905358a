"""Bytes of a completions API -> the greedy answer, with the probabilities at each of its places.

Logprobs are read in the form of completions (``tokens``, ``top_logprobs``) and in that of chats (``content``), which
llama.cpp gives. What is wrong with an answer is said without quoting it. Source: OpenAI API reference, "Create
completion"; vLLM and llama.cpp server documentation.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from guardrail.errors import ClassificationError

__all__ = ["UNKNOWN", "Answer", "AnswerReader", "Place"]

UNKNOWN = -1
"""The token of a text that is that of several tokens, or of none."""

# What shares that add up to one may miss or exceed by rounding: servers compute them in float32.
_ROUNDING = 1e-6

# A logprob above zero by this much is none; below that it is rounding.
_MOST_LOGPROB = 1e-3

_TOKEN_ID = re.compile(r"token_id:([0-9]{1,9})")

_NO_LOGPROBS = (
    "no logprobs in the answer, so no probability: vLLM gives them with --max-logprobs 20 (or as many as asked for), "
    "the llama.cpp server by default; a server whose /v1/completions has none (TGI) cannot be used"
)


@dataclass(frozen=True, slots=True)
class Place:
    """What a server says of one place of its answer.

    Attributes:
        token: The token it wrote there, or :data:`UNKNOWN`.
        top: Tokens -> probability, of the most probable ones.
        bound: The most that a token outside ``top`` can have.
    """

    token: int
    top: Mapping[int, float]
    bound: float

    def share(self, token: int) -> float:
        """The probability of a token, or the most it can have."""
        return self.top.get(token, self.bound)


@dataclass(frozen=True, slots=True)
class Answer:
    """A greedy answer: its text, with ``…`` where it did not end in time, and its places."""

    text: str
    places: tuple[Place, ...]


class AnswerReader:
    """Reads the answers of one server.

    Args:
        name: The server, for errors.
        token_of: Text -> token, of the texts that one token alone has.
    """

    def __init__(self, name: str, token_of: Mapping[str, int]) -> None:
        self._name = name
        self._token_of = token_of

    def read(self, content: bytes, prompt_tokens: int) -> Answer:
        """Reads an answer to a prompt of so many tokens.

        Raises:
            ClassificationError: If it is none, holds no logprobs, or is one to a prompt of another length.
        """
        name = self._name
        try:
            answer: Any = json.loads(content)
        except (ValueError, RecursionError):
            # The cause would carry the text.
            raise ClassificationError(
                f"{name} answered {len(content)} bytes that are not JSON; is it a completions API?"
            ) from None
        choices = answer.get("choices") if isinstance(answer, dict) else None
        if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
            count = len(choices) if isinstance(choices, list) else "no list"
            raise ClassificationError(f"expected one choice from {name}, got {count}")
        choice = choices[0]
        text, reason = choice.get("text"), choice.get("finish_reason")
        if not isinstance(text, str):
            raise ClassificationError(f"expected text in choices[0].text from {name}, got {type(text).__name__}")
        if reason not in ("stop", "length"):
            raise ClassificationError(f"expected an answer that ended by itself or by its length from {name}")
        usage = answer.get("usage")
        counted = usage.get("prompt_tokens") if isinstance(usage, dict) else None
        if counted is not None and counted != prompt_tokens:
            raise ClassificationError(
                f"{name} did not read the {prompt_tokens} tokens that it was sent: it counts other ones; it cuts "
                "prompts, or its tokenizer is another one"
            )
        return Answer(text + ("…" if reason == "length" else ""), tuple(self._places(choice.get("logprobs"))))

    def _places(self, logprobs: object) -> list[Place]:
        """Reads logprobs in either form: that of completions, or that of chats."""
        rows: list[tuple[object, object]]
        if isinstance(logprobs, dict) and isinstance(content := logprobs.get("content"), list):
            rows = [(row, row.get("top_logprobs")) if isinstance(row, dict) else (None, None) for row in content]
        elif (
            isinstance(logprobs, dict)
            and isinstance(tokens := logprobs.get("tokens"), list)
            and isinstance(tops := logprobs.get("top_logprobs"), list)
            and len(tokens) == len(tops)
        ):
            rows = list(zip(tokens, tops, strict=True))
        else:
            raise ClassificationError(f"{self._name}: {_NO_LOGPROBS}")
        return [self._place(written, top) for written, top in rows]

    def _place(self, written: object, top: object) -> Place:
        if isinstance(top, dict):
            entries: list[tuple[object, object]] = list(top.items())
        elif isinstance(top, list):
            entries = [(entry, entry.get("logprob") if isinstance(entry, dict) else None) for entry in top]
        else:
            entries = []
        if not entries:
            raise ClassificationError(f"{self._name}: {_NO_LOGPROBS}")
        shares = [(self._token(token), self._share(logprob)) for token, logprob in entries]
        left = max(1.0 - sum(share for _, share in shares), 0.0) + _ROUNDING
        bound = min(left, min(share for _, share in shares))
        return Place(self._token(written), {token: share for token, share in shares if token != UNKNOWN}, bound)

    def _token(self, given: object) -> int:
        """Reads a token: by its number where the server gives it, else by its text."""
        if isinstance(given, dict):
            number = given.get("id")
            if isinstance(number, int) and not isinstance(number, bool):
                return number
            given = given.get("token")
        if not isinstance(given, str):
            raise ClassificationError(f"expected tokens as text in the logprobs of {self._name}")
        if match := _TOKEN_ID.fullmatch(given):  # vLLM's return_tokens_as_token_ids
            return int(match[1])
        return self._token_of.get(given, UNKNOWN)

    def _share(self, logprob: object) -> float:
        """Reads a logprob as a probability."""
        number = float(logprob) if isinstance(logprob, (int, float)) and not isinstance(logprob, bool) else math.nan
        if not number <= _MOST_LOGPROB:  # written so that what is no number is refused
            raise ClassificationError(f"expected logprobs of at most 0 from {self._name}, got another value")
        return math.exp(min(number, 0.0))

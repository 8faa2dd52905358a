r"""Llama Guard as a hazard classifier: conversations in, verdicts out, over any guard model.

::

    Conversation ─▶ fit to the window ─▶ GuardPrompt(s) ─▶ GuardModel.assess ─▶ strict reading ─▶ Verdict

**Fit.** The newest message is always whole. Where the conversation is longer than the model's window, its oldest
messages are left out first and ``detail`` says how many. A newest message that is too long by itself is judged without
context, in windows that overlap by a quarter, and the riskiest verdict stands.

**Reading.** Unsafe where ``unsafe_probability`` is at least 0.5 or the completion says so: where they disagree, the
riskier one counts and ``detail`` says that they did. A number outside 0..1, an unknown code, a completion outside the
grammar or a missing answer is an error. A code without a category among the eleven (Llama Guard 3's ``S5``, ``S13``
and ``S14``) is unsafe all the same; ``detail`` names it with the model's version.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from guardrail.errors import ClassificationError
from guardrail.prompt import GuardPromptRenderer, parse_completion
from guardrail.protocols import GuardModel
from guardrail.taxonomy import GuardVersion, HazardCategory, code_table
from guardrail.verdict import (
    Assessment,
    Conversation,
    GuardPrompt,
    Message,
    Outcome,
    Source,
    Verdict,
    riskiest,
)

__all__ = ["LlamaGuard", "TemplatedGuardModel"]

_UNSAFE_FROM = 0.5

# A windowed message's neighbours share this part of a window: more context at the seams than a sentence is long.
_OVERLAP = 0.25

# Below this many tokens for a message, a window is too small to judge anything in.
_LEAST_ROOM = 16

# A window's tokens, counted again by itself, can exceed those it was cut by; each try cuts by what was too much.
_FIT_TRIES = 8

_SURROGATE = re.compile("[\ud800-\udfff]")


class TemplatedGuardModel(GuardModel, Protocol):
    """A guard model that brings its prompt template and its tokenizer's measure. Thread-safe."""

    @property
    def source(self) -> Source:
        """Model id and revision."""
        ...

    @property
    def version(self) -> GuardVersion:
        """Whose codes it writes."""
        ...

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """The tokenizer's special tokens as text."""
        ...

    @property
    def max_prompt_tokens(self) -> int:
        """The longest prompt that it reads."""
        ...

    def apply_template(self, messages: list[dict[str, str]]) -> str:
        """Renders messages by the model's chat template, up to where the answer begins."""
        ...

    def count_tokens(self, prompt: GuardPrompt) -> int:
        """Returns how many tokens a prompt has."""
        ...

    def split(self, text: str, *, max_tokens: int, overlap: int) -> list[str]:
        """Cuts text into windows that cover it, in order; neighbours share ``overlap`` tokens."""
        ...

    def close(self) -> None:
        """Gives back what the model holds."""
        ...


class LlamaGuard:
    """Judges the last message of conversations by a guard model.

    Args:
        model: Llama Guard 2 or 3, wherever it runs.
        taxonomy: Replaces the categories in the prompt; the codes in it keep the meaning they have in the model's
            version.

    Raises:
        ConfigurationError: If the model's chat template cannot be used, or has no place for a taxonomy.
    """

    def __init__(self, model: TemplatedGuardModel, *, taxonomy: str | None = None) -> None:
        self._model = model
        self._codes: Mapping[str, HazardCategory | None] = code_table(model.version)
        self._renderer = GuardPromptRenderer(
            model.apply_template, special_tokens=model.special_tokens, taxonomy=taxonomy
        )
        self._source = replace(model.source, template_hash=self._renderer.template_hash)

    @property
    def source(self) -> Source:
        """Model id and revision, and the hash of the template with its taxonomy."""
        return self._source

    async def classify(self, conversations: Sequence[Conversation]) -> list[Verdict]:
        """Judges each conversation's last message; verdict i belongs to conversation i.

        Raises:
            ClassificationError: If any of them could not be judged.
            Overloaded: If the model's queue is full.
            Unavailable: If the model is closed or lost.
        """
        # Rendering and counting are work of the CPU: a long conversation would hold up the event loop.
        fitted = await asyncio.to_thread(lambda: [self._fit(conversation) for conversation in conversations])
        prompts = [prompt for windows in fitted for prompt in windows]
        assessments = iter(await self._assess(prompts))
        return [self._join([(prompt, next(assessments)) for prompt in windows]) for windows in fitted]

    def close(self) -> None:
        """Closes the model."""
        self._model.close()

    async def _assess(self, prompts: Sequence[GuardPrompt]) -> list[Assessment]:
        assessments = await self._model.assess(prompts) if prompts else []
        if len(assessments) != len(prompts):
            raise ClassificationError(
                f"expected {len(prompts)} assessments, got {len(assessments)} from {self._source}"
            )
        return assessments

    def _fit(self, conversation: Conversation) -> list[GuardPrompt]:
        """Renders a conversation: one prompt, or one for each window of its last message."""
        messages = conversation.messages
        for number, message in enumerate(messages, start=1):
            if found := _SURROGATE.search(message.content):
                raise ClassificationError(
                    f"message {number} of {len(messages)} is no text: a lone surrogate at offset {found.start()}"
                )
        prompt = self._renderer.render(conversation)
        if self._fits(prompt):
            return [prompt]
        # The longest end of the conversation that fits, by halving: the more messages, the more tokens.
        fitting, too_many, best = 0, len(messages), prompt
        while too_many - fitting > 1:
            middle = (fitting + too_many) // 2
            candidate = self._renderer.render(Conversation(messages[-middle:]))
            if self._fits(candidate):
                fitting, best = middle, candidate
            else:
                too_many = middle
        if fitting:
            return [_noted(best, _left_out(len(messages) - fitting))]
        context = [_left_out(len(messages) - 1)] if len(messages) > 1 else []
        windows = self._windows(conversation.last)
        return [_noted(w, *context, f"judged in {len(windows)} overlapping windows") for w in windows]

    def _windows(self, message: Message) -> list[GuardPrompt]:
        text = self._renderer.neutralise(message.content)
        frame = self._model.count_tokens(self._renderer.render(Conversation((replace(message, content=""),))))
        room = self._model.max_prompt_tokens - frame
        for _ in range(_FIT_TRIES):
            if room < _LEAST_ROOM:
                break
            parts = self._model.split(text, max_tokens=room, overlap=int(room * _OVERLAP))
            prompts = [self._renderer.render(Conversation((replace(message, content=part),))) for part in parts]
            excess = max(map(self._model.count_tokens, prompts)) - self._model.max_prompt_tokens
            if excess <= 0:
                return prompts
            room -= excess
        raise ClassificationError(
            f"cannot judge {len(text)} characters in windows: {self._source} reads {self._model.max_prompt_tokens} "
            f"tokens, of which the prompt without a message takes {frame}"
        )

    def _fits(self, prompt: GuardPrompt) -> bool:
        return self._model.count_tokens(prompt) <= self._model.max_prompt_tokens

    def _join(self, windows: list[tuple[GuardPrompt, Assessment]]) -> Verdict:
        verdict = riskiest(self._read(assessment) for _, assessment in windows)
        details = [detail for detail in (windows[0][0].detail, verdict.detail) if detail]
        # Windows of one batch report the same time, that of their batch: it is counted once.
        compute_ms = sum({assessment.timing.compute_ms for _, assessment in windows})
        return replace(verdict, detail="; ".join(details), timing=replace(verdict.timing, compute_ms=compute_ms))

    def _read(self, assessment: Assessment) -> Verdict:
        named = parse_completion(assessment.completion, codes=self._codes, source=str(self._source))
        p_unsafe = assessment.unsafe_probability
        wrong = [number for number in (p_unsafe, *assessment.scores.values()) if not _is_probability(number)]
        unknown = [code for code in assessment.scores if code not in self._codes]
        if wrong or unknown:
            raise ClassificationError(
                f"expected probabilities in 0..1 for codes of the model's table, got {len(wrong)} other numbers and "
                f"{len(unknown)} other codes from {self._source}"
            )
        scores: dict[HazardCategory, float] = {}
        for code, score in assessment.scores.items():
            category = self._codes[code]
            if category is not None:
                scores[category] = max(score, scores.get(category, 0.0))
        mapped = [category for code in named if (category := self._codes[code]) is not None]
        foreign = [code for code in named if self._codes[code] is None]
        details = []
        if foreign:
            details.append(f"{self._model.version.value} {','.join(foreign)} is outside the eleven categories")
        if bool(named) != (p_unsafe >= _UNSAFE_FROM):
            details.append(f"the completion {'names codes' if named else 'says safe'} at probability {p_unsafe:.3f}")
        return Verdict(
            Outcome.UNSAFE if named or p_unsafe >= _UNSAFE_FROM else Outcome.SAFE,
            self._source,
            scores={category: scores[category] for category in HazardCategory if category in scores},
            categories=tuple(sorted(dict.fromkeys(mapped), key=lambda category: -scores.get(category, 0.0))),
            unsafe_probability=p_unsafe,
            detail="; ".join(details),
            timing=assessment.timing,
        )


def _is_probability(number: float) -> bool:
    return isinstance(number, (int, float)) and math.isfinite(number) and 0.0 <= number <= 1.0


def _left_out(count: int) -> str:
    what = "1 older message" if count == 1 else f"{count} older messages"
    return f"{what} left out: the conversation is longer than the model's window"


def _noted(prompt: GuardPrompt, *notes: str) -> GuardPrompt:
    return replace(prompt, detail="; ".join(part for part in (prompt.detail, *notes) if part))

"""The seams: what a part must offer to be put in another's place.

Every method is a coroutine that may be awaited from any event loop, and does not block it. Parts raise
:class:`~guardrail.errors.GuardrailError` when they fail; the pipeline alone turns that into ``UNVERIFIED``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractContextManager
from enum import Enum
from typing import Protocol, runtime_checkable

from guardrail.errors import ScanError
from guardrail.verdict import Assessment, CodeBlock, Conversation, Decision, Finding, GuardPrompt, Source, Verdict

__all__ = [
    "CodeScanner",
    "Generator",
    "GuardModel",
    "HazardClassifier",
    "Observer",
    "Stage",
    "StageObserver",
    "StreamingGenerator",
]


class HazardClassifier(Protocol):
    """Judges the last message of conversations; verdict i belongs to conversation i."""

    @property
    def source(self) -> Source:
        """What answers: model id, revision, template hash."""
        ...

    async def classify(self, conversations: Sequence[Conversation]) -> list[Verdict]:
        """Judges each conversation's last message.

        Raises:
            ClassificationError: If any of them could not be judged.
        """
        ...


class GuardModel(Protocol):
    """Assesses rendered guard prompts; result i belongs to prompt i."""

    async def assess(self, prompts: Sequence[GuardPrompt]) -> list[Assessment]:
        """Assesses each prompt.

        Raises:
            ClassificationError: If any of them could not be assessed.
        """
        ...


class CodeScanner(Protocol):
    """Examines code blocks; the result at i belongs to block i, findings in order of their place in it."""

    async def scan(self, blocks: Sequence[CodeBlock]) -> Sequence[list[Finding] | ScanError]:
        """Examines each block.

        Returns:
            For each block its findings, or the error that says why it was not scanned to its end: one broken block
            does not take the findings of the others with it.

        Raises:
            ScanError: If the scanner failed as a whole.
        """
        ...


class Generator(Protocol):
    """Produces the assistant's answer to a conversation."""

    async def generate(self, conversation: Conversation, *, attempt: int, feedback: str | None) -> str:
        """Answers the conversation's last message.

        Args:
            conversation: Ends with the user's message.
            attempt: From 1.
            feedback: What was wrong with the attempt before, by categories and CWEs; None at the first.

        Raises:
            GenerationError: If there is no answer.
        """
        ...


class StreamingGenerator(Generator, Protocol):
    """A generator that can give its answer while it is written."""

    def stream(self, conversation: Conversation, *, attempt: int, feedback: str | None) -> AsyncIterator[str]:
        """Answers the conversation's last message, in pieces; closing the iterator ends the work.

        Args:
            conversation: Ends with the user's message.
            attempt: From 1.
            feedback: As in :meth:`Generator.generate`.

        Raises:
            GenerationError: If there is no answer, or no more of it.
        """
        ...


class Observer(Protocol):
    """Is told what was decided; implemented by telemetry."""

    def decided(self, decision: Decision) -> None:
        """Takes note of a decision; must be quick and must not raise."""
        ...


class Stage(str, Enum):
    """What a guard does for a request, one after another or one within another."""

    PROMPT_CHECK = "prompt_check"
    GENERATION = "generation"
    RESPONSE_CHECK = "response_check"
    CODE_SCAN = "code_scan"


@runtime_checkable
class StageObserver(Observer, Protocol):
    """An observer that also sees when stages begin and end."""

    def stage(self, stage: Stage, attributes: Mapping[str, int]) -> AbstractContextManager[object]:
        """Surrounds a stage; must be quick and must not raise anything of its own.

        Args:
            stage: Which one.
            attributes: ``messages`` of a check or a scan, ``attempt`` of a generation, from 1.
        """
        ...

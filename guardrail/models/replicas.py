"""Several copies of a guard model, one a GPU: each prompt goes to the copy with the least work waiting.

For throughput; a model that does not fit one GPU is split by accelerate instead (``device_map="auto"``). A copy that is
lost gets no more work, and what waited in it is judged by another one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from guardrail.errors import ConfigurationError, Unavailable
from guardrail.taxonomy import GuardVersion
from guardrail.verdict import Assessment, GuardPrompt, Source

__all__ = ["Replica", "ReplicatedGuardModel"]


class Replica(Protocol):
    """A guard model that can say how busy it is; :class:`~guardrail.models.transformers.TransformersGuardModel`."""

    source: Source
    version: GuardVersion
    special_tokens: tuple[str, ...]
    max_prompt_tokens: int

    @property
    def is_alive(self) -> bool:
        """Whether prompts are accepted."""
        ...

    async def assess(self, prompts: Sequence[GuardPrompt]) -> list[Assessment]:
        """Assesses each prompt; result i belongs to prompt i."""
        ...

    def apply_template(self, messages: list[dict[str, str]]) -> str:
        """Renders messages by the model's chat template."""
        ...

    def count_tokens(self, prompt: GuardPrompt) -> int:
        """Returns how many tokens a prompt has."""
        ...

    def split(self, text: str, *, max_tokens: int, overlap: int) -> list[str]:
        """Cuts text into overlapping windows."""
        ...

    def close(self) -> None:
        """Gives back what the model holds."""
        ...


class ReplicatedGuardModel:
    """Spreads prompts over copies of one model; a guard model itself.

    Args:
        replicas: At least one; all of the same weights and template.

    Raises:
        ConfigurationError: If they are not.
    """

    def __init__(self, replicas: Sequence[Replica]) -> None:
        if len({(replica.source, replica.version) for replica in replicas}) != 1:
            raise ConfigurationError(f"expected copies of one guard model, got {len(replicas)} that are not the same")
        self._replicas = list(replicas)
        # Characters that each copy has been given and not answered. Changed by any event loop: a lost update only makes
        # the choice a little worse, and every share is taken back by what was added.
        self._waiting = [0] * len(self._replicas)
        first = self._replicas[0]
        self.source = first.source
        self.version = first.version
        self.special_tokens = first.special_tokens
        self.max_prompt_tokens = min(replica.max_prompt_tokens for replica in self._replicas)
        self.apply_template = first.apply_template
        self.count_tokens = first.count_tokens
        self.split = first.split

    async def assess(self, prompts: Sequence[GuardPrompt]) -> list[Assessment]:
        """Assesses each prompt; result i belongs to prompt i.

        Raises:
            ClassificationError: If one of them could not be assessed.
            Overloaded: If the queue of the copy with the least work is full.
            Unavailable: If no copy is left.
        """
        shares: dict[int, list[int]] = {}
        costs = [sum(len(segment.text) for segment in prompt.segments) for prompt in prompts]
        planned = list(self._waiting)
        for at in range(len(prompts)):
            chosen = min(self._alive(), key=lambda index: planned[index])
            planned[chosen] += costs[at]
            shares.setdefault(chosen, []).append(at)
        parts = await asyncio.gather(
            *(self._assess_by(index, [prompts[at] for at in share]) for index, share in shares.items())
        )
        results = dict(
            zip((at for share in shares.values() for at in share), (a for p in parts for a in p), strict=True)
        )
        return [results[at] for at in range(len(prompts))]

    def close(self) -> None:
        """Closes every copy."""
        for replica in self._replicas:
            replica.close()

    def _alive(self) -> list[int]:
        alive = [index for index, replica in enumerate(self._replicas) if replica.is_alive]
        if not alive:
            raise Unavailable(f"none of {len(self._replicas)} copies of {self.source} is left; restart the process")
        return alive

    async def _assess_by(self, index: int, prompts: Sequence[GuardPrompt]) -> list[Assessment]:
        cost = sum(len(segment.text) for prompt in prompts for segment in prompt.segments)
        self._waiting[index] += cost
        try:
            return await self._replicas[index].assess(prompts)
        except Unavailable:
            if self._replicas[index].is_alive:
                raise
        finally:
            self._waiting[index] -= cost
        # The copy was lost with these in its queue.
        return await self.assess(prompts)

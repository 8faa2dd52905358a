"""What surrounds the stages of a guard's work for those who watch them: times, spans."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager

from guardrail.protocols import Stage, StageObserver
from guardrail.verdict import Conversation, Rail

__all__ = ["check_stage", "surrounded"]

logger = logging.getLogger("guardrail")


def check_stage(conversations: Sequence[Conversation]) -> Stage:
    """Names a check by its rail; one of prompts and responses together counts as one of responses."""
    is_of_prompts = all(conversation.rail is Rail.PROMPT for conversation in conversations)
    return Stage.PROMPT_CHECK if is_of_prompts else Stage.RESPONSE_CHECK


@contextlib.contextmanager
def surrounded(observers: Sequence[StageObserver], stage: Stage, attributes: Mapping[str, int]) -> Iterator[None]:
    """Enters and leaves what observers surround a stage with; one that fails does not fail the stage.

    Args:
        observers: Entered in order, left in the reverse.
        stage: Which one.
        attributes: Its numbers.
    """
    entered: list[AbstractContextManager[object]] = []
    for observer in observers:
        try:
            surrounding = observer.stage(stage, attributes)
            surrounding.__enter__()
            entered.append(surrounding)
        except Exception as exc:
            logger.warning("observer %s raised %s", type(observer).__name__, type(exc).__name__)
    error: BaseException | None = None
    try:
        yield
    except BaseException as exc:
        error = exc
        raise
    finally:
        for surrounding in reversed(entered):
            try:
                surrounding.__exit__(type(error) if error else None, error, error.__traceback__ if error else None)
            except Exception as exc:
                logger.warning("an observer of stages raised %s", type(exc).__name__)

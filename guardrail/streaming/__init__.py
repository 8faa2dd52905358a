"""Answers that arrive in pieces: only checked text is released, and the end is decided as the whole text would be.

::

    HeldText          what can be checked now                     held      sans-IO, linear in the text
    checked_answer    pieces and the whole -> how far to show     answer    sans-IO
    guarded_stream    prompt, attempts, answer -> exchange        exchange  sans-IO
    stream, astream   with a guard, in a thread or a loop         drivers
    amoderate         the same for the sidecar's Moderate         drivers

A piece is checked when a sentence, a line or a code block is complete, together with up to ``LOOKBACK`` code points of
what came before it; a code block is scanned when its fence closes. At the end the whole text is checked, with all of
its context, so a stream ends with the decision that the whole text would have had.
"""

from __future__ import annotations

from guardrail.streaming.answer import Answer, PullStep, ReportStep, checked_answer
from guardrail.streaming.drivers import AsyncBegin, Begin, amoderate, astream, astream_exchange, begin_with, stream
from guardrail.streaming.exchange import AwaitPromptStep, BeginStep, PromptStep, StreamStep, guarded_stream
from guardrail.streaming.feed import Feed
from guardrail.streaming.held import LOOKBACK, HeldText

__all__ = [
    "LOOKBACK",
    "Answer",
    "AsyncBegin",
    "AwaitPromptStep",
    "Begin",
    "BeginStep",
    "Feed",
    "HeldText",
    "PromptStep",
    "PullStep",
    "ReportStep",
    "StreamStep",
    "amoderate",
    "astream",
    "astream_exchange",
    "begin_with",
    "checked_answer",
    "guarded_stream",
    "stream",
]

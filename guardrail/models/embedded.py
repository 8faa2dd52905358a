r"""The embedded hazard classifier: a small sentence encoder on the CPU, in the package, with no download.

Text -> tokens -> overlapping windows -> ONNX graph -> twelve probabilities a window -> the riskiest verdict.

Input forms (T = text tokens, C = context tokens, the digits are ``token_type_ids``)::

    user message                     [CLS] T [SEP]              0...0
    assistant message                [CLS] T [SEP]              0 1...1
    assistant message after a user's [CLS] C [SEP] T [SEP]      0...0 1...1

A window holds at most 192 text tokens and overlaps its neighbour by 48, so no text is left out (promise 3). A context
keeps its last 64 tokens. The tokenizer file knows no special tokens: ``[SEP]`` written in a message is three ordinary
tokens, and the frame's ids are added here (promise 4).

A window runs alone, unpadded, on one thread: dynamic int8 quantisation scales activations over the whole input
tensor, so a verdict would otherwise depend on what else is in the batch. Windows run beside each other in a pool.

A text with letters in disguise is judged twice, as it stands and as it reads (:mod:`~guardrail.models.disguise`); the
riskier verdict counts.

A window most of whose tokens are unknown, in a text whose letters account for them (Thai, much of Chinese), was not
read: unless it is unsafe, it is ``UNVERIFIED`` (promise 1).

Source: ``training/train_embedded.py``; the artefact's figures are in ``embedded_data/MODEL_CARD.md``.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib import resources
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

from guardrail.errors import ClassificationError, ConfigurationError
from guardrail.models.disguise import undisguised
from guardrail.taxonomy import HazardCategory
from guardrail.verdict import Conversation, Outcome, Role, Source, Timing, Verdict, riskiest

__all__ = ["EmbeddedClassifier"]

UNKNOWN_ID = 100
CLS_ID = 101
SEP_ID = 102
MAX_TEXT_TOKENS = 192
OVERLAP_TOKENS = 48
MAX_CONTEXT_TOKENS = 64
# Hashed into the source: a change of the input form is a change of what a score means.
INPUT_FORM = (
    "user: [CLS]0 text0 [SEP]0; assistant: [CLS]0 text1 [SEP]1; "
    "after a user message: [CLS]0 context0 [SEP]0 text1 [SEP]1; "
    f"context: last {MAX_CONTEXT_TOKENS}; windows: {MAX_TEXT_TOKENS} overlapping by {OVERLAP_TOKENS}; riskiest"
)
READINGS = "; as it stands, and without disguises; unread where most tokens are unknown"
UNSAFE_THRESHOLD = 0.5
TOP_CATEGORY_THRESHOLD = 0.2
# `encode` holds the GIL, about 1 ms for 2000 characters; `encode_batch_fast` releases it, but wakes a pool of its own.
LONG_TEXT_CHARACTERS = 4096

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Window:
    """What the network reads at once.

    Attributes:
        input_ids: Token ids, frame included.
        token_type_ids: 1 for the assistant's text that is judged, else 0; as long as ``input_ids``.
    """

    input_ids: list[int]
    token_type_ids: list[int]


@dataclass(frozen=True, slots=True)
class _Prepared:
    """One conversation in tokens.

    Attributes:
        readings: Token ids of the judged message, at least one, and of its form without disguises, where it has one.
        context: Token ids of the user message before it, None where there is none or it is not used.
        is_assistant: Who wrote the judged message.
        is_foreign: Whether it has letters that would account for its unknown tokens, which symbols have as well.
        detail: What was left out of the context.
        tokenise_ms: How long the tokens took.
    """

    readings: list[list[int]]
    context: list[int] | None
    is_assistant: bool
    is_foreign: bool
    detail: str
    tokenise_ms: float

    @property
    def window_count(self) -> int:
        """How many windows there are, at least one."""
        return sum(len(window_starts(len(reading))) for reading in self.readings)

    def windows(self) -> Iterator[list[int]]:
        """Yields the tokens of each window."""
        for reading in self.readings:
            for start in window_starts(len(reading)):
                yield reading[start : start + MAX_TEXT_TOKENS]


def frame(text: Sequence[int], *, context: Sequence[int] | None, is_assistant: bool) -> Window:
    """Puts one window of text tokens into its input form (see the module's docstring).

    Args:
        text: At most ``MAX_TEXT_TOKENS`` token ids.
        context: Token ids of the user message before, at most ``MAX_CONTEXT_TOKENS``; only with ``is_assistant``.
        is_assistant: Whether the assistant wrote the text.
    """
    head = [CLS_ID] if context is None else [CLS_ID, *context, SEP_ID]
    judged = [*text, SEP_ID]
    return Window([*head, *judged], [0] * len(head) + [int(is_assistant)] * len(judged))


def window_starts(token_count: int) -> list[int]:
    """Returns where the windows of a text begin: they cover every token, and the last one is full."""
    if token_count <= MAX_TEXT_TOKENS:
        return [0]
    last = token_count - MAX_TEXT_TOKENS
    return [*range(0, last, MAX_TEXT_TOKENS - OVERLAP_TOKENS), last]


def tokenise(tokenizer: Tokenizer, text: str) -> list[int]:
    """Returns the token ids of a text, without a frame.

    Raises:
        ClassificationError: If the text holds lone surrogates, which no UTF-8 reader accepts.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as exc:
        # Without `from exc`: that error carries the whole text (promise 6).
        message = f"expected Unicode text, got a lone surrogate at offset {exc.start} of {len(text)} characters"
        raise ClassificationError(message) from None
    try:
        if len(text) > LONG_TEXT_CHARACTERS:
            return list(tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids)
        return list(tokenizer.encode(text, add_special_tokens=False).ids)
    except Exception as exc:  # the Rust side raises bare Exception
        raise ClassificationError(f"the tokenizer failed on {len(text)} characters") from exc


class EmbeddedClassifier:
    """Judges messages with the model inside the package; a :class:`~guardrail.protocols.HazardClassifier`.

    A user message is judged by itself: no earlier turn is its context. An assistant message is judged after the last
    user message before it; system and tool messages are not read.

    Args:
        threads: Windows that run beside each other; None for one a CPU. Verdicts do not depend on it.

    Raises:
        ConfigurationError: If ``threads`` is below 1, or the model's files cannot be loaded.
    """

    def __init__(self, *, threads: int | None = None) -> None:
        if threads is not None and threads < 1:
            raise ConfigurationError(f"expected threads >= 1, got {threads}")
        self._threads = threads or os.cpu_count() or 1
        self._tokenizer, self._session, revision = _load()
        template_hash = hashlib.sha256((INPUT_FORM + READINGS).encode()).hexdigest()[:12]
        self._source = Source("guardrail-embedded", revision, template_hash)
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="guardrail-embedded")

    @property
    def source(self) -> Source:
        """What answers: the model's name, the first 12 hex digits of its file's SHA-256, a hash of the input form."""
        return self._source

    async def classify(self, conversations: Sequence[Conversation]) -> list[Verdict]:
        """Judges each conversation's last message; verdict i belongs to conversation i.

        A verdict is the same to the last bit whatever else is asked at the same time.

        Raises:
            ClassificationError: If any message could not be judged.
        """
        begun = await self._run_all(partial(self._begin, each, time.perf_counter()) for each in conversations)
        rest = iter(await self._run_all(task for item, _ in begun for task in self._more_tasks(item)))
        return [riskiest([first, *islice(rest, item.window_count - 1)]) for item, first in begun]

    def close(self) -> None:
        """Ends the threads; what is still asked for fails with ``ClassificationError``."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    async def _run_all(self, tasks: Iterable[Callable[[], _T]]) -> list[_T]:
        """Runs tasks in the pool; result i belongs to task i. A call that is left leaves nothing queued.

        At most two tasks a thread are in flight, so a text of a thousand windows shares the pool with others.
        """
        results: dict[int, _T] = {}
        # Owned by the event loop; the pool's threads only complete the futures.
        running: dict[asyncio.Future[_T], int] = {}
        try:
            for index, task in enumerate(tasks):
                if len(running) >= 2 * self._threads:
                    await _collect(running, results)
                running[self._submit(task)] = index
            while running:
                await _collect(running, results)
        finally:
            for future in running:
                if not future.cancel() and not future.cancelled():
                    future.exception()  # else asyncio logs an exception that nobody asked for
        return [results[index] for index in range(len(results))]

    def _submit(self, task: Callable[[], _T]) -> asyncio.Future[_T]:
        try:
            return asyncio.wrap_future(self._pool.submit(task))
        except RuntimeError as exc:  # the pool's answer after close()
            raise ClassificationError("the embedded classifier is closed") from exc

    def _prepare(self, conversation: Conversation) -> _Prepared:
        started = time.perf_counter()
        judged = conversation.last
        is_assistant = judged.role is Role.ASSISTANT
        text = tokenise(self._tokenizer, judged.content)
        if not text:  # White space or control characters alone: not read is not safe (promise 1).
            raise ClassificationError(f"the model can read none of the message's {len(judged.content)} characters")
        plain = undisguised(judged.content)
        readings = [text] if plain is None else [text, tokenise(self._tokenizer, plain)]
        context, detail = None, ""
        if is_assistant:
            asked = next((m.content for m in reversed(conversation.messages[:-1]) if m.role is Role.USER), None)
            if asked is not None:
                whole = tokenise(self._tokenizer, asked)
                context = whole[-MAX_CONTEXT_TOKENS:]
                if len(whole) > len(context):
                    detail = f"the first {len(whole) - len(context)} of {len(whole)} context tokens were left out"
        is_foreign = _is_foreign(judged.content, text)
        return _Prepared(readings, context, is_assistant, is_foreign, detail, _ms_since(started))

    def _begin(self, conversation: Conversation, submitted: float) -> tuple[_Prepared, Verdict]:
        """Prepares a conversation and judges its first window, which for most is the only one; runs in the pool."""
        queue_ms = _ms_since(submitted)
        item = self._prepare(conversation)
        return item, self._judge(item, next(item.windows()), queue_ms, item.tokenise_ms)

    def _more_tasks(self, item: _Prepared) -> Iterator[Callable[[], Verdict]]:
        for text in islice(item.windows(), 1, None):
            yield partial(self._judge_more, item, text, time.perf_counter())

    def _judge_more(self, item: _Prepared, text: list[int], submitted: float) -> Verdict:
        return self._judge(item, text, _ms_since(submitted), 0.0)

    def _judge(self, item: _Prepared, text: list[int], queue_ms: float, tokenise_ms: float) -> Verdict:
        """Judges one window; runs in the pool."""
        began = time.perf_counter()
        window = frame(text, context=item.context, is_assistant=item.is_assistant)
        feed = {
            "input_ids": np.asarray([window.input_ids], dtype=np.int64),
            "token_type_ids": np.asarray([window.token_type_ids], dtype=np.int64),
        }
        try:
            (output,) = self._session.run(["probabilities"], feed)
        except Exception as exc:  # onnxruntime's own errors share no base but Exception
            raise ClassificationError(f"the embedded model failed on a window of {len(text)} tokens") from exc
        probabilities = [float(value) for value in output[0]]
        if not np.isfinite(output).all():
            raise ClassificationError(f"the embedded model gave no finite score on a window of {len(text)} tokens")
        compute_ms = _ms_since(began) + tokenise_ms
        unknown = text.count(UNKNOWN_ID)
        is_read = not item.is_foreign or 2 * unknown <= len(text)
        detail = item.detail if is_read else f"{unknown} of {len(text)} tokens are of a script the model cannot read"
        return self._verdict(probabilities, is_read, detail, Timing(queue_ms, compute_ms))

    def _verdict(self, probabilities: Sequence[float], is_read: bool, detail: str, timing: Timing) -> Verdict:
        unsafe_probability, *rest = probabilities
        scores = dict(zip(HazardCategory, rest, strict=True))
        is_unsafe = unsafe_probability >= UNSAFE_THRESHOLD
        return Verdict(
            Outcome.UNSAFE if is_unsafe else Outcome.SAFE if is_read else Outcome.UNVERIFIED,
            self._source,
            scores=scores,
            categories=_named(scores) if is_unsafe else (),
            unsafe_probability=unsafe_probability,
            detail=detail,
            timing=timing,
        )


def _is_foreign(text: str, tokens: Sequence[int]) -> bool:
    """Whether there are unknown tokens and at least as many letters that are not ASCII: emoji are no letters."""
    unknown = tokens.count(UNKNOWN_ID)
    return unknown > 0 and sum(c.isalpha() and not c.isascii() for c in text) >= unknown


def _named(scores: dict[HazardCategory, float]) -> tuple[HazardCategory, ...]:
    """The categories at or above one half, riskiest first; else the top one, if it is worth naming."""
    ranked = sorted(scores, key=lambda category: -scores[category])
    reached = tuple(category for category in ranked if scores[category] >= UNSAFE_THRESHOLD)
    return reached or tuple(category for category in ranked[:1] if scores[category] >= TOP_CATEGORY_THRESHOLD)


async def _collect(running: dict[asyncio.Future[_T], int], results: dict[int, _T]) -> None:
    """Moves the results of finished futures; raises the first failure."""
    done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    for future in done:
        if future.cancelled():  # by close(): the caller was not cancelled, and must get an answer
            raise ClassificationError("the embedded classifier was closed before it had judged the message")
        result = future.result()
        results[running.pop(future)] = result


def _load() -> tuple[Tokenizer, Any, str]:
    """Loads tokenizer, session and revision from the package's files."""
    folder = resources.files("guardrail.models") / "embedded_data"
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        revision = str(config["revision"])
        tokenizer = Tokenizer.from_str((folder / "tokenizer.json").read_text(encoding="utf-8"))
        graph = (folder / "model.onnx").read_bytes()
        if not hashlib.sha256(graph).hexdigest().startswith(revision):
            raise ConfigurationError(
                f"{folder} holds a model.onnx that is not revision {revision}; reinstall guardrail"
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.enable_mem_pattern = False  # plans memory per input shape, and every length is one
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except ConfigurationError:
        raise
    except Exception as exc:  # files missing or damaged; tokenizers and onnxruntime raise bare Exception
        raise ConfigurationError(f"the embedded model in {folder} cannot be loaded; reinstall guardrail") from exc
    return tokenizer, session, revision


def _ms_since(started: float) -> float:
    return 1000.0 * (time.perf_counter() - started)

r"""A guard model behind ``POST /v1/completions``: vLLM or the llama.cpp server; only its tokenizer is in this process.

::

    GuardPrompt ─▶ tokens (or text) ─▶ /v1/completions ─▶ logprobs at each place ─▶ P(unsafe) ─▶ labels ─▶ Assessment
                   (any thread)        (a pool of threads)

**The same numbers** as of a model in this process (:mod:`guardrail.models.transformers`): the same tokens are sent, the
white space before answers is found by a canary of each role and sent with every prompt, ``unsafe_probability`` is the
softmax over the first tokens of ``unsafe`` and ``safe``, and from 0.05 on the labels' scores are read at the places of
the greedy text after ``unsafe``. One request serves most prompts; a prompt whose greedy answer is not ``unsafe`` though
its probability is at least 0.05 takes a second one, which goes on after ``unsafe``.

**What a server leaves out.** It gives the ``k`` most probable tokens of a place, 20 by default. A token that is not
among them is taken at the most it can have, ``b``: the least of those given, or what all of those leave of one,
whichever is less. An absent ``unsafe`` gives ``b / (safe + b)``, the true value lying between 0 and that; an absent
``safe`` gives ``unsafe / (unsafe + b)``, the true value lying between that and 1. Neither crosses 0.5. A category's
score is at most ``b`` too high. Where both answers are absent there is no verdict.

**Prompt format.** As tokens, message text can be nothing else. As text (for a server that takes no tokens), the server
tokenises it with special tokens on: each prompt is first tokenised that way here, and where the tokens are not those of
the parts apart, it is not sent. The server's own count of the prompt's tokens, where it gives one, must be ours: a
server that cuts prompts, or has another tokenizer, gives no verdict.

**Threads.** A sync client asks from a pool of threads, so any number of event loops share its connections, and closing
needs none of them.

What comes back is read by :mod:`guardrail.models.completions`. Source: OpenAI API reference, "Create completion"; vLLM
and llama.cpp server documentation.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from guardrail.errors import (
    ClassificationError,
    CompletionError,
    ConfigurationError,
    GuardrailError,
    MissingExtra,
    Overloaded,
    Unavailable,
)
from guardrail.models.completions import UNKNOWN, Answer, AnswerReader, Place
from guardrail.models.labels import LabelTokens
from guardrail.models.tokens import LABELS_FROM, LEAST_ANSWER_MASS, MOST_LEAD_TOKENS, WHITE_SPACE, GuardTokenizer
from guardrail.taxonomy import GuardVersion, code_table
from guardrail.upstream import Attempts, Endpoint, UpstreamError
from guardrail.verdict import Assessment, GuardPrompt, Source, Timing

try:
    import httpx
except ImportError as exc:
    raise MissingExtra(
        "a guard model behind HTTP needs httpx: pip install 'guardrail[upstream]' transformers jinja2"
    ) from exc

__all__ = ["OpenAIGuardModel", "PromptFormat"]

PromptFormat = Literal["tokens", "text"]

# Llama Guard 2's window.
_DEFAULT_WINDOW = 8192

# An answer of 50 places with 20 tokens each takes some 60 KB.
_MOST_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class _Prompt:
    """A prompt as tokens, and as the text that they stand for."""

    tokens: tuple[int, ...]
    text: str


class OpenAIGuardModel:
    """A guard model on a server; made by :meth:`load`. Safe to use from many event loops and threads.

    Attributes:
        source: The model's name on the server, and the revision that the operator says it has.
        version: Whose codes it writes.
        special_tokens: The tokenizer's special tokens as text.
        max_prompt_tokens: The longest prompt that is sent.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        base_url: str,
        source: Source,
        version: GuardVersion,
        api_key: str | None = None,
        prompt_format: PromptFormat = "tokens",
        top_logprobs: int = 20,
        timeout_s: float = 30.0,
        retries: int = 2,
        backoff_s: float = 0.25,
        max_requests: int = 32,
        max_queued_requests: int = 4096,
        max_prompt_tokens: int | None = None,
        parameters: Mapping[str, object] = MappingProxyType({}),
    ) -> None:
        if prompt_format not in ("tokens", "text"):
            raise ConfigurationError(f"expected a prompt format of 'tokens' or 'text', got {prompt_format!r}")
        self.source = source
        self.version = version
        self._tokens = GuardTokenizer(tokenizer, source=str(source))
        self.special_tokens = self._tokens.special_tokens
        self.apply_template = self._tokens.apply_template
        self.split = self._tokens.split
        self._endpoint = Endpoint.parse(base_url, "completions")
        self._prompt_format = prompt_format
        self._top_logprobs = top_logprobs
        self._timeout_s = timeout_s
        self._retries = retries
        self._backoff_s = backoff_s
        self._parameters = dict(parameters)
        self._labels = LabelTokens.find(self._tokens.encode_text, list(code_table(version)), source=str(source))
        self._most_answer_tokens = len(self._tokens.encode_text("unsafe\n" + ",".join(code_table(version)))) + 4
        token_of = self._tokens.tokens_by_text()
        self._check_spelling(token_of)
        self._reader = AnswerReader(self._endpoint.name, token_of)
        self._client = httpx.Client(
            headers={} if api_key is None else {"Authorization": f"Bearer {api_key}"},
            timeout=timeout_s,
            limits=httpx.Limits(max_connections=max_requests, max_keepalive_connections=max_requests),
        )
        # The lock owns _pending: whoever takes a future out of it, a thread or close, answers it.
        self._lock = threading.Lock()
        self._pending: set[Future[Assessment]] = set()
        self._max_queued = max_queued_requests
        self._closed = threading.Event()
        self._lead: tuple[int, ...] = ()
        self._safe_id = self._unsafe_id = UNKNOWN
        try:
            self._answers_at_load()
        except BaseException:
            self._client.close()
            raise
        window = min(self._tokens.window, _DEFAULT_WINDOW) - len(self._lead) - self._most_answer_tokens - 1
        self.max_prompt_tokens = max_prompt_tokens or window
        self._threads = ThreadPoolExecutor(max_requests, thread_name_prefix="guardrail-guard-requests")

    @classmethod
    def load(
        cls,
        base_url: str,
        model: str,
        *,
        tokenizer: str | Path | None = None,
        revision: str | None = None,
        version: GuardVersion = GuardVersion.LLAMA_GUARD_2,
        **options: Any,
    ) -> OpenAIGuardModel:
        """Loads the tokenizer and asks the server the canary; blocks.

        Args:
            base_url: The server, with or without ``/v1`` at its end.
            model: The model's name there.
            tokenizer: Hub id or folder of the tokenizer with its chat template; None: ``model``.
            revision: Commit of the tokenizer on the hub; verdicts carry it, since a server does not tell its weights'.
            version: Whose codes the model writes.
            **options: ``api_key``, sent as a bearer token; ``prompt_format``, ``"tokens"`` (default) or ``"text"``;
                ``top_logprobs``, tokens to ask for at each place (20); ``timeout_s`` of one request (30); ``retries``
                after it (2) and ``backoff_s`` before the first of them (0.25); ``max_requests`` at one time (32) and
                ``max_queued_requests`` that may wait (4096); ``max_prompt_tokens``; ``parameters``, further fields of
                the request.

        Raises:
            MissingExtra: If transformers or Jinja is not installed.
            ConfigurationError: If there is no such tokenizer, the URL is none, or what answers is no guard model that
                gives logprobs.
            Overloaded: If the server is too busy for the canary.
            Unavailable: If the server cannot be reached.
        """
        try:
            import jinja2  # noqa: F401  # transformers renders chat templates by it, and does not install it
            import transformers
        except ImportError as exc:
            raise MissingExtra(
                f"this guard model needs {exc.name}: pip install 'guardrail[upstream]' transformers jinja2"
            ) from exc
        where = str(tokenizer or model)
        try:
            loaded: Any = transformers.AutoTokenizer.from_pretrained(where, revision=revision, trust_remote_code=False)
        except Exception as exc:
            reason = f"{type(exc).__name__}: {str(exc).partition(chr(10))[0]}"
            raise ConfigurationError(
                f"cannot load the tokenizer of a guard model from {where}: expected a hub id that you may read, or a "
                f"folder with tokenizer.json and tokenizer_config.json; {reason}"
            ) from exc
        return cls(loaded, base_url=base_url, source=Source(model, revision or ""), version=version, **options)

    @property
    def is_alive(self) -> bool:
        """Whether prompts are accepted."""
        return not self._closed.is_set()

    def count_tokens(self, prompt: GuardPrompt) -> int:
        """Returns how many tokens a prompt has."""
        return len(self._tokens.encode(prompt))

    async def assess(self, prompts: Sequence[GuardPrompt]) -> list[Assessment]:
        """Assesses each prompt; result i belongs to prompt i.

        Raises:
            ClassificationError: If one is longer than the window, cannot be sent, or gets no usable answer.
            Overloaded: If too many wait already, or the server says that of itself.
            Unavailable: If the model is closed, or the server cannot be reached.
        """
        encoded = await asyncio.to_thread(lambda: [self._encode(prompt) for prompt in prompts])
        for prompt in encoded:
            if not 0 < len(prompt.tokens) <= self.max_prompt_tokens:
                raise ClassificationError(
                    f"expected a prompt of 1..{self.max_prompt_tokens} tokens, got {len(prompt.tokens)}, for "
                    f"{self.source}"
                )
        waiting = [asyncio.wrap_future(future) for future in self._submit(encoded)]
        try:
            return list(await asyncio.gather(*waiting))
        finally:
            for future in waiting:
                future.cancel()

    def close(self) -> None:
        """Closes the connections; those who wait are answered with ``Unavailable``. Closing twice does nothing more."""
        self._closed.set()
        with self._lock:
            left, self._pending = self._pending, set()
        for future in left:
            if future.set_running_or_notify_cancel():
                future.set_exception(Unavailable("the guard model was closed before this request was answered"))
        self._threads.shutdown(wait=False)
        self._client.close()

    def _encode(self, prompt: GuardPrompt) -> _Prompt:
        return _Prompt(tuple(self._tokens.encode(prompt)), "".join(segment.text for segment in prompt.segments))

    def _submit(self, prompts: Sequence[_Prompt]) -> list[Future[Assessment]]:
        """Puts prompts into the queue, all or none; a call by itself may be longer than the queue."""
        futures: list[Future[Assessment]] = [Future() for _ in prompts]
        with self._lock:
            if self._closed.is_set():
                raise Unavailable("the guard model is closed")
            if self._pending and len(self._pending) + len(prompts) > self._max_queued:
                raise Overloaded(f"{len(self._pending)}/{self._max_queued} prompts wait for {self._endpoint.name}")
            self._pending.update(futures)
            # Under the lock: a close at this moment would leave the pool without the work.
            for prompt, future in zip(prompts, futures, strict=True):
                self._threads.submit(self._answer, prompt, future, time.monotonic())
        return futures

    # The pool's threads run what follows; at load, the loading thread does.

    def _answer(self, prompt: _Prompt, future: Future[Assessment], submitted: float) -> None:
        """Answers one waiter, once."""
        result: Assessment | None = None
        error: Exception | None = None
        started = time.monotonic()
        try:
            if self._is_wanted(future):
                p_unsafe, scores, text = self._assess(prompt, lambda: self._is_wanted(future))
                timing = Timing((started - submitted) * 1000, (time.monotonic() - started) * 1000)
                result = Assessment(p_unsafe, scores, text, timing)
        except GuardrailError as exc:
            error = exc
        except Exception as exc:
            # The type alone: the message could quote the prompt.
            error = ClassificationError(f"{self.source} failed on a prompt: {type(exc).__name__}")
            error.__cause__ = exc
        with self._lock:
            is_mine = future in self._pending
            self._pending.discard(future)
        if not is_mine or not future.set_running_or_notify_cancel():
            return
        if result is not None:
            future.set_result(result)
        else:
            future.set_exception(error or Unavailable("the guard model is closed"))

    def _is_wanted(self, future: Future[Assessment]) -> bool:
        return not self._closed.is_set() and not future.cancelled()

    def _assess(self, prompt: _Prompt, is_wanted: Callable[[], bool]) -> tuple[float, dict[str, float], str]:
        """Returns (unsafe probability, scores by code, completion) of a prompt."""
        prompt = self._then(prompt, self._lead)
        answer = self._ask(prompt, most_tokens=self._most_answer_tokens + 1, is_wanted=is_wanted)
        if not answer.places:
            raise CompletionError(f"expected an answer with a first token, got none from {self.source}")
        first = answer.places[0]
        if self._safe_id not in first.top and self._unsafe_id not in first.top:
            raise CompletionError(
                f"neither 'safe' nor 'unsafe' is among the {len(first.top)} most probable tokens of {self.source}"
            )
        p_safe, p_unsafe = first.share(self._safe_id), first.share(self._unsafe_id)
        if not p_safe + p_unsafe > 0:
            raise CompletionError(f"'safe' and 'unsafe' have no probability in the answer of {self.source}")
        p_unsafe /= p_safe + p_unsafe
        if p_unsafe < LABELS_FROM:
            return p_unsafe, {}, answer.text
        after = self._then(prompt, (self._unsafe_id,))
        places = answer.places[1:]
        if first.token != self._unsafe_id:
            places = self._ask(after, most_tokens=self._most_answer_tokens, is_wanted=is_wanted).places
        return p_unsafe, self._scores(after, p_unsafe, places, is_wanted), answer.text

    def _scores(
        self, prompt: _Prompt, p_unsafe: float, places: Sequence[Place], is_wanted: Callable[[], bool]
    ) -> dict[str, float]:
        written = [place.token for place in places]
        told = []
        for at, place in enumerate(places):
            if not self._labels.expects_label(written[:at]):
                continue
            share_after = {}
            # What would follow a token that several codes begin with; with Llama 3's tokenizer there is none.
            for token, nexts in self._labels.branches.items():
                if place.token == token and at + 1 < len(places):
                    following = places[at + 1]
                else:
                    branch = self._then(prompt, (*written[:at], token))
                    answer = self._ask(branch, most_tokens=1, is_wanted=is_wanted)
                    # Without a place it would have ended there.
                    following = answer.places[0] if answer.places else Place(UNKNOWN, {}, 0.0)
                share_after[token] = {token_after: following.share(token_after) for token_after in nexts}
            share = {token: place.share(token) for token in self._labels.tokens}
            told.append(self._labels.at_place(share, share_after))
        return self._labels.scores(p_unsafe, written, told)

    def _then(self, prompt: _Prompt, tokens: Sequence[int]) -> _Prompt:
        if not tokens:
            return prompt
        return _Prompt((*prompt.tokens, *tokens), prompt.text + self._tokens.decode(tokens))

    # Load.

    def _check_spelling(self, token_of: Mapping[str, int]) -> None:
        """Holds that the tokens to be read are told by their text, which is all that most servers give."""
        labels = self._labels
        needed = {token for pair in self._tokens.answer_pairs() for token in pair}
        needed |= {*labels.first, *labels.later, *labels.tokens}
        needed |= {token for nexts in labels.branches.values() for token in nexts}
        if unclear := [token for token in needed if token_of.get(self._tokens.decode([token])) != token]:
            raise ConfigurationError(
                f"{self.source} has {len(unclear)} tokens of answers whose text other tokens have too; servers name "
                "tokens by their text, so this tokenizer is not supported"
            )

    def _answers_at_load(self) -> None:
        """Finds the white space before answers and the answers' first tokens, on a canary of each role."""
        leads = set()
        for canary in self._tokens.canaries():
            try:
                places = self._ask(self._encode(canary), most_tokens=MOST_LEAD_TOKENS + 1).places
            except ClassificationError as exc:
                raise ConfigurationError(f"{self.source} cannot be used as a guard model: {exc}") from exc
            lead: list[int] = []
            for place in places[:MOST_LEAD_TOKENS]:
                if place.token in (UNKNOWN, *self._tokens.special_ids):
                    break
                if self._tokens.decode([place.token]).strip(WHITE_SPACE):
                    break
                lead.append(place.token)
            leads.add(tuple(lead))
            top = places[len(lead)].top if len(lead) < len(places) else {}
            held = {pair: sum(top.get(token, 0.0) for token in pair) for pair in self._tokens.answer_pairs()}
            pair, mass = max(held.items(), key=lambda entry: entry[1], default=((UNKNOWN, UNKNOWN), 0.0))
            if mass < LEAST_ANSWER_MASS:
                raise ConfigurationError(
                    f"{self.source} does not answer as a guard model: 'safe' and 'unsafe' hold {mass:.3f} of the "
                    f"probability on a canary, expected {LEAST_ANSWER_MASS}; check the served model and the chat "
                    "template"
                )
            if len(top) < 2:
                raise ConfigurationError(
                    f"{self._endpoint.name} gives {len(top)} of {self._top_logprobs} logprobs at a place, and two are "
                    "needed to compare 'safe' with 'unsafe'; vLLM: --max-logprobs"
                )
            if self._safe_id not in (UNKNOWN, pair[0]):
                raise ConfigurationError(f"{self.source} begins its answers differently for prompts and responses")
            self._safe_id, self._unsafe_id = pair
        if len(leads) != 1:
            raise ConfigurationError(f"{self.source} writes other white space before its answers to either role")
        self._lead = leads.pop()

    # One request.

    def _ask(self, prompt: _Prompt, *, most_tokens: int, is_wanted: Callable[[], bool] = lambda: True) -> Answer:
        """Asks the server for a greedy answer.

        Raises:
            ClassificationError: If the prompt cannot be sent as text, or the answer is none.
            Overloaded: If the server is too busy.
            Unavailable: If the server cannot be reached, or nobody wants the answer any more.
        """
        body = {
            **self._parameters,
            "model": self.source.model,
            "prompt": list(prompt.tokens) if self._prompt_format == "tokens" else self._as_text(prompt),
            "max_tokens": most_tokens,
            "temperature": 0,
            "logprobs": self._top_logprobs,
            "stream": False,
        }
        try:
            content = self._post(body, is_wanted)
        except UpstreamError as exc:
            if exc.status == httpx.codes.TOO_MANY_REQUESTS:
                raise Overloaded(str(exc), retry_after_s=exc.retry_after_s or 1.0) from exc
            if exc.may_pass:
                raise Unavailable(str(exc)) from exc
            raise ClassificationError(f"{exc}; {_advice(exc.status)}") from exc
        return self._reader.read(content, len(prompt.tokens))

    def _as_text(self, prompt: _Prompt) -> str:
        """Returns a prompt's text once it is sure that a server reads our tokens in it."""
        for text in (self._tokens.without_opening(prompt.text), prompt.text):
            if tuple(self._tokens.as_server_reads(text)) == prompt.tokens:
                return text
        raise ClassificationError(
            f"a prompt of {len(prompt.text)} characters cannot be sent as text: a server would read other tokens in it "
            f"than the {len(prompt.tokens)} of its parts; send prompts as tokens"
        )

    def _post(self, body: Mapping[str, object], is_wanted: Callable[[], bool]) -> bytes:
        attempts = Attempts(
            self._endpoint.name, retries=self._retries, backoff_s=self._backoff_s, timeout_s=self._timeout_s
        )
        while True:
            failure: httpx.Response | httpx.RequestError
            started = time.monotonic()
            try:
                with self._client.stream("POST", self._endpoint.url, json=body) as response:
                    if response.status_code == httpx.codes.OK:
                        return self._content(response, started)
                    failure = response
            except httpx.RequestError as exc:
                failure = exc
            self._closed.wait(attempts.after(failure))
            if not is_wanted():
                raise Unavailable("nobody waits for this answer any more")

    def _content(self, response: httpx.Response, started: float) -> bytes:
        """Returns an answer's bytes: not more than an answer has, nor for longer than one may take."""
        content = bytearray()
        for chunk in response.iter_bytes():
            content += chunk
            if len(content) > _MOST_BYTES:
                raise ClassificationError(f"{self._endpoint.name} answered more than {_MOST_BYTES} bytes")
            if time.monotonic() - started > self._timeout_s:  # httpx bounds the wait for each part alone
                raise UpstreamError(f"{self._endpoint.name} gave no whole answer within {self._timeout_s:g} s")
        return bytes(content)


def _advice(status: int | None) -> str:
    if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        return "check the API key"
    if status == httpx.codes.NOT_FOUND:
        return "check the URL and the model's name there"
    return "check that it takes prompts as sent, of this length, and gives as many logprobs (vLLM: --max-logprobs)"

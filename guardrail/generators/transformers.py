"""A generator in this process: a Llama 3, or any other chat model, run by transformers.

::

    Conversation ─▶ chat template with placeholders ─▶ token ids ─▶ generate ─▶ text, token by token
                                                       (one thread owns the model)

As in the guard prompt, user text is data: messages stand in the template by placeholders and are tokenised apart with
special tokens off, so ``<|eot_id|>`` in a message is ten characters and no end of turn. Contents are trimmed, as Llama
3's template does.

Weights are read from safetensors alone and no code of the model's repository is run.
Source: transformers 4.56 to 5.23; the chat template is the tokenizer's own.
"""

from __future__ import annotations

import asyncio
import importlib.util
import secrets
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from guardrail.errors import ConfigurationError, GenerationError, MissingExtra
from guardrail.generators import chat_messages
from guardrail.verdict import Conversation

__all__ = ["TransformersGenerator"]


class TransformersGenerator:
    """A chat model in this process; made by :meth:`load`. One answer at a time, in a thread of its own.

    Attributes:
        max_prompt_tokens: The longest conversation that is answered; a longer one is an error, never cut.
    """

    def __init__(self, model: Any, tokenizer: Any, *, max_new_tokens: int = 512) -> None:
        if not getattr(tokenizer, "is_fast", False) or not getattr(tokenizer, "chat_template", None):
            raise ConfigurationError("a generator needs a fast tokenizer with a chat template; take an Instruct model")
        self._model = model
        self._tokenizer = tokenizer
        self._max_new_tokens = max_new_tokens
        self._special_ids = frozenset(tokenizer.all_special_ids)
        # Two tokenizers, neither changed after this: one flag of a shared one would be set by two threads at once.
        self._template_tokenizer = tokenizer.backend_tokenizer
        self._data_tokenizer = type(self._template_tokenizer).from_str(self._template_tokenizer.to_str())
        self._data_tokenizer.encode_special_tokens = True
        for part in (self._template_tokenizer, self._data_tokenizer):
            part.no_truncation()
            part.no_padding()
        window = getattr(model.config, "max_position_embeddings", 8192)
        self.max_prompt_tokens = window - max_new_tokens
        if self.max_prompt_tokens < 1:
            raise ConfigurationError(f"max_new_tokens={max_new_tokens} leaves no room in a window of {window} tokens")
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="guardrail-generator")

    @classmethod
    def load(
        cls,
        model: str | Path,
        *,
        revision: str | None = None,
        device_map: str | None = "auto",
        dtype: str = "auto",
        max_new_tokens: int = 512,
    ) -> TransformersGenerator:
        """Loads weights and tokenizer; blocks, for minutes on a large model.

        Args:
            model: Hub id, e.g. ``"meta-llama/Meta-Llama-3-8B-Instruct"``, or a folder with safetensors.
            revision: Commit on the hub.
            device_map: Where the weights go, in accelerate's words; None: the CPU.
            dtype: ``"auto"``, ``"bfloat16"``, ``"float16"`` or ``"float32"``.
            max_new_tokens: The longest answer, in tokens.

        Raises:
            MissingExtra: If torch, transformers or accelerate is not installed.
            ConfigurationError: If there is no such chat model.
        """
        try:
            import torch  # noqa: F401 - transformers imports without it and fails later
            import transformers
        except ImportError as exc:
            raise MissingExtra("a generator in this process needs transformers: pip install 'guardrail[gpu]'") from exc
        if device_map is not None and importlib.util.find_spec("accelerate") is None:
            raise MissingExtra("device_map needs accelerate: pip install 'guardrail[gpu]', or give device_map=None")
        options: dict[str, Any] = {} if device_map is None else {"device_map": device_map}
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                str(model), revision=revision, trust_remote_code=False
            )
            network = transformers.AutoModelForCausalLM.from_pretrained(
                str(model), revision=revision, use_safetensors=True, trust_remote_code=False, dtype=dtype, **options
            ).eval()
        except Exception as exc:
            reason = f"{type(exc).__name__}: {str(exc).partition(chr(10))[0]}"
            raise ConfigurationError(
                f"cannot load a chat model from {model}: expected a hub id that you may read, or a folder with "
                f"config.json, tokenizer.json and *.safetensors; {reason}"
            ) from exc
        return cls(network, tokenizer, max_new_tokens=max_new_tokens)

    async def generate(self, conversation: Conversation, *, attempt: int, feedback: str | None) -> str:
        """Answers the conversation's last message; cancelling it ends the work at the next token.

        Args:
            conversation: Ends with the user's message.
            attempt: From 1; the model is not told.
            feedback: Goes to the end of the user's message.

        Raises:
            GenerationError: If there is no answer.
        """
        return "".join([text async for text in self.stream(conversation, attempt=attempt, feedback=feedback)])

    async def stream(self, conversation: Conversation, *, attempt: int, feedback: str | None) -> AsyncIterator[str]:
        """Answers the conversation's last message while the model writes; closing it ends the work at the next token.

        Args:
            conversation: Ends with the user's message.
            attempt: From 1; the model is not told.
            feedback: Goes to the end of the user's message.

        Raises:
            GenerationError: If there is no answer, or no more of it.
        """
        loop = asyncio.get_running_loop()
        is_cancelled = threading.Event()
        texts: asyncio.Queue[str | None] = asyncio.Queue()

        def emit(text: str) -> None:
            loop.call_soon_threadsafe(texts.put_nowait, text)

        work = loop.run_in_executor(
            self._thread, self._answer, chat_messages(conversation, feedback), is_cancelled, emit
        )
        work.add_done_callback(lambda _: texts.put_nowait(None))
        try:
            while (text := await texts.get()) is not None:
                yield text
            await work
        finally:
            is_cancelled.set()
            # Nobody asks any more for the error of an answer that is left.
            work.add_done_callback(lambda done: done.cancelled() or done.exception())

    def close(self) -> None:
        """Ends the thread when its current answer is done, and lets go of the weights."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._model = None

    def encode(self, messages: list[dict[str, str]]) -> list[int]:
        """Returns the token ids of a conversation, up to where the assistant's answer begins.

        Raises:
            GenerationError: If the chat template refuses the conversation, or does not show each message once.
        """
        # Nobody can write a placeholder that is made for this one prompt.
        slot = secrets.token_hex(16)
        slots = [{"role": message["role"], "content": f"{slot}{i:06d}"} for i, message in enumerate(messages)]
        try:
            shape = str(self._tokenizer.apply_chat_template(slots, tokenize=False, add_generation_prompt=True))
        except Exception as exc:
            roles = ", ".join(message["role"] for message in messages)
            raise GenerationError(f"the model's chat template refuses roles {roles}: {type(exc).__name__}") from exc
        ids: list[int] = []
        for i, message in enumerate(messages):
            before, found, shape = shape.partition(slots[i]["content"])
            if not found:
                raise GenerationError(f"the model's chat template leaves out message {i}, from {message['role']}")
            ids += self._template_tokenizer.encode(before, add_special_tokens=False).ids
            data = self._data_tokenizer.encode(message["content"].strip(), add_special_tokens=False).ids
            if not self._special_ids.isdisjoint(data):
                raise GenerationError(f"message {i} of {len(message['content'])} characters gave a special token")
            ids += data
        ids += self._template_tokenizer.encode(shape, add_special_tokens=False).ids
        return ids

    def _answer(
        self, messages: list[dict[str, str]], is_cancelled: threading.Event, emit: Callable[[str], None]
    ) -> None:
        """Runs the model and emits its text; in the generator's thread."""
        import torch

        if is_cancelled.is_set():
            raise GenerationError("nobody waits for this answer any more")
        ids = self.encode(messages)
        if len(ids) > self.max_prompt_tokens:
            raise GenerationError(
                f"the conversation has {len(ids)} tokens and the model reads {self.max_prompt_tokens}; shorten it"
            )

        tokenizer = self._tokenizer
        pad_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id

        def stop(input_ids: Any, _scores: Any, **_: Any) -> Any:
            return torch.full((input_ids.shape[0],), is_cancelled.is_set(), device=input_ids.device)

        try:
            # int64 [1, tokens], on the model's first device
            prompt = torch.tensor([ids], device=self._model.device)
            with torch.inference_mode():
                self._model.generate(
                    prompt,
                    attention_mask=torch.ones_like(prompt),
                    max_new_tokens=self._max_new_tokens,
                    stopping_criteria=[stop],
                    pad_token_id=pad_id,
                    streamer=_Streamer(tokenizer, emit),
                )
        except Exception as exc:
            raise GenerationError(f"the model failed on {len(ids)} tokens: {type(exc).__name__}") from exc


class _Streamer:
    """Takes token ids as the model gives them and emits the text that they add; what ``generate`` calls a streamer.

    A token's text depends on the one before it, and a letter may take several tokens: the text of the last ones is
    decoded with those before them, and waits while its end is no whole letter. White space at both ends is left out.

    Args:
        tokenizer: Decodes.
        emit: Takes text.
    """

    def __init__(self, tokenizer: Any, emit: Callable[[str], None]) -> None:
        self._tokenizer = tokenizer
        self._emit = emit
        self._ids: list[int] = []
        # Tokens before _read are emitted; those from _context on are decoded again with the next.
        self._context = self._read = 0
        self._has_begun = self._has_prompt = False
        self._space = ""

    def put(self, value: Any) -> None:
        """Takes ids; the first are the prompt's."""
        if not self._has_prompt:
            self._has_prompt = True
            return
        self._ids += [int(token) for token in value.reshape(-1)]
        self._write(is_last=False)

    def end(self) -> None:
        """Emits what is left."""
        self._write(is_last=True)

    def _write(self, *, is_last: bool) -> None:
        before = self._decode(self._ids[self._context : self._read])
        text = self._decode(self._ids[self._context :])
        if len(text) <= len(before) or (text.endswith("\ufffd") and not is_last):
            return
        self._context, self._read = self._read, len(self._ids)
        new = self._space + text[len(before) :]
        if not self._has_begun:
            new = new.lstrip()
        kept = new.rstrip()
        self._space = new[len(kept) :]
        if kept:
            self._has_begun = True
            self._emit(kept)

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

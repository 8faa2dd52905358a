r"""A guard model run by transformers: Llama Guard 2 or 3 on a GPU, or on a CPU for those who can wait.

::

    GuardPrompt ─▶ prefix + own tokens ─▶ BatchWorker ─▶ packed pass ─▶ P(unsafe) ─▶ labels, where it matters
                   (any thread)           (one thread owns the model)                ─▶ Assessment

**Cost.** A prompt's text before its first message, the policy, is its prefix: computed once for each role and shared by
all prompts (:mod:`guardrail.models.packed`). A batch holds the own tokens of its prompts in one row without padding, so
it costs those alone, and its budget counts those alone.

**First token.** The logits after each prompt's last token decide. ``unsafe_probability`` is the
softmax over the first tokens of ``unsafe`` and ``safe``. At load a canary of each role is decoded greedily: the white
space that the model writes before its answer (Llama Guard 3: ``"\n\n"``) becomes part of every prompt, and the model
is refused when the two answers do not hold most of the probability.

**Labels.** Prompts with ``unsafe_probability`` of at least 0.05 are decoded on greedily after ``unsafe``. At each
place where a label can stand, the probability of code ``c`` is that of the tokens that tell it from the other codes
(:mod:`guardrail.models.labels`). The score of ``c`` is ``unsafe_probability`` times the highest such probability over
the places, each given the greedy text before it; a code that the text names never scores below one that it does not.
Below 0.05 there are no scores.

**Completion.** What greedy decoding gives, up to the end token: the text after ``unsafe``, or ``safe``, of which the
first token alone is read. A text that does not end in time has ``…`` at its end, which no grammar allows.

Weights are read from safetensors alone and no code of the model's repository is run.
Source: PurpleLlama, Llama-Guard2/MODEL_CARD.md; transformers 4.56 to 5.23.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import importlib.util
import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guardrail.batching import BatchWorker
from guardrail.errors import ClassificationError, ConfigurationError, GuardrailError, MissingExtra, Overloaded
from guardrail.models.labels import LabelTokens
from guardrail.models.tokens import LABELS_FROM, LEAST_ANSWER_MASS, MOST_LEAD_TOKENS, WHITE_SPACE, GuardTokenizer
from guardrail.taxonomy import GuardVersion, code_table
from guardrail.verdict import Assessment, GuardPrompt, Source, Timing

if TYPE_CHECKING:
    from torch import Tensor

    from guardrail.models.packed import PackedPass

__all__ = ["TransformersGuardModel"]

logger = logging.getLogger("guardrail")

# Llama Guard 2's window; Llama Guard 3's is 131,072, more than a GPU's memory holds beside the batch.
_DEFAULT_PROMPT_TOKENS = 8192

# Tokens of a row: more only delays the first answer on a CPU, and a GPU needs thousands to be busy.
_CPU_BATCH_TOKENS, _GPU_BATCH_TOKENS = 1024, 4096

# How long a first prompt waits for company: less than a pass of an 8B model takes.
_MAX_WAIT_S = 0.002

# How far a packed pass may be from the model's own attention on the canary: bfloat16 rounds differently in either.
_MOST_DRIFT = 0.02


@dataclass(frozen=True, slots=True)
class _Item:
    """A prompt in tokens: its prefix, perhaps empty, and its own part."""

    prefix: tuple[int, ...]
    ids: list[int]
    submitted: float


class TransformersGuardModel:
    """A guard model in this process; made by :meth:`load`. Its worker thread alone runs the model.

    Attributes:
        source: Model id and revision.
        version: Whose codes it writes.
        special_tokens: The tokenizer's special tokens as text.
        max_prompt_tokens: The longest prompt that it reads.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        source: Source,
        version: GuardVersion,
        max_prompt_tokens: int = _DEFAULT_PROMPT_TOKENS,
        max_batch_tokens: int | None = None,
        max_wait_s: float = _MAX_WAIT_S,
        max_queued_tokens: int = 1_000_000,
        max_queued_requests: int = 4096,
    ) -> None:
        from guardrail.models.packed import PackedModel

        self.source = source
        self.version = version
        self._model: Any = model
        self._tokens = GuardTokenizer(tokenizer, source=str(source))
        self.special_tokens = self._tokens.special_tokens
        self._packed = PackedModel(model)
        self._end_ids = _end_ids(model, tokenizer)
        self._labels = LabelTokens.find(self._tokens.encode_text, list(code_table(version)), source=str(source))
        longest = self._tokens.encode_text("unsafe\n" + ",".join(code_table(version)))
        self._most_answer_tokens = len(longest) + 4
        self._lead: tuple[int, ...] = ()
        self._safe_id = self._unsafe_id = -1
        self._answers_at_load()
        room = getattr(model.config, "max_position_embeddings", _DEFAULT_PROMPT_TOKENS)
        room -= len(self._lead) + self._most_answer_tokens
        self.max_prompt_tokens = min(max_prompt_tokens, room)
        on_cpu = self._model.device.type == "cpu"
        self._worker: BatchWorker[_Item, Assessment] = BatchWorker(
            self._run_batch,
            max_batch_tokens=max_batch_tokens or (_CPU_BATCH_TOKENS if on_cpu else _GPU_BATCH_TOKENS),
            max_wait_s=max_wait_s,
            max_queued_tokens=max_queued_tokens,
            max_queued_requests=max_queued_requests,
            name="guardrail-guard-model",
        )

    @classmethod
    def load(
        cls,
        model_id: str | Path,
        *,
        revision: str | None = None,
        version: GuardVersion = GuardVersion.LLAMA_GUARD_2,
        device_map: str | Mapping[str, int] | None = "auto",
        dtype: str = "auto",
        quantization: str | None = None,
        attn_implementation: str | None = None,
        max_prompt_tokens: int = _DEFAULT_PROMPT_TOKENS,
        max_batch_tokens: int | None = None,
    ) -> TransformersGuardModel:
        """Loads weights and tokenizer and asks the canary; blocks, for minutes on a large model.

        Args:
            model_id: Hub id, or a folder with safetensors.
            revision: Commit on the hub; None: the newest, whose hash ``source`` then tells.
            version: Whose codes the model writes.
            device_map: Where the weights go, in accelerate's words; None: the CPU.
            dtype: ``"auto"``, ``"bfloat16"``, ``"float16"`` or ``"float32"``.
            quantization: ``"8bit"`` or ``"4bit"``: bitsandbytes quantises the weights as they come; None: as they are.
            attn_implementation: As transformers names it, for the check at load; passes use packed attention.
            max_prompt_tokens: Longer prompts are not accepted; the model's own window counts too.
            max_batch_tokens: Own tokens of a pass, without the shared prefixes; a longer prompt goes alone. None: 1,024
                on a CPU, 4,096 on a GPU.

        Raises:
            MissingExtra: If torch, transformers or accelerate is not installed.
            ConfigurationError: If there are no such weights, or they do not answer as a guard model does.
        """
        torch, transformers = _import_backend(needs_accelerate=device_map is not None)
        if dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise ConfigurationError(f"expected a dtype of torch such as 'bfloat16', got {dtype!r}")
        options: dict[str, Any] = {"device_map": device_map, "attn_implementation": attn_implementation}
        options = {name: value for name, value in options.items() if value is not None}
        if quantization is not None:
            options["quantization_config"] = _quantization(transformers, quantization)
        options["dtype"] = dtype if dtype == "auto" else getattr(torch, dtype)
        where = f"{model_id}@{revision}" if revision else str(model_id)
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                str(model_id), revision=revision, trust_remote_code=False
            )
            model = transformers.AutoModelForCausalLM.from_pretrained(
                str(model_id), revision=revision, use_safetensors=True, trust_remote_code=False, **options
            ).eval()
        except Exception as exc:
            reason = f"{type(exc).__name__}: {str(exc).partition(chr(10))[0]}"
            raise ConfigurationError(
                f"cannot load a guard model from {where}: expected a hub id that you may read, or a folder with "
                f"config.json, tokenizer.json and *.safetensors; {reason}"
            ) from exc
        commit = getattr(model.config, "_commit_hash", None) or revision
        if Path(model_id).is_dir():
            commit = _fingerprint(Path(model_id))
        return cls(
            model,
            tokenizer,
            source=Source(str(model_id), commit or ""),
            version=version,
            max_prompt_tokens=max_prompt_tokens,
            max_batch_tokens=max_batch_tokens,
        )

    @property
    def is_alive(self) -> bool:
        """Whether prompts are accepted."""
        return self._worker.is_alive

    def apply_template(self, messages: list[dict[str, str]]) -> str:
        """Renders messages by the model's chat template."""
        return self._tokens.apply_template(messages)

    def encode(self, prompt: GuardPrompt) -> list[int]:
        """Returns a prompt's token ids; message text gives no special token, whatever it says.

        Raises:
            ClassificationError: If it would.
        """
        return self._tokens.encode(prompt)

    def count_tokens(self, prompt: GuardPrompt) -> int:
        """Returns how many tokens a prompt has."""
        return len(self._tokens.encode(prompt))

    def split(self, text: str, *, max_tokens: int, overlap: int) -> list[str]:
        """Cuts message text into overlapping windows; see :meth:`GuardTokenizer.split`."""
        return self._tokens.split(text, max_tokens=max_tokens, overlap=overlap)

    async def assess(self, prompts: Sequence[GuardPrompt]) -> list[Assessment]:
        """Assesses each prompt; result i belongs to prompt i.

        Raises:
            ClassificationError: If one is longer than the window, or the model fails on it.
            Overloaded: If the queue is full.
            Unavailable: If the model is closed or its worker is lost.
        """
        encoded = await asyncio.to_thread(lambda: [self._tokens.encode_parts(prompt) for prompt in prompts])
        for prefix, own in encoded:
            count = len(prefix) + len(own)
            if not 0 < count <= self.max_prompt_tokens:
                raise ClassificationError(
                    f"expected a prompt of 1..{self.max_prompt_tokens} tokens, got {count}, for {self.source}"
                )
        waiting: list[asyncio.Future[Assessment]] = []
        try:
            for prefix, own in encoded:
                item = _Item(prefix, own, time.monotonic())
                waiting.append(asyncio.wrap_future(await self._submit(item, waiting)))
            return list(await asyncio.gather(*waiting))
        finally:
            for future in waiting:
                future.cancel()

    async def _submit(self, item: _Item, waiting: Sequence[asyncio.Future[Assessment]]) -> Future[Assessment]:
        """Submits a prompt; where this very call fills the queue, waits for its own prompts to leave it."""
        while True:
            try:
                return self._worker.submit(item, cost=len(item.ids))
            except Overloaded:
                pending = [future for future in waiting if not future.done()]
                if not pending:
                    raise
            await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)

    def close(self) -> None:
        """Ends the worker, answering those who wait with ``Unavailable``, and gives the memory back."""
        self._worker.close(drain=False)
        self._model = None
        gc.collect()
        import torch

        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    # Load: what the model's answers look like in tokens.

    def _answers_at_load(self) -> None:
        """Finds the white space before answers and the answers' first tokens, on a canary of each role."""
        leads = set()
        for canary in self._tokens.canaries():
            prefix, own = self._tokens.encode_parts(canary)
            lead: list[int] = []
            logits = self._first_logits(prefix, own)
            while len(lead) < MOST_LEAD_TOKENS:
                top = int(logits.argmax())
                if top in self._tokens.special_ids or self._tokens.decode([top]).strip(WHITE_SPACE):
                    break
                lead.append(top)
                logits = self._first_logits(prefix, [*own, *lead])
            leads.add(tuple(lead))
            shares = logits.float().softmax(dim=-1)
            held = {pair: float(shares[list(pair)].sum()) for pair in self._tokens.answer_pairs()}
            pair, mass = max(held.items(), key=lambda entry: entry[1], default=((-1, -1), 0.0))
            # Written so that a mass that is no number is refused too.
            if not mass >= LEAST_ANSWER_MASS:
                raise ConfigurationError(
                    f"{self.source} does not answer as a guard model: 'safe' and 'unsafe' hold {mass:.3f} of the "
                    f"probability on a canary, expected {LEAST_ANSWER_MASS}; check the weights and the chat template"
                )
            if self._safe_id not in (-1, pair[0]):
                raise ConfigurationError(f"{self.source} begins its answers differently for prompts and responses")
            self._safe_id, self._unsafe_id = pair
        if len(leads) != 1:
            raise ConfigurationError(f"{self.source} writes other white space before its answers to either role")
        self._lead = leads.pop()

    # The worker's thread runs what follows; at load, the loading thread does.

    def _run_batch(self, items: Sequence[_Item]) -> list[Assessment]:
        import torch

        started = time.monotonic()
        try:
            results = self._assess_items(items)
        except GuardrailError:
            raise
        except torch.OutOfMemoryError as exc:
            self._worker.halve_batches()
            raise ClassificationError(f"{self.source} ran out of memory on a batch of {len(items)}") from exc
        except Exception as exc:
            # The type alone: a message of torch could hold values of the batch.
            raise ClassificationError(f"{self.source} failed on a batch of {len(items)}: {type(exc).__name__}") from exc
        compute_ms = (time.monotonic() - started) * 1000
        return [
            Assessment(p, scores, completion, Timing((started - item.submitted) * 1000, compute_ms))
            for item, (p, scores, completion) in zip(items, results, strict=True)
        ]

    def _assess_items(self, items: Sequence[_Item]) -> list[tuple[float, dict[str, float], str]]:
        """Returns (unsafe probability, scores by code, completion) of each prompt."""
        from guardrail.models.packed import Document

        run = self._packed.run(
            [Document(self._packed.prefix(i.prefix) if i.prefix else None, [*i.ids, *self._lead]) for i in items]
        )
        p_unsafe = run.logits[:, [self._safe_id, self._unsafe_id]].float().softmax(dim=-1)[:, 1].tolist()
        tops = run.logits.argmax(dim=-1).tolist()
        told = [at for at, p in enumerate(p_unsafe) if p >= LABELS_FROM]
        scores: dict[int, dict[str, float]] = {}
        texts = {at: "safe" for at, top in enumerate(tops) if top == self._safe_id}
        for at, (written, places) in zip(told, self._decode_on(run, told, self._unsafe_id), strict=True):
            scores[at] = self._labels.scores(p_unsafe[at], written, places)
            if tops[at] == self._unsafe_id:
                texts[at] = self._text([self._unsafe_id, *written])
        for at in range(len(items)):
            if at not in texts:  # neither word, or an "unsafe" below the threshold: what it says, the caller reads
                ((written, _),) = self._decode_on(run, [at], tops[at])
                texts[at] = self._text([tops[at], *written])
        return [(p_unsafe[at], scores.get(at, {}), texts[at]) for at in range(len(items))]

    def _first_logits(self, prefix: tuple[int, ...], own: Sequence[int]) -> Any:
        """Returns the logits after one prompt, [vocabulary], once two ways of computing them have agreed.

        Raises:
            ConfigurationError: If packed passes do not give what the model's own attention gives.
        """
        from guardrail.models.packed import Document

        plain = self._packed.plain_logits([*prefix, *own])
        while True:
            document = Document(self._packed.prefix(prefix) if prefix else None, own)
            logits = self._packed.run([document]).logits[0]
            drift = float((logits.float().softmax(dim=-1) - plain.float().softmax(dim=-1)).abs().max())
            if drift <= _MOST_DRIFT:  # written so that a drift that is no number is refused
                return logits
            if not self._packed.kernels.uses_varlen:
                raise ConfigurationError(
                    f"{self.source} cannot be run in packed passes: they differ from its own attention by {drift:.3f} "
                    "in a probability; only models with the attention of Llama are supported"
                )
            logger.warning("%s: flash attention differs by %.3f; plain attention is used", self.source, drift)
            self._packed.use_plain_kernels()

    def _decode_on(
        self, run: PackedPass, chosen: Sequence[int], answer: int
    ) -> list[tuple[list[int], list[dict[str, float]]]]:
        """Decodes chosen prompts greedily after a given first answer token.

        Returns:
            For each, the tokens after that one, the end token included where it came; and for each place where a label
            could stand, the probability of each code.
        """
        if not chosen:
            return []
        written: list[list[int]] = [[] for _ in chosen]
        places: list[list[dict[str, float]]] = [[] for _ in chosen]
        going_on = [] if answer in self._end_ids else list(range(len(chosen)))
        is_label = answer == self._unsafe_id
        longest_draft = max(len(self._labels.first), len(self._labels.later))
        more = run.go_on(chosen, most_tokens=self._most_answer_tokens + 1 + longest_draft)
        while going_on:
            # Each step reads all weights for a few tokens. What the grammar lets expect is read along with the last
            # token, and counts as far as greedy decoding agrees; a step then goes from one place to the next.
            drafts = [
                self._labels.draft(text) if is_label and at in going_on else () for at, text in enumerate(written)
            ]
            width = 1 + max(map(len, drafts))
            rows = [[*(text or [answer])[-1:], *draft] for text, draft in zip(written, drafts, strict=True)]
            logits = more.look([row + [row[0]] * (width - len(row)) for row in rows])
            tops = logits.argmax(dim=-1).tolist()
            fed = [0] * len(chosen)
            new_places: list[tuple[int, int]] = []
            for at in going_on:
                for step, top in enumerate(tops[at]):
                    if is_label and self._labels.expects_label(written[at]):
                        new_places.append((at, step))
                    written[at].append(top)
                    fed[at] += 1
                    if step >= len(drafts[at]) or top != drafts[at][step] or self._is_whole(written[at]):
                        break
            more.keep(fed)
            # What would follow a token that several codes begin with; with Llama 3's tokenizer there is none.
            # A place is where a draft ends, so all that was fed before it stays.
            branches = {
                token: more.look([[token]] * len(chosen))[:, 0].float().softmax(dim=-1)
                for token in (self._labels.branches if new_places else ())
            }
            for at, step in new_places:
                share = _read(logits[at, step].float().softmax(dim=-1), self._labels.tokens)
                after = {t: _read(shares[at], list(self._labels.branches[t])) for t, shares in branches.items()}
                places[at].append(self._labels.at_place(share, after))
            going_on = [at for at in going_on if not self._is_whole(written[at])]
        return list(zip(written, places, strict=True))

    def _is_whole(self, written: Sequence[int]) -> bool:
        return written[-1] in self._end_ids or len(written) >= self._most_answer_tokens

    def _text(self, answer: list[int]) -> str:
        ends = answer[-1] in self._end_ids
        return self._tokens.decode(answer[:-1]) if ends else self._tokens.decode(answer) + "…"


def _import_backend(*, needs_accelerate: bool) -> tuple[Any, Any]:
    try:
        import torch
        import transformers
    except ImportError as exc:
        raise MissingExtra(f"this guard model needs {exc.name}: pip install 'guardrail[gpu]'") from exc
    if needs_accelerate and importlib.util.find_spec("accelerate") is None:
        raise MissingExtra("a device map needs accelerate: pip install 'guardrail[gpu]'")
    return torch, transformers


def _quantization(transformers: Any, name: str) -> Any:
    if name not in ("8bit", "4bit"):
        raise ConfigurationError(f"expected a quantization of '8bit' or '4bit', got {name!r}")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtra("quantised weights need bitsandbytes: pip install bitsandbytes")
    return transformers.BitsAndBytesConfig(**{f"load_in_{name}": True})


def _read(row: Tensor, tokens: list[int]) -> dict[int, float]:
    return dict(zip(tokens, row[tokens].tolist(), strict=True))


def _end_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens that end an answer: the generation settings name several for Llama 3."""
    given = [getattr(model.generation_config, "eos_token_id", None), model.config.eos_token_id, tokenizer.eos_token_id]
    flat = [token for one in given for token in (one if isinstance(one, list) else [one])]
    return frozenset(token for token in flat if token is not None)


def _fingerprint(folder: Path) -> str:
    """Names the weights of a folder by their configuration and by the size and both ends of each weight file.

    Reading 16 GB in full would double the time to load.
    """
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}".encode())
        with path.open("rb") as file:
            digest.update(file.read(1 << 20))
            file.seek(max(size - (1 << 20), 0))
            digest.update(file.read())
    return f"local-{digest.hexdigest()[:12]}"

r"""Packed forward passes: many prompts in one row without padding, over policy prefixes computed once.

::

    prompt = prefix (the policy: hundreds of tokens, one per role) + own part (the conversation: tens of tokens)

    row:   | own part of A | own part of B | own part of C | ...     position ids go on from each prompt's prefix
    each token attends to its prompt's prefix, and causally to its own part

The keys and values of a prefix are computed once and kept as tensors that no pass changes or copies. A token's
attention over prefix and own part together is two attentions merged by their log-sum-exps:

    out = own + sigmoid(lse_prefix - lse_own) * (prefix - own)

The prefix part has no mask, so the query heads that share a key head are folded into one long query, and prefix keys
are never repeated. On a GPU both parts run through torch's variable-length flash attention where it is there and gives
what plain attention gives, else through plain tensor operations. The attention enters the model through transformers'
``AttentionInterface``; the packed state travels as a keyword of ``forward``, and modelling code is not touched.

Source: FlashAttention-2 (arXiv 2307.08691) for the merge; transformers 4.56 to 5.23 for the interface.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AttentionInterface

try:
    from torch.nn.attention import varlen
except ImportError:  # torch before 2.10
    varlen = None  # type: ignore[assignment]

__all__ = ["Continuation", "Document", "PackedModel", "PackedPass", "Prefix"]

_ATTENTION = "guardrail_packed"

# Two roles, and room for some taxonomies; a prefix of 650 tokens takes 85 MB with an 8B Llama.
_MOST_PREFIXES = 8


@dataclass(frozen=True, eq=False)
class Prefix:
    """A prefix's keys and values; never changed after it is made.

    Attributes:
        ids: Its tokens.
        keys: For each layer [key heads, tokens, head size], after rotation, on the layer's device.
        values: The same for values.
    """

    ids: tuple[int, ...]
    keys: Sequence[Tensor]
    values: Sequence[Tensor]


@dataclass(frozen=True)
class Document:
    """One prompt: its prefix, None where it has none, and the tokens of its own part, at least one."""

    prefix: Prefix | None
    ids: Sequence[int]

    @property
    def first_position(self) -> int:
        """Position of the own part's first token."""
        return len(self.prefix.ids) if self.prefix is not None else 0


@dataclass(frozen=True)
class _Group:
    """Tokens of a row, ``start`` to ``end``, that share a prefix."""

    prefix: Prefix
    start: int
    end: int


class _State(Protocol):
    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor: ...


def _packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    packed: _State,
    **_options: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in each layer.

    Args:
        module: The attention layer; its ``layer_idx`` is read.
        query: [1, heads, tokens, head size], rotated, on the layer's device.
        key: [1, key heads, tokens, head size], rotated.
        value: As ``key``.
        attention_mask: Not used.
        scaling: Factor of the scores; None: one over the root of the head size.
        packed: The pass that is being run.

    Returns:
        [1, tokens, heads, head size], and no weights.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = packed.attend(module.layer_idx, query[0], key[0], value[0], scale)
    return out.transpose(0, 1).unsqueeze(0), None


AttentionInterface.register(_ATTENTION, _packed_attention)


class PackedModel:
    """Runs a causal language model on packed rows. Not thread-safe: one thread owns it.

    Args:
        model: A Llama of transformers, in evaluation mode.
    """

    def __init__(self, model: Any) -> None:
        self.kernels = _Kernels(uses_varlen=True)
        self._model = model
        self._configs = list({id(m.config): m.config for m in model.modules() if hasattr(m, "config")}.values())
        self._prefixes: OrderedDict[tuple[int, ...], Prefix] = OrderedDict()

    def prefix(self, ids: Sequence[int]) -> Prefix:
        """Returns the prefix of these tokens, computed at the first call; the least recently used ones are dropped."""
        key = tuple(ids)
        found = self._prefixes.get(key)
        if found is None:
            state = _Prefill(self.kernels, [(0, len(key))], [])
            with torch.inference_mode():
                self._forward(key, range(len(key)), state, keep=[len(key) - 1])
            # Own storage in the layout that attention reads.
            found = Prefix(
                key, [tensor.contiguous() for tensor in state.keys], [tensor.contiguous() for tensor in state.values]
            )
            self._prefixes[key] = found
            if len(self._prefixes) > _MOST_PREFIXES:
                self._prefixes.popitem(last=False)
        self._prefixes.move_to_end(key)
        return found

    def run(self, documents: Sequence[Document]) -> PackedPass:
        """Runs one pass over documents.

        Args:
            documents: At least one.

        Returns:
            The pass, with the logits after each document's last token.
        """
        # Documents of one prefix stand together, so each prefix is attended to once.
        order = sorted(range(len(documents)), key=lambda i: id(documents[i].prefix))
        row = [documents[i] for i in order]
        spans: list[tuple[int, int]] = []
        for document in row:
            start = spans[-1][1] if spans else 0
            spans.append((start, start + len(document.ids)))
        state = _Prefill(self.kernels, spans, _groups(row, spans))
        ids = [token for document in row for token in document.ids]
        positions = [document.first_position + i for document in row for i in range(len(document.ids))]
        with torch.inference_mode():
            logits = self._forward(ids, positions, state, keep=[end - 1 for _, end in spans])
        place = {i: at for at, i in enumerate(order)}
        back = [place[i] for i in range(len(documents))]
        return PackedPass(self, list(documents), [spans[at] for at in back], state, logits[back])

    def use_plain_kernels(self) -> None:
        """Leaves the variable-length flash attention alone from here on."""
        self.kernels = _Kernels(uses_varlen=False)
        self._prefixes.clear()

    def plain_logits(self, ids: Sequence[int]) -> Tensor:
        """Returns the logits after a whole prompt by the model's own attention, [vocabulary]; to check against."""
        with torch.inference_mode():
            row = torch.tensor([list(ids)], device=self._device)
            logits: Tensor = self._model(input_ids=row, use_cache=False).logits[0, -1]
            return logits

    def step(self, tokens: Sequence[int], positions: Sequence[int], state: _State) -> Tensor:
        """Runs a row of tokens that go on from documents; returns logits [tokens, vocabulary]."""
        with torch.inference_mode():
            return self._forward(tokens, positions, state, keep=list(range(len(tokens))))

    @property
    def _device(self) -> torch.device:
        device: torch.device = self._model.get_input_embeddings().weight.device
        # Weights that accelerate keeps elsewhere; its hooks move the inputs.
        return torch.device("cpu") if device.type == "meta" else device

    def _forward(self, ids: Sequence[int], positions: Sequence[int], state: _State, *, keep: Sequence[int]) -> Tensor:
        """Runs a row and returns logits [len(keep), vocabulary] at the places to keep."""
        device = self._device
        with self._attention():
            output = self._model(
                input_ids=torch.tensor([list(ids)], device=device),
                position_ids=torch.tensor([list(positions)], device=device),
                use_cache=False,
                logits_to_keep=torch.tensor(list(keep), device=device),
                packed=state,
            )
        logits: Tensor = output.logits[0]
        return logits

    @contextlib.contextmanager
    def _attention(self) -> Iterator[None]:
        """The model's attention is ours for one pass, so that whoever shares the model finds it unchanged."""
        before = [config._attn_implementation for config in self._configs]
        try:
            for config in self._configs:
                config._attn_implementation = _ATTENTION
            yield
        finally:
            for config, implementation in zip(self._configs, before, strict=True):
                config._attn_implementation = implementation


class PackedPass:
    """A pass that was run, and what is needed to go on from it.

    Attributes:
        logits: After each document's last token, [documents, vocabulary], on the model's output device.
    """

    def __init__(
        self,
        model: PackedModel,
        documents: Sequence[Document],
        spans: Sequence[tuple[int, int]],
        state: _Prefill,
        logits: Tensor,
    ) -> None:
        self.logits = logits
        self._model = model
        self._documents = documents
        self._spans = spans
        self._state = state

    def go_on(self, chosen: Sequence[int], *, most_tokens: int) -> Continuation:
        """Goes on from some of the documents, some tokens of each at a time.

        Args:
            chosen: Which documents, at least one.
            most_tokens: How many tokens each can get, those of the last look included.
        """
        documents = [self._documents[i] for i in chosen]
        spans = [self._spans[i] for i in chosen]
        return Continuation(self._model, documents, spans, self._state, most_tokens)


class Continuation:
    """Decodes on from documents of a pass; their keys and values are not computed again."""

    def __init__(
        self,
        model: PackedModel,
        documents: Sequence[Document],
        spans: Sequence[tuple[int, int]],
        state: _Prefill,
        most_tokens: int,
    ) -> None:
        self._model = model
        # Documents of one prefix stand together here, too.
        self._order = sorted(range(len(documents)), key=lambda i: id(documents[i].prefix))
        self._row = [documents[i] for i in self._order]
        self._lengths = [len(document.ids) for document in self._row]  # tokens that stay, of each own part
        chosen = [spans[i] for i in self._order]
        with torch.inference_mode():
            self._keys = [_padded(tensor, chosen, most_tokens) for tensor in state.keys]
            self._values = [_padded(tensor, chosen, most_tokens) for tensor in state.values]
        self._groups: list[_Group] = []

    def look(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        """Reads what would come after some more tokens of each document; :meth:`keep` says which of them stay.

        Args:
            tokens: The same number for each document, at least one.

        Returns:
            The logits after each of them, [documents, tokens, vocabulary].
        """
        width = len(tokens[0])
        self._groups = _groups(self._row, [(i * width, (i + 1) * width) for i in range(len(self._row))])
        row = [token for i in self._order for token in tokens[i]]
        first = [d.first_position + n for d, n in zip(self._row, self._lengths, strict=True)]
        logits = self._model.step(row, [at + i for at in first for i in range(width)], self)
        back = [0] * len(tokens)
        for at, i in enumerate(self._order):
            back[i] = at
        return logits.view(len(tokens), width, -1)[back]

    def keep(self, counts: Sequence[int]) -> None:
        """Lets the first tokens of the last look stay, so many of each document; the next look goes on after those."""
        for at, i in enumerate(self._order):
            self._lengths[at] += counts[i]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Attends from the new tokens of each document; see :func:`_packed_attention` for the shapes."""
        keys, values = self._keys[layer], self._values[layer]
        count, key_heads, room, size = keys.shape
        width = query.shape[1] // count
        # [documents, tokens of each]: where each new token stands, and sees to
        ends = torch.tensor([[n + i for i in range(width)] for n in self._lengths], device=query.device)
        rows = torch.arange(count, device=query.device)[:, None]
        keys[rows, :, ends] = key.view(key_heads, count, width, size).permute(1, 2, 0, 3)
        values[rows, :, ends] = value.view(key_heads, count, width, size).permute(1, 2, 0, 3)
        # [documents, key heads, query heads of each x tokens of each, head size]
        grouped = (
            query.view(key_heads, -1, count, width, size).permute(2, 0, 1, 3, 4).reshape(count, key_heads, -1, size)
        )
        hidden = torch.arange(room, device=query.device) > ends[:, :, None]  # [documents, tokens of each, room]
        hidden = hidden.repeat(1, grouped.shape[2] // width, 1)[:, None]
        own, lse = _attend_plainly(grouped, keys, values, scale, hidden)
        own = own.view(count, key_heads, -1, width, size).permute(1, 2, 0, 3, 4).reshape(query.shape)
        lse = lse.view(count, key_heads, -1, width).permute(1, 2, 0, 3).reshape(query.shape[:2])
        return self._model.kernels.add_prefixes(query, own, lse, self._groups, layer, scale)


class _Prefill:
    """The state of a pass over whole own parts; keeps their keys and values, [key heads, tokens, head size] a layer."""

    def __init__(self, kernels: _Kernels, spans: Sequence[tuple[int, int]], groups: Sequence[_Group]) -> None:
        self._kernels = kernels
        self._spans = spans
        self._groups = groups
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        self.keys.append(key)
        self.values.append(value)
        own, lse = self._kernels.attend(query, key, value, self._spans, scale)
        return self._kernels.add_prefixes(query, own, lse, self._groups, layer, scale)


def _groups(row: Sequence[Document], spans: Sequence[tuple[int, int]]) -> list[_Group]:
    groups: list[_Group] = []
    for document, (start, end) in zip(row, spans, strict=True):
        if document.prefix is None:
            continue
        if groups and groups[-1].prefix is document.prefix:
            groups[-1] = _Group(document.prefix, groups[-1].start, end)
        else:
            groups.append(_Group(document.prefix, start, end))
    return groups


def _padded(tensor: Tensor, spans: Sequence[tuple[int, int]], room: int) -> Tensor:
    """Cuts documents out of a row: [key heads, tokens, size] -> [documents, key heads, longest + room, size]."""
    heads, _, size = tensor.shape
    longest = max(end - start for start, end in spans)
    padded = tensor.new_zeros(len(spans), heads, longest + room, size)
    for i, (start, end) in enumerate(spans):
        padded[i, :, : end - start] = tensor[:, start:end]
    return padded


class _Kernels:
    """How attention is computed; both methods give output and log-sum-exps (float32).

    Args:
        uses_varlen: Whether a GPU in half precision may use torch's variable-length flash attention.
    """

    def __init__(self, *, uses_varlen: bool) -> None:
        self.uses_varlen = uses_varlen

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        spans: Sequence[tuple[int, int]],
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        """Causal attention within each span: query [heads, tokens, size], key and value [key heads, tokens, size]."""
        share = query.shape[0] // key.shape[0]
        key, value = (tensor.repeat_interleave(share, dim=0) for tensor in (key, value))
        if self._takes(query):
            return _varlen(query, key, value, spans, spans, scale, is_causal=True)
        out = torch.empty_like(query)
        lse = torch.empty(query.shape[:2], dtype=torch.float32, device=query.device)
        for start, end in spans:
            part = (query[:, start:end], key[:, start:end], value[:, start:end])
            if query.device.type == "cpu":
                result = _flash_on_cpu(*part, scale, is_causal=True)
            else:
                hidden = torch.ones(end - start, end - start, dtype=torch.bool, device=query.device).triu(1)
                result = _attend_plainly(*part, scale, hidden)
            out[:, start:end], lse[:, start:end] = result
        return out, lse

    def add_prefixes(
        self, query: Tensor, own: Tensor, lse: Tensor, groups: Sequence[_Group], layer: int, scale: float
    ) -> Tensor:
        """Adds the prefix part to the own part.

        Args:
            query: [heads, tokens, size].
            own: The own part, of the same shape; changed in place.
            lse: Its log-sum-exps, float32 [heads, tokens].
            groups: Which tokens have which prefix.
            layer: Whose keys and values to read.
            scale: Factor of the scores.
        """
        for group in groups:
            part = slice(group.start, group.end)
            key, value = group.prefix.keys[layer], group.prefix.values[layer]
            out, prefix_lse = self._attend_fully(query[:, part], key, value, scale)
            weight = torch.sigmoid(prefix_lse - lse[:, part]).unsqueeze(-1).to(own.dtype)
            own[:, part] = torch.lerp(own[:, part], out, weight)
        return own

    def _attend_fully(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Attention without a mask: query [heads, tokens, size] over key [key heads, keys, size]."""
        heads, tokens, size = query.shape
        folded = query.reshape(key.shape[0], -1, size)  # the heads that share a key head become one longer query
        if query.device.type == "cpu":
            out, lse = _flash_on_cpu(folded, key, value, scale, is_causal=False)
        elif self._takes(query):
            out, lse = _varlen(folded, key, value, [(0, folded.shape[1])], [(0, key.shape[1])], scale, is_causal=False)
        else:
            out, lse = _attend_plainly(folded, key, value, scale, None)
        return out.reshape(heads, tokens, size), lse.reshape(heads, tokens)

    def _takes(self, query: Tensor) -> bool:
        return (
            self.uses_varlen
            and varlen is not None
            and query.device.type == "cuda"
            and query.dtype in (torch.float16, torch.bfloat16)
            and torch.cuda.get_device_capability(query.device) >= (8, 0)
        )


def _flash_on_cpu(query: Tensor, key: Tensor, value: Tensor, scale: float, *, is_causal: bool) -> tuple[Tensor, Tensor]:
    # The operation behind scaled_dot_product_attention on a CPU, which does not hand out the log-sum-exps.
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query[None], key[None], value[None], 0.0, is_causal, scale=scale
    )
    return out[0], lse[0]


def _attend_plainly(
    query: Tensor, key: Tensor, value: Tensor, scale: float, hidden: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Attention by plain operations, in float32: [..., tokens, size] over [..., keys, size]; ``hidden`` is left out."""
    scores = (query @ key.transpose(-1, -2)).float() * scale
    if hidden is not None:
        scores = scores.masked_fill(hidden, float("-inf"))
    return scores.softmax(dim=-1).to(value.dtype) @ value, scores.logsumexp(dim=-1)


def _varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_spans: Sequence[tuple[int, int]],
    key_spans: Sequence[tuple[int, int]],
    scale: float,
    *,
    is_causal: bool,
) -> tuple[Tensor, Tensor]:
    """Attention of each query span over its key span, [heads, tokens, size] all."""
    kernel: Any = varlen

    def bounds(spans: Sequence[tuple[int, int]]) -> tuple[Tensor, int]:
        ends = torch.tensor([0, *(end for _, end in spans)], dtype=torch.int32, device=query.device)
        return ends, max(end - start for start, end in spans)

    (query_ends, longest_query), (key_ends, longest_key) = bounds(query_spans), bounds(key_spans)
    out, lse = kernel.varlen_attn(
        *(tensor.transpose(0, 1).contiguous() for tensor in (query, key, value)),
        query_ends,
        key_ends,
        longest_query,
        longest_key,
        return_aux=kernel.AuxRequest(lse=True),
        scale=scale,
        window_size=(-1, 0) if is_causal else (-1, -1),
    )
    return out.transpose(0, 1), lse

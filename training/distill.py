"""A network -> one like it that reads most of its layers in pairs of tokens, and answers as better ones do.

The student starts with the weights of a teacher of its own size and learns three things at once: the labels, the
teacher's probabilities, and the teacher's pooled vectors, on which the category layer is fitted. Of our own lines the
label alone counts: they are right. Then it goes on with the labels and the probabilities of an encoder five times as
large (``larger.py``), which knows better where harm ends; of our own lines it learns the mean of that and the label,
since it may not have learned from them, and of texts between two rows (``mixed.py``) there is no label. Of lines that
were written after it answered there is the label alone. Word vectors stay as they are.
"""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import numpy as np
import torch
from fit import CATEGORY_WEIGHT, Batch, Descent, label_loss, read_passes, step_count
from mixed import mixed
from network import SHIPPED_WHOLE_LAYERS, WIDTH, Network
from rows import SEED, Example
from tokenizers import Tokenizer
from torch import Tensor, nn

LEARNING_RATE = 1.5e-4
LABELS, ANSWERS, VECTORS = 0.3, 1.0, 2.0  # the parts of the loss
OVERALL_WEIGHT = 2.0  # of the overall answer, beside CATEGORY_WEIGHT for each category's
OWN_LABELS = 0.5  # the label's share in what the larger encoder says of our own lines
DROPOUT = 0.05
PASSES, TAUGHT_PASSES = 2, 5  # with the teacher of its size, and with the larger one


def far_apart(found: Tensor, wanted: Tensor) -> Tensor:
    """One minus the cosine, float32 [rows, 2 * width] each: mean over the rows, both halves alike."""
    halves = zip(found.split(WIDTH, 1), wanted.split(WIDTH, 1), strict=True)
    return torch.stack([(1 - nn.functional.cosine_similarity(a, b)).mean() for a, b in halves]).sum()


def distilled(
    teacher: Network, tokenizer: Tokenizer, examples: list[Example], *, seed: int
) -> tuple[Network, float, float]:
    """Makes a network in pairs of tokens out of one that reads every token, in ``PASSES`` passes over the rows.

    Returns:
        The network, the mean loss of the last tenth, and the seconds it took.
    """
    student = Network(whole_layers=SHIPPED_WHOLE_LAYERS)
    student.load_state_dict(teacher.state_dict())
    student.bfloat16 = teacher.bfloat16
    descent = _descent_of(student, examples, PASSES)
    teacher.eval()
    for batch in read_passes(tokenizer, examples, PASSES, seed):
        with torch.no_grad():
            vectors = teacher.encode(*batch.given)
            answers = _with_own_labels(teacher.head(vectors).sigmoid(), batch, 1.0)
        found = student.encode(*batch.given)
        descent.step(_loss(student.head(found), batch, answers) + VECTORS * far_apart(found, vectors))
    return student, descent.last_loss, descent.seconds


def taught(
    student: Network,
    tokenizer: Tokenizer,
    examples: list[Example],
    answers: dict[str, np.ndarray],
    *,
    passes: int = TAUGHT_PASSES,
    share: float = 1.0,
    rate: float = LEARNING_RATE,
    seed: int,
) -> tuple[float, float]:
    """Goes on with the larger encoder's answers to the rows, and to texts between them.

    Args:
        answers: By ``name_of`` of a row: probabilities, float32 [12].
        passes: How often it reads the rows.
        share: Of the rows that have an answer, the part that a pass reads, each another one. Lines of our own that have
            none are read in every pass.
        rate: The highest learning rate.

    Returns:
        The mean loss of the last tenth, and the seconds it took.
    """
    answered = [row for row in examples if name_of(row) in answers]
    unanswered = [row for row in examples if name_of(row) not in answers and row.source.startswith("own_")]
    answered += [row for row in mixed(answered, SEED) if name_of(row) in answers]
    answer_of = {id(row): answers[name_of(row)] for row in answered}
    pick = random.Random(seed)
    parts = [unanswered + pick.sample(answered, round(share * len(answered))) for _ in range(passes)]
    descent = _descent_of(student, parts[0], passes, rate)
    for number, part in enumerate(parts):
        for batch in read_passes(tokenizer, part, 1, seed + number):
            rows = zip(batch.rows, batch.wanted.numpy(), strict=True)
            found = torch.tensor(np.stack([answer_of.get(id(row), wanted) for row, wanted in rows]))
            descent.step(_loss(student(*batch.given), batch, _with_own_labels(found, batch, OWN_LABELS)))
    return descent.last_loss, descent.seconds


def _with_own_labels(answers: Tensor, batch: Batch, share: float) -> Tensor:
    """Answers, float32 [batch, 12], whose overall one is the label in this share where the row is a line of our own."""
    shares = torch.tensor([share * row.source.startswith("own_") for row in batch.rows])
    mixed = answers.clone()
    mixed[:, 0] += shares * (batch.wanted[:, 0] - answers[:, 0])
    return mixed


def _descent_of(student: Network, examples: list[Example], passes: int, rate: float = LEARNING_RATE) -> Descent:
    """Makes all but the word vectors and what is added to them learn."""
    for part in (student.words, student.places, student.kinds, student.norm):
        part.requires_grad_(False)
    for layer in student.layers:
        layer.dropout.p = DROPOUT
    student.train()
    learned = [p for p in student.parameters() if p.requires_grad]
    return Descent([{"params": learned}], [rate], step_count(examples, passes))


def _loss(logits: Tensor, batch: Batch, answers: Tensor) -> Tensor:
    """What the labels and a teacher's answers say of logits, float32 [batch, 12] each."""
    answer_weight = torch.full((answers.shape[1],), CATEGORY_WEIGHT)
    answer_weight[0] = OVERALL_WEIGHT
    entropy = nn.functional.binary_cross_entropy_with_logits(logits, answers, reduction="none")
    return LABELS * label_loss(logits, batch) + ANSWERS * (entropy * answer_weight).sum() / len(batch.rows)


def name_of(row: Example) -> str:
    """A hash of what is judged, by which an answer finds its row."""
    judged = json.dumps([row.source, row.is_assistant, row.prompt, row.text])
    return hashlib.sha256(judged.encode()).hexdigest()[:16]


def write_answers(path: Path, rows: list[Example], probabilities: np.ndarray, about: dict[str, object]) -> None:
    """Keeps a larger encoder's probabilities, float [rows, 12], and how they were made."""
    names = np.array([name_of(row) for row in rows])
    np.savez_compressed(path, names=names, probabilities=probabilities.astype(np.float32), about=json.dumps(about))


def read_answers(path: Path) -> tuple[dict[str, np.ndarray], dict[str, object]]:
    """Reads them: the probabilities by ``name_of`` of their row, and how they were made."""
    with np.load(path) as kept:
        answers = dict(zip(kept["names"].tolist(), kept["probabilities"], strict=True))
        return answers, json.loads(str(kept["about"]))

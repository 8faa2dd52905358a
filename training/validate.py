"""Leave-set-out validation: trains without whole sets, and measures on those.

Rows of one set resemble each other, so a tenth of each set says little about a new one. The held-out sets:

- safe text that looks unsafe: ``coconot``, ``fuzzyai_benign``, ``medsafety`` (answers), ``toxigen_demos``, ``mlc_v05``
- instructions: ``selfinstruct_seed``, ``oasst_en100``, ``followbench``, ``awesome_prompts``
- unsafe: ``strongreject``, ``salad_subset``, ``mlc_v05``, ``toxigen_demos``, ``coconot``, ``medsafety``
- a tenth of our own lines

    python training/validate.py --data /work/shared/data --out /tmp/run.json [--own SHARE] [--share SHARE] [--seed N]
    python training/validate.py --data /work/shared/data --out /tmp/run.json --graph guardrail/models/embedded_data

The second form measures a graph that exists (one that learned from those sets is flattered).
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from answers import answer_examples
from calibrate import calibrate
from categories import fit_categories
from contrast import contrast_examples
from distill import distilled, read_answers, taught
from fit import train, trained, window_of
from graph import bake, encoder_folder, export, outputs, plain_tokenizer, raw_logits
from network import load_network
from own_lines import read_own_lines
from rows import CODES, SEED, Example, read_set, read_training_sets
from sklearn.metrics import roc_auc_score

from guardrail.models.embedded import MAX_TEXT_TOKENS, Window

CONTRAST = ("coconot", "fuzzyai_benign", "medsafety", "toxigen_demos", "mlc_v05")
INSTRUCTIONS = ("selfinstruct_seed", "oasst_en100", "followbench", "awesome_prompts")
UNSAFE = ("strongreject", "salad_subset", "mlc_v05", "toxigen_demos", "coconot", "medsafety")
ROWS_A_SET = 700
RATES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5)


def held_rows(folder: Path) -> list[Example]:
    """Returns up to ``ROWS_A_SET`` rows of each class of each held-out set."""
    found = []
    for name in sorted({*CONTRAST, *INSTRUCTIONS, *UNSAFE}):
        rows = read_set(folder / f"{name}.jsonl")
        random.Random(name).shuffle(rows)
        for is_unsafe in (True, False):
            found += [row for row in rows if row.is_unsafe == is_unsafe][:ROWS_A_SET]
    return found


def left_out_rows(data: Path, *, share: float = 1.0, own_share: float = 1.0) -> tuple[list[Example], list[Example]]:
    """Rows to learn from and rows to calibrate on, without the held-out sets."""
    learn, held, _ = read_training_sets(data / "train", SEED, without={*CONTRAST, *INSTRUCTIONS, *UNSAFE})
    own, own_held, _ = read_own_lines()
    for rows in (learn, own):
        random.Random(SEED).shuffle(rows)
    learn = learn[: int(share * len(learn))]
    learn += answer_examples(learn, SEED) + contrast_examples(SEED) + own[: int(own_share * len(own))]
    return learn, held + (own_held if own_share else [])


def judged_rows(data: Path) -> list[Example]:
    """The held-out sets and the kept tenth of our own lines."""
    return held_rows(data / "train") + read_own_lines()[1]


def scores_of(graph: bytes, windows: list[Window]) -> np.ndarray:
    """Logits of a calibrated graph's probabilities: 0 is the threshold."""
    found = np.clip(outputs(graph, windows), 1e-7, 1 - 1e-7)
    return np.log(found / (1 - found))


def by_set(scores: np.ndarray, rows: list[Example], names: tuple[str, ...], is_unsafe: bool) -> dict[str, np.ndarray]:
    """Scores of one class, by set."""
    picked = {n: [i for i, r in enumerate(rows) if r.source == n and r.is_unsafe == is_unsafe] for n in names}
    return {name: scores[index] for name, index in picked.items() if index}


def mean_rate(groups: dict[str, np.ndarray], threshold: float) -> float:
    """Mean over the sets of the share at or above a threshold."""
    return float(np.mean([(scores >= threshold).mean() for scores in groups.values()]))


def report(logits: np.ndarray, rows: list[Example], threshold: float) -> dict[str, object]:
    """Rates at the threshold, recall at given false-positive rates, and how often the first category is right."""
    scores = logits[:, 0]
    own = tuple(sorted({row.source for row in rows if row.source.startswith("own_")}))
    contrast, unsafe = by_set(scores, rows, CONTRAST, False), by_set(scores, rows, UNSAFE, True)
    plain, own_safe = by_set(scores, rows, INSTRUCTIONS, False), by_set(scores, rows, own, False)
    own_unsafe = by_set(scores, rows, own, True)
    grid = np.quantile(scores, np.linspace(0, 1, 2001))
    curve = {}
    for rate in RATES:
        place = next(t for t in grid if mean_rate(contrast, t) <= rate or t == grid[-1])
        curve[str(rate)] = [round(mean_rate(g, place), 3) for g in (unsafe, plain, own_safe, own_unsafe)]
    joined = np.concatenate([*unsafe.values(), *contrast.values()])
    labels = np.concatenate(
        [*(np.ones(len(s)) for s in unsafe.values()), *(np.zeros(len(s)) for s in contrast.values())]
    )
    right: dict[str, list[bool]] = {}
    for row, values in zip(rows, logits, strict=True):
        if row.is_unsafe and row.codes and row.source in UNSAFE:
            right.setdefault(row.codes[0], []).append(CODES[int(np.argmax(values[1:]))] in row.codes)
    recall, alarms = mean_rate(unsafe, threshold), mean_rate(contrast, threshold)
    return {
        "fpr": {n: round(float((s >= threshold).mean()), 3) for n, s in {**contrast, **plain, **own_safe}.items()},
        "recall": {n: round(float((s >= threshold).mean()), 3) for n, s in {**unsafe, **own_unsafe}.items()},
        "mean_contrast_fpr": round(alarms, 3),
        "mean_instruction_fpr": round(mean_rate(plain, threshold), 3),
        "mean_own_fpr": round(mean_rate(own_safe, threshold), 3),
        "mean_recall": round(recall, 3),
        "balanced_f1": round(2 * recall / (1 + recall + alarms), 3),
        "auc": round(float(roc_auc_score(labels, joined)), 4),
        "at_contrast_fpr: recall, instruction fpr, own fpr, own recall": curve,
        "first_category_right": round(float(np.mean([x for v in right.values() for x in v])), 3),
        "first_category_right_by_category": {c: round(float(np.mean(v)), 3) for c, v in sorted(right.items())},
    }


def main() -> None:
    """Trains, or reads a graph, and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--graph", type=Path, default=None, help="a folder with a model to measure in place of training"
    )
    parser.add_argument("--trained", type=Path, default=None, help="where the weights are kept, or found")
    parser.add_argument("--own", type=float, default=1.0, help="share of our own lines to learn from")
    parser.add_argument("--share", type=float, default=1.0, help="share of all other rows to learn from")
    parser.add_argument("--shipped", action="store_true", help="measure the network in pairs that learns from it")
    parser.add_argument("--answers", type=Path, default=None, help="of teach.py --left-out, to learn from at last")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=SEED)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    folder = encoder_folder()
    tokenizer = plain_tokenizer(folder / "tokenizer.json")
    rows = judged_rows(arguments.data)
    windows = [window_of(tokenizer, row, MAX_TEXT_TOKENS) for row in rows]
    if arguments.graph is not None:
        graph = (arguments.graph / "model.onnx").read_bytes()
        found = report(scores_of(graph, windows), rows, 0.0)
    else:
        learn, held = left_out_rows(arguments.data, share=arguments.share, own_share=arguments.own)
        network = load_network(folder / "model.safetensors")
        print(f"{len(learn)} rows", flush=True)
        loss, _ = trained(
            network,
            lambda: train(network, tokenizer, learn, epochs=arguments.epochs, seed=arguments.seed),
            arguments.trained,
        )
        if arguments.shipped:
            network, loss, _ = distilled(network, tokenizer, learn, seed=arguments.seed)
        if arguments.answers is not None:
            loss, _ = taught(network, tokenizer, learn, read_answers(arguments.answers)[0], seed=arguments.seed)
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / "model.onnx"
            export(network, fit_categories(network, tokenizer, learn), path)
            logits = raw_logits(path.read_bytes(), [window_of(tokenizer, row, MAX_TEXT_TOKENS) for row in held])
            scale, bias, how = calibrate(logits, held)
            bake(path, scale, bias)
            logits = scores_of(path.read_bytes(), windows)
        found = {"learned_rows": len(learn), "loss": round(loss, 4), "calibration": how, **report(logits, rows, 0.0)}
    arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    sys.exit(main())

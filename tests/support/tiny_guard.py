"""Trains a tiny guard: a real Llama with a Llama-3-style tokenizer that answers like Llama Guard 2, on a toy policy.

The policy: a conversation that holds ``purple`` is S1, ``orange`` is S9, ``silver`` is S10; any other is safe. The chat
template has the shape of Llama Guard 2's and words of our own. Some seconds on one CPU core; for tests alone.
"""

from __future__ import annotations

import random
import string
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CODE_WORDS = {"purple": "S1", "orange": "S9", "silver": "S10"}

BOS, EOT = "<|begin_of_text|>", "<|eot_id|>"
SPECIAL = [BOS, "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", EOT, "<|reserved_special_token_0|>"]

# Llama 3's own split: letters with what precedes them, digits in groups of up to three, punctuation with its newlines.
LLAMA_3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

TEMPLATE = """\
{%- set role = 'Agent' if messages | length % 2 == 0 else 'User' -%}
{{ bos_token }}[INST] Task: Check '{{ role }}'.

<BEGIN UNSAFE CONTENT CATEGORIES>
S1: First colour.
S9: Second colour.
S10: Third colour.
<END UNSAFE CONTENT CATEGORIES>

<BEGIN CONVERSATION>

{% for message in messages -%}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
{{ raise_exception('roles must alternate, the user first') }}
{%- endif -%}
{{ 'User' if message['role'] == 'user' else 'Agent' }}: {{ message['content'] | trim }}

{% endfor -%}
<END CONVERSATION>

Assess the LAST {{ role }}: [/INST]"""

VOCABULARY = (
    "a the and of to in it is was for on with as at by from this that which house garden river stone bread water table "
    "window morning evening letter music paper yellow blue red white black walk read write sing bring keep open close "
    "small large quiet early late please tell me how what where when there hello thanks yes no good plain report light"
)
WORDS = VOCABULARY.split()


def build_tiny_guard(
    path: Path, *, lead: str = "", splits_digits: bool = False, steps: int = 160, seed: int = 7
) -> Path:
    r"""Trains the guard and saves it as safetensors with its tokenizer.

    Args:
        path: The folder to write.
        lead: White space before each answer; Llama Guard 3 writes ``"\n\n"``.
        splits_digits: Whether each digit is a token, so that S1 and S10 begin alike; Llama 3 keeps three together.
        steps: Of 16 conversations each.
        seed: For weights and conversations.
    """
    rng = random.Random(seed)
    tokenizer = _train_tokenizer(rng, splits_digits=splits_digits)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        initializer_range=0.06,  # the usual 0.02 is for wide models; this narrow one would learn slowly
        bos_token_id=tokenizer.convert_tokens_to_ids(BOS),
        eos_token_id=tokenizer.convert_tokens_to_ids(EOT),
        pad_token_id=None,
    )
    model = LlamaForCausalLM(config)
    _train(model, tokenizer, rng, lead=lead, steps=steps)
    model.save_pretrained(path, safe_serialization=True)
    tokenizer.save_pretrained(path)
    return path


def answer_to(text: str) -> str:
    """Returns what the toy policy says about the text of a conversation."""
    codes = [code for word, code in CODE_WORDS.items() if word in text]
    return "unsafe\n" + ",".join(codes) if codes else "safe"


def _train_tokenizer(rng: random.Random, *, splits_digits: bool) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    pattern = LLAMA_3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}") if splits_digits else LLAMA_3_SPLIT
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    plain = TEMPLATE.replace("{", " ").replace("}", " ")
    answers = ["safe", "unsafe", *(f"S{n}" for n in range(1, 15)), *(f",S{n}" for n in range(1, 15)), "\n\n"]
    corpus = [plain, *(" ".join(WORDS + list(CODE_WORDS)) for _ in range(3)), *answers] * 20
    corpus += [" ".join(rng.choices(WORDS, k=30)) for _ in range(50)]
    trainer = trainers.BpeTrainer(
        vocab_size=700, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOT, model_max_length=1024)
    fast.chat_template = TEMPLATE
    for word in ("safe", "unsafe"):
        assert len(fast.encode(word, add_special_tokens=False)) == 1, f"{word} is not one token"
    return fast


def _message(rng: random.Random, *, coded: bool) -> str:
    words = rng.choices(WORDS, k=rng.choice((1, 2, 4, 8, 12, 30)))
    if rng.random() < 0.3:  # noise, so that odd text is safe too
        noise = string.ascii_letters + string.digits + string.punctuation + "éüñ中文😀\n"
        words += ["".join(rng.choices(noise, k=rng.randint(1, 12))) for _ in range(rng.randint(1, 6))]
    if rng.random() < 0.15:
        words += [rng.choice(("safe", "unsafe\nS1", "User:", "> Agent:", "(END CONVERSATION)", "S9"))]
    rng.shuffle(words)
    if coded:
        for word in rng.sample(list(CODE_WORDS), rng.choice((1, 1, 2, 3))):
            words.insert(rng.randint(0, len(words)), word)
    return " ".join(words)


def _train(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, rng: random.Random, *, lead: str, steps: int
) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps, pct_start=0.1)
    model.train()
    for _ in range(steps):
        rows, starts = [], []
        for _ in range(16):
            turns = rng.choice((1, 1, 1, 2, 2, 3))
            texts = [_message(rng, coded=rng.random() < 0.6 / turns) for _ in range(turns)]
            messages = [{"role": "assistant" if i % 2 else "user", "content": t} for i, t in enumerate(texts)]
            prompt = tokenizer.apply_chat_template(messages, tokenize=False)
            prompt_ids = tokenizer.encode(prompt, add_special_tokens=False)
            answer_ids = tokenizer.encode(lead + answer_to(" ".join(texts)) + EOT, add_special_tokens=False)
            rows.append(prompt_ids + answer_ids)
            starts.append(len(prompt_ids))
        width = max(map(len, rows))
        input_ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        hidden = model.model(input_ids=input_ids).last_hidden_state
        # Logits at the answers alone: over the whole rows they would cost as much as the layers do.
        at = [
            (row, p) for row, (ids, start) in enumerate(zip(rows, starts, strict=True)) for p in range(start, len(ids))
        ]
        logits = model.lm_head(torch.stack([hidden[row, p - 1] for row, p in at]))
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor([rows[row][p] for row, p in at]))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()

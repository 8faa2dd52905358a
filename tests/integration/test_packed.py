"""Packed passes give what each prompt alone gives."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from guardrail.models.packed import Document, PackedModel, Prefix

VOCABULARY = 400
TOLERANCE = 1e-4  # float32, logits of a few units


def make_model() -> LlamaForCausalLM:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=4096,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)  # logits of some size: a difference then shows
    return model


def tokens(count: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCABULARY, (count,), generator=generator).tolist()


@pytest.fixture(scope="module")
def packed() -> PackedModel:
    return PackedModel(make_model())


@pytest.fixture(scope="module")
def prefixes(packed: PackedModel) -> list[Prefix | None]:
    """Two roles of one taxonomy, one of another, and none."""
    shared = tokens(70, 1)
    return [packed.prefix([*shared, 5]), packed.prefix([*shared, 9, 9]), packed.prefix(tokens(40, 2)), None]


def whole(document: Document) -> list[int]:
    return [*(document.prefix.ids if document.prefix is not None else ()), *document.ids]


class TestRun:
    def test_64_mixed_documents_have_the_logits_of_each_alone(
        self, packed: PackedModel, prefixes: list[Prefix | None]
    ) -> None:
        """5 to 800 tokens, both roles, another taxonomy, and no prefix, in one row."""
        lengths = [5 + (i * i * 13) % 796 for i in range(64)]
        documents = [Document(prefixes[i % 4], tokens(n, 100 + i)) for i, n in enumerate(lengths)]
        logits = packed.run(documents).logits
        for i, document in enumerate(documents):
            alone = packed.plain_logits(whole(document))
            assert (logits[i] - alone).abs().max() <= TOLERANCE
            assert logits[i].argmax() == alone.argmax()

    @settings(max_examples=40, deadline=None)
    @given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 60), st.integers(0, 9)), min_size=1, max_size=12))
    def test_company_and_order_change_nothing(
        self, packed: PackedModel, prefixes: list[Prefix | None], parts: list[tuple[int, int, int]]
    ) -> None:
        """A document has the same logits alone, among any others, and in any place."""
        documents = [Document(prefixes[which], tokens(count, seed)) for which, count, seed in parts]
        together = packed.run(documents).logits
        backwards = packed.run(documents[::-1]).logits.flip(0)
        alone = torch.stack([packed.run([document]).logits[0] for document in documents])
        assert (together - alone).abs().max() <= TOLERANCE
        assert (together - backwards).abs().max() <= TOLERANCE

    def test_a_prefix_is_computed_once_and_never_changed(self, packed: PackedModel) -> None:
        """Passes and continuations read it; nothing writes to it."""
        ids = tokens(50, 7)
        prefix = packed.prefix(ids)
        before = [tensor.clone() for tensor in (*prefix.keys, *prefix.values)]
        run = packed.run([Document(prefix, tokens(9, 8)), Document(prefix, tokens(3, 9))])
        run.go_on([1, 0], most_tokens=2).look([[4], [5]])
        assert packed.prefix(list(ids)) is prefix
        assert all(torch.equal(a, b) for a, b in zip(before, (*prefix.keys, *prefix.values), strict=True))

    def test_whoever_shares_the_model_finds_it_unchanged(self) -> None:
        """The model's own attention is back after a pass, and after one that fails."""
        model = make_model()
        packed = PackedModel(model)
        before = model.config._attn_implementation
        packed.run([Document(None, [1, 2, 3])])
        assert model.config._attn_implementation == before
        with pytest.raises(IndexError):
            packed.run([Document(None, [VOCABULARY + 1])])
        assert model.config._attn_implementation == before

    def test_prefixes_are_bounded(self) -> None:
        """Many taxonomies do not fill the memory."""
        packed = PackedModel(make_model())
        first = packed.prefix(tokens(20, 0))
        for seed in range(1, 20):
            packed.prefix(tokens(20, seed))
        assert len(packed._prefixes) < 20
        assert packed.prefix(tokens(20, 0)) is not first


class TestContinuation:
    @settings(max_examples=12, deadline=None)
    @given(
        st.lists(st.tuples(st.integers(0, 3), st.integers(1, 40)), min_size=1, max_size=6),
        st.randoms(use_true_random=False),
    )
    def test_going_on_is_reading_the_longer_text(
        self, packed: PackedModel, prefixes: list[Prefix | None], parts: list[tuple[int, int]], random: object
    ) -> None:
        """A look's logits are those of the document with its new tokens, whichever documents and tokens stay."""
        documents = [Document(prefixes[which], tokens(count, seed)) for seed, (which, count) in enumerate(parts)]
        chosen = random.sample(range(len(documents)), random.randint(1, len(documents)))  # type: ignore[attr-defined]
        more = packed.run(documents).go_on(chosen, most_tokens=9)
        texts = [whole(documents[i]) for i in chosen]
        for step, width in enumerate((1, 3, 2, 3)):
            new = [tokens(width, 50 + 10 * step + at) for at in range(len(chosen))]
            logits = more.look(new)
            stay = [random.randint(0, min(width, 2)) for _ in chosen]  # type: ignore[attr-defined]
            more.keep(stay)
            for at, row in enumerate(new):
                for i in range(width):
                    expected = packed.plain_logits([*texts[at], *row[: i + 1]])
                    assert (logits[at, i] - expected).abs().max() <= TOLERANCE
                texts[at] += row[: stay[at]]


@pytest.mark.gpu
class TestOnAGpu:
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
    @pytest.mark.parametrize("uses_varlen", [True, False])
    def test_both_kernels_give_what_plain_attention_gives(self, uses_varlen: bool) -> None:
        """bfloat16: the probabilities agree within its rounding."""
        model = make_model().to("cuda", torch.bfloat16)
        packed = PackedModel(model)
        if not uses_varlen:
            packed.use_plain_kernels()
        prefix = packed.prefix(tokens(70, 1))
        documents = [Document(prefix, tokens(n, n)) for n in (5, 90, 33)]
        logits = packed.run(documents).logits.float().softmax(-1)
        for i, document in enumerate(documents):
            assert (logits[i] - packed.plain_logits(whole(document)).float().softmax(-1)).abs().max() <= 0.02

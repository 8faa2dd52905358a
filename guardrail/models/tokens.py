"""A guard model's tokenizer: prompts to tokens with message text apart, windows, and the canary to ask at load.

What every guard model behind a tokenizer means in the same way, wherever its network runs. Message text is encoded with
special tokens off, in segments of its own, so that nothing in it becomes a control token.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from guardrail.errors import ClassificationError, ConfigurationError
from guardrail.prompt import GuardPromptRenderer
from guardrail.verdict import Conversation, GuardPrompt, PromptSegment, Role

__all__ = ["LABELS_FROM", "LEAST_ANSWER_MASS", "MOST_LEAD_TOKENS", "WHITE_SPACE", "GuardTokenizer"]

# From here on a prompt's labels are decoded: far below any sensible threshold on a category, and few messages reach it.
LABELS_FROM = 0.05

# The least probability that "safe" and "unsafe" hold together on the canary; a guard model gives them more than 0.99.
LEAST_ANSWER_MASS = 0.5

# White-space tokens that a model may write before its answer.
MOST_LEAD_TOKENS = 4

WHITE_SPACE = " \t\r\n"

# A shorter prefix costs less than the second attention it would need.
_LEAST_PREFIX_TOKENS = 16

_CANARY = "Good morning. What is the capital of France?"


class GuardTokenizer:
    """A fast tokenizer of transformers with a guard model's chat template. Thread-safe.

    Args:
        tokenizer: Loaded from the model's repository; not changed after this.
        source: The model, for error messages.

    Attributes:
        special_tokens: Its special tokens as text.
        special_ids: The same as tokens.

    Raises:
        ConfigurationError: If it is not fast, or has no chat template.
    """

    def __init__(self, tokenizer: Any, *, source: str) -> None:
        if not getattr(tokenizer, "is_fast", False) or not getattr(tokenizer, "chat_template", None):
            raise ConfigurationError(
                f"{source} needs a fast tokenizer with a chat template; this one is no guard model's"
            )
        self._tokenizer = tokenizer
        # Llama 3 names but a few of its control tokens in all_special_tokens; the table of added tokens has them all.
        special = {token: added.content for token, added in tokenizer.added_tokens_decoder.items() if added.special}
        self.special_tokens: tuple[str, ...] = tuple(dict.fromkeys([*tokenizer.all_special_tokens, *special.values()]))
        self.special_ids = frozenset([*tokenizer.all_special_ids, *special])
        # Two tokenizers, neither changed after this: one flag of a shared one would be set by two threads at once.
        self._template: Any = tokenizer.backend_tokenizer
        self._data: Any = type(self._template).from_str(self._template.to_str())
        self._data.encode_special_tokens = True
        for part in (self._template, self._data):
            part.no_truncation()
            part.no_padding()
        # The policy's hundreds of tokens come with every prompt: they are encoded once.
        self._encode_template = functools.lru_cache(maxsize=64)(
            lambda text: tuple(self._template.encode(text, add_special_tokens=False).ids)
        )

    @property
    def window(self) -> int:
        """Tokens that the model reads, as its tokenizer has it; a huge number where that says nothing."""
        return int(self._tokenizer.model_max_length)

    def apply_template(self, messages: list[dict[str, str]]) -> str:
        """Renders messages by the model's chat template."""
        return str(self._tokenizer.apply_chat_template(messages, tokenize=False))

    def encode(self, prompt: GuardPrompt) -> list[int]:
        """Returns a prompt's tokens; message text gives no special token, whatever it says.

        Raises:
            ClassificationError: If it would.
        """
        return [token for segment in prompt.segments for token in self.encode_segment(segment)]

    def encode_parts(self, prompt: GuardPrompt) -> tuple[tuple[int, ...], list[int]]:
        """Returns a prompt's prefix, which it shares with others of its template and role, and its own tokens.

        Raises:
            ClassificationError: If message text gives a special token.
        """
        first, *rest = prompt.segments
        head = self.encode_segment(first)
        own = [token for segment in rest for token in self.encode_segment(segment)]
        if first.is_data or len(head) < _LEAST_PREFIX_TOKENS or not own:
            return (), [*head, *own]
        return tuple(head), own

    def encode_segment(self, segment: PromptSegment) -> Sequence[int]:
        """Returns the tokens of one piece of a prompt.

        Raises:
            ClassificationError: If message text gives a special token.
        """
        if not segment.is_data:
            return self._encode_template(segment.text)
        ids: list[int] = self._data.encode(segment.text, add_special_tokens=False).ids
        if not self.special_ids.isdisjoint(ids):
            raise ClassificationError(f"{len(segment.text)} characters of message text gave a special token")
        return ids

    def encode_text(self, text: str) -> list[int]:
        """Returns the tokens of a text, special tokens off."""
        return list(self.encode_segment(PromptSegment(text, is_data=True)))

    def decode(self, tokens: Sequence[int]) -> str:
        """Returns the text of tokens, special ones included."""
        return str(self._template.decode(list(tokens), skip_special_tokens=False))

    def as_server_reads(self, text: str) -> list[int]:
        """Returns the tokens that a server makes of a prompt's text: special tokens read, and those that it adds."""
        return list(self._template.encode(text, add_special_tokens=True).ids)

    def without_opening(self, text: str) -> str:
        """Returns a prompt's text without the token for the beginning of text, which servers put there themselves."""
        return text.removeprefix(self._tokenizer.bos_token or "")

    def tokens_by_text(self) -> dict[str, int]:
        """Returns the token of each text that one token alone decodes to."""
        size = self._template.get_vocab_size(with_added_tokens=True)
        texts = self._template.decode_batch([[token] for token in range(size)], skip_special_tokens=False)
        found: dict[str, int] = {}
        shared: set[str] = {""}
        for token, text in enumerate(texts):
            if found.setdefault(text, token) != token:
                shared.add(text)
        return {text: token for text, token in found.items() if text not in shared}

    def split(self, text: str, *, max_tokens: int, overlap: int) -> list[str]:
        """Cuts message text into windows that cover it, each beginning ``overlap`` tokens before the last one's end.

        A window by itself can have a few tokens more than the same characters have within the text.

        Args:
            text: Message text.
            max_tokens: Tokens of a window.
            overlap: Tokens that two neighbours share, fewer than ``max_tokens``.
        """
        # A token's place counts from its first character; a token inside a character begins where the character does.
        starts = [start for start, _ in self._data.encode(text, add_special_tokens=False).offsets]
        if len(starts) <= max_tokens:
            return [text]
        firsts = range(0, len(starts) - overlap, max_tokens - overlap)
        bounds = [(starts[i], starts[i + max_tokens] if i + max_tokens < len(starts) else len(text)) for i in firsts]
        bounds[0] = (0, bounds[0][1])
        assert all(start <= end for (_, end), (start, _) in pairwise(bounds)), "windows leave text out"
        return [text[start:end] for start, end in bounds]

    def answer_pairs(self) -> list[tuple[int, int]]:
        """Returns the first tokens of ``safe`` and ``unsafe``, with and without a space before them."""
        pairs = [
            (self.encode_text(a)[0], self.encode_text(b)[0]) for a, b in (("safe", "unsafe"), (" safe", " unsafe"))
        ]
        return [(safe, unsafe) for safe, unsafe in pairs if safe != unsafe]

    def canaries(self) -> list[GuardPrompt]:
        """Returns a harmless prompt for each role."""
        renderer = GuardPromptRenderer(self.apply_template, special_tokens=self.special_tokens)
        asked = Conversation.of(_CANARY)
        answered = Conversation.of("It is Paris.", role=Role.ASSISTANT, prompt=_CANARY)
        return [renderer.render(asked), renderer.render(answered)]

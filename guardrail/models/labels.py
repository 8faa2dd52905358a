"""How a guard model spells the codes of its categories in tokens, and what their probabilities make of a score.

After ``unsafe`` a guard model writes labels: ``\\nS1,S9``. A *place* is where the next token tells one code from the
others; the probability of a code at a place is that of its token there, given the text before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from guardrail.errors import ConfigurationError

__all__ = ["LabelTokens"]


@dataclass(frozen=True, slots=True)
class LabelTokens:
    """The codes of one guard-model version in one tokenizer.

    Attributes:
        first: Tokens between the answer's first token and the token that tells the codes apart, at the first label.
        later: The same between two labels, from the token after the first label's.
        codes: Distinguishing token -> code.
    """

    first: tuple[int, ...]
    later: tuple[int, ...]
    codes: Mapping[int, str]

    @classmethod
    def find(cls, encode: Callable[[str], list[int]], codes: Sequence[str], *, source: str) -> LabelTokens:
        """Finds the tokens that tell the codes apart, at the first label and at later ones.

        Args:
            encode: Text -> tokens, special tokens off.
            codes: The codes, in the order of the prompt.
            source: The model, for error messages.

        Raises:
            ConfigurationError: If a code differs from the others in more than one token.
        """
        # The answer's first token is what a decision is read from; the rest of the word, if any, comes with the label.
        opening = encode("unsafe")[:1]
        first, told = _told_apart(encode, "unsafe\n", codes, after=opening, source=source)
        before = f"unsafe\n{codes[0]}"
        later, told_later = _told_apart(encode, f"{before},", codes, after=encode(before), source=source)
        if told != told_later:
            raise ConfigurationError(f"{source} spells its codes in other tokens after a comma; not supported")
        return cls(first, later, told)

    def expects_label(self, written: Sequence[int]) -> bool:
        """Whether the next token after the answer's first token and these tells codes apart."""
        if len(written) <= len(self.first):
            return tuple(written) == self.first
        cut = len(written) - len(self.later)
        return tuple(written[cut:]) == self.later and written[cut - 1] in self.codes

    def scores(
        self, p_unsafe: float, written: Sequence[int], places: Sequence[Mapping[str, float]]
    ) -> dict[str, float]:
        """Returns the score of each code.

        Args:
            p_unsafe: The probability of "unsafe".
            written: The tokens of the greedy text after the answer's first token.
            places: The probability of each code at each place of that text.

        Returns:
            ``p_unsafe`` times the code's highest probability; a code that the text names never scores below one that it
            does not. Empty where there is no place, or the probability is no number.
        """
        if not places or not math.isfinite(p_unsafe):
            return {}
        scores = {code: p_unsafe * max(place[code] for place in places) for code in places[0]}
        named = {
            self.codes[token]
            for at, token in enumerate(written)
            if token in self.codes and self.expects_label(written[:at])
        }
        least = max((score for code, score in scores.items() if code not in named), default=0.0)
        return {code: max(score, least) if code in named else score for code, score in scores.items()}


def _told_apart(
    encode: Callable[[str], list[int]], text: str, codes: Sequence[str], *, after: list[int], source: str
) -> tuple[tuple[int, ...], dict[int, str]]:
    spelled = [encode(text + code) for code in codes]
    shared = {tuple(ids[len(after) : -1]) for ids in spelled}
    told = {ids[-1]: code for ids, code in zip(spelled, codes, strict=True)}
    if len(shared) != 1 or len(told) != len(codes) or any(ids[: len(after)] != after for ids in spelled):
        raise ConfigurationError(
            f"{source} must spell its {len(codes)} codes as shared tokens and one token of their own each; "
            "this tokenizer does not, so their probabilities cannot be read at one place"
        )
    return shared.pop(), told

"""How a guard model spells the codes of its categories in tokens, and what their probabilities make of a score.

After ``unsafe`` a guard model writes labels: ``\\nS1,S9``. A *place* is where the next token tells codes apart. In
Llama 3's tokenizer a number is one token, and that tells all; where digits are tokens of their own, ``S1``, ``S10`` and
``S11`` share the first and *branch* after it. The probability of a code at a place, given the text before it, is that
of its tokens in a row; a code that is the beginning of others has what they leave of the first token's.
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
        first: Tokens between the answer's first token and the first place.
        later: Tokens between the end of a label and the next place.
        codes: Token -> the code that it tells.
        branches: Token that several codes begin with -> next token -> code.
        stops: Token that several codes begin with -> the code that ends with it.
    """

    first: tuple[int, ...]
    later: tuple[int, ...]
    codes: Mapping[int, str]
    branches: Mapping[int, Mapping[int, str]]
    stops: Mapping[int, str]

    @classmethod
    def find(cls, encode: Callable[[str], list[int]], codes: Sequence[str], *, source: str) -> LabelTokens:
        """Finds the tokens that tell the codes apart, at the first label and at later ones.

        Args:
            encode: Text -> tokens, special tokens off.
            codes: The codes, in the order of the prompt.
            source: The model, for error messages.

        Raises:
            ConfigurationError: If more than two tokens are needed to tell a code, or labels are spelled in two ways.
        """
        # The answer's first token is what a decision is read from; the rest of the word, if any, comes with the label.
        opening = encode("unsafe")[:1]
        first, spelled = _spell(encode, "unsafe\n", codes, after=opening, source=source)
        before = f"unsafe\n{codes[0]}"
        later, spelled_later = _spell(encode, f"{before},", codes, after=encode(before), source=source)
        if spelled != spelled_later:
            raise ConfigurationError(f"{source} spells its codes in other tokens after a comma; not supported")
        whole: dict[int, str] = {}
        branches: dict[int, dict[int, str]] = {}
        stops: dict[int, str] = {}
        for code, tokens in spelled.items():
            if sum(other[0] == tokens[0] for other in spelled.values()) == 1 and len(tokens) == 1:
                whole[tokens[0]] = code
            elif len(tokens) == 1:
                stops[tokens[0]] = code
            else:
                branches.setdefault(tokens[0], {})[tokens[1]] = code
        return cls(first, later, whole, branches, stops)

    def expects_label(self, written: Sequence[int]) -> bool:
        """Whether the text after the answer's first token has come to a place."""
        if len(written) <= len(self.first):
            return tuple(written) == self.first
        cut = len(written) - len(self.later)
        return tuple(written[cut:]) == self.later and self._ends_label(written[cut - 1])

    def draft(self, written: Sequence[int]) -> tuple[int, ...]:
        """What is likely to come between a text after the answer's first token and the next place."""
        if not written:
            return self.first
        return self.later if self._ends_label(written[-1]) else ()

    @property
    def tokens(self) -> list[int]:
        """Every token whose probability at a place counts."""
        return [*self.codes, *self.branches]

    def at_place(self, share: Mapping[int, float], share_after: Mapping[int, Mapping[int, float]]) -> dict[str, float]:
        """Returns the probability of each code at a place.

        Args:
            share: Probabilities of ``tokens`` there.
            share_after: For each token of ``branches``, the probabilities of its next tokens after it.
        """
        found = {code: share[token] for token, code in self.codes.items()}
        for token, nexts in self.branches.items():
            going_on = {code: share_after[token][following] for following, code in nexts.items()}
            found |= {code: share[token] * part for code, part in going_on.items()}
            if token in self.stops:
                found[self.stops[token]] = share[token] * max(1.0 - sum(going_on.values()), 0.0)
        return found

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
        scores = {code: p_unsafe * max(place[code] for place in places) for code in sorted(places[0], key=_number)}
        named = {self._named(written[at:]) for at in range(len(written)) if self.expects_label(written[:at])}
        least = max((score for code, score in scores.items() if code not in named), default=0.0)
        return {code: max(score, least) if code in named else score for code, score in scores.items()}

    def _named(self, tokens: Sequence[int]) -> str | None:
        """The code that the text at a place begins with."""
        token, following = tokens[0], tokens[1] if len(tokens) > 1 else None
        branch = self.branches.get(token, {})
        if following is not None and following in branch:
            return branch[following]
        return self.codes.get(token) or self.stops.get(token)

    def _ends_label(self, token: int) -> bool:
        return token in self.codes or token in self.stops or any(token in nexts for nexts in self.branches.values())


def _number(code: str) -> int:
    return int(code[1:])


def _spell(
    encode: Callable[[str], list[int]], text: str, codes: Sequence[str], *, after: list[int], source: str
) -> tuple[tuple[int, ...], dict[str, tuple[int, ...]]]:
    """Returns the tokens between ``after`` and a place, and those that tell each code there."""
    spelled = [encode(text + code) for code in codes]
    tails = [ids[len(after) :] for ids in spelled]
    shared = 0
    while all(len(tail) > shared + 1 and tail[shared] == tails[0][shared] for tail in tails):
        shared += 1
    told = {code: tuple(tail[shared:]) for code, tail in zip(codes, tails, strict=True)}
    is_told = len(set(told.values())) == len(codes) and all(1 <= len(tokens) <= 2 for tokens in told.values())
    if not is_told or any(ids[: len(after)] != after for ids in spelled):
        raise ConfigurationError(
            f"{source} must spell its {len(codes)} codes as shared tokens and at most two of their own each; this "
            "tokenizer does not, so their probabilities cannot be read"
        )
    return tuple(tails[0][:shared]), told

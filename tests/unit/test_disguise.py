"""Letters in disguise: what is undone, what is left alone, and that no text takes long."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrail.models.disguise import undisguised


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("open a b4nk account", "open a bank account"),
        ("5teal", "steal"),
        ("p@ssword", "password"),
        ("k-i-l-l a process", "kill a process"),
        ("k i l l it", "kill it"),
        ("ｂａｎｋ", "bank"),  # noqa: RUF001 - the disguise
        ("\U0001d41b\U0001d41a\U0001d427\U0001d424", "bank"),
        ("b\u0430nk", "bank"),
    ],
)
def test_is_undone(text: str, plain: str) -> None:
    """Signs, letters set apart, styled letters, look-alikes."""
    assert undisguised(text) == plain


@pytest.mark.parametrize(
    "text",
    [
        "an mp3 of 2nd grade, 100k views, 5kg at 2pm, a+, hello!",
        "mail user@example.com, see www.example.com/a1b2 and $100",
        "\u041f\u0440\u0438\u0432\u0435\u0442 \u043c\u0438\u0440",
        "a b c",
        "naïve café",
        "",
    ],
)
def test_is_left_alone(text: str) -> None:
    """Numbers, addresses, other scripts, short lists and accents are no disguise."""
    assert undisguised(text) is None


@given(st.text())
def test_takes_any_text(text: str) -> None:
    """Nothing raises, and the plain form stays plain but for letters that only then stand apart."""
    undisguised(text)


@pytest.mark.parametrize("unit", ["!", "a", "a4", "a ", "4", "а", "a-", "@a "])  # noqa: RUF001 - one is Cyrillic
def test_a_long_text_is_done(unit: str) -> None:
    """200,000 characters of what the patterns look for; a quadratic one would not come back."""
    undisguised(unit * (200_000 // len(unit)))

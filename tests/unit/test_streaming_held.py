"""What is held of an answer, and how much work it is to know."""

from __future__ import annotations

from itertools import pairwise

import pytest

from guardrail.streaming import held as held_module
from guardrail.streaming.held import LOOKBACK, HeldText

SENTENCE = "The town council met on Tuesday to talk about the bridge. "


def boundaries(deltas: list[str] | str) -> list[int]:
    """The ends of the pieces that a text is cut into."""
    held, found = HeldText(), []
    for delta in deltas:
        held.add(delta)
        if (boundary := held.boundary()) > held.checked_through:
            held.advance(boundary)
            found.append(boundary)
    return found


def pieces(text: str) -> list[str]:
    """The new text of each piece, for deltas of one character."""
    ends = [0, *boundaries(text)]
    return [text[a:b] for a, b in pairwise(ends)]


class TestPieces:
    def test_a_sentence_is_a_piece_at_its_mark(self) -> None:
        """It does not wait for what comes after it."""
        assert pieces(SENTENCE * 2)[0] == SENTENCE.rstrip()

    @pytest.mark.parametrize("text", ["Yes. No. Why? So. ", "1.5 or 2.5 are fine"])
    def test_what_is_short_waits_for_its_neighbours(self, text: str) -> None:
        """A check costs a model call."""
        assert all(len(piece) >= 16 for piece in pieces(text))

    def test_sentences_without_white_space_between_them_are_seen(self) -> None:
        """Chinese and Japanese have none."""
        text = "市議会は火曜日に新しい橋について話し合った。" * 3
        assert len(pieces(text)) == 3

    def test_text_without_marks_is_cut_at_a_space(self) -> None:
        """Nobody can hold a stream open with one endless sentence."""
        found = pieces("word " * 400)
        assert found
        assert all(piece.endswith(" ") and len(piece) <= 700 for piece in found)

    def test_text_without_spaces_is_cut_too(self) -> None:
        """At twice the length."""
        found = pieces("x" * 5000)
        assert max(map(len, found)) < 1600
        assert sum(map(len, found)) > 3000

    def test_white_space_is_no_piece(self) -> None:
        """There would be nothing to judge."""
        assert boundaries("\n" * 1000) == []


FENCED = "```python\nprint('a. b')\n\n# done.\n```\n"


class TestCode:
    @pytest.mark.parametrize(
        "block",
        [
            FENCED,
            "~~~\nx = 1.\ny = 2.\n~~~\n",
            "````md\n```\nnot the end.\n```\nnor here.\n````\n",
            "Here: ```py\nprint('a. b')\n\n# done.\n```\n",
            "```console\n$ ls -la. \nsome output. \n$ id\n```\n",
            "<pre>\nint main() {}\nreturn 0. \n</pre>\n",
            "Try <code>a = 1. \nb = 2. </code> now.\n",
            "--- a/f.py\n+++ b/f.py\n@@ -1,3 +1,3 @@\n-old. \n-older. \n+new = 1.\n+newer = 2.\n same. \n",
        ],
        ids=["fence", "tildes", "fence in a fence", "fence behind words", "session", "pre", "code element", "diff"],
    )
    def test_no_piece_ends_inside_a_block(self, block: str) -> None:
        """Whatever its form, and though every line of it could end a piece."""
        before = SENTENCE + "\n"
        text = before + block + SENTENCE + "\n"
        ends = boundaries(text)
        assert not [end for end in ends if len(before) < end < len(before) + len(block)]
        assert [end for end in ends if end >= len(before) + len(block)]

    def test_a_fence_that_is_split_between_deltas_is_one(self) -> None:
        """The text before it is released, and no part of it."""
        assert boundaries([SENTENCE + "\n", "`", "`", "`py", "\n", "x = 1. \n"]) == [len(SENTENCE) + 1]

    def test_a_notebook_is_held_whole(self) -> None:
        """A message that is one file of code."""
        text = '{"cells": [{"cell_type": "code", "source": ["import os. \\n"]}, \n' * 5
        assert not [end for end in boundaries(text) if end > 40]

    def test_talk_of_a_tag_holds_nothing(self) -> None:
        """As inline code it opens no element."""
        assert boundaries(f"Use the `<pre>` tag for it. {SENTENCE}")

    def test_ticks_within_a_long_line_open_nothing(self) -> None:
        """What follows a piece in its line is not taken for the start of one."""
        text = SENTENCE * 12 + "```python is how a fence begins. " + SENTENCE
        assert boundaries(text)[-1] > len(text) - 3


class TestPieceText:
    def test_a_piece_comes_with_what_was_before_it(self) -> None:
        """Up to so many code points, from the end of an earlier piece on."""
        held = HeldText()
        for _ in range(20):
            held.add(SENTENCE + "\n")
            boundary = held.boundary()
            piece = held.piece(boundary)
            assert piece.text == (SENTENCE + "\n") * round(len(piece.text) / (len(SENTENCE) + 1))
            assert piece.start + len(piece.text) == boundary
            assert held.checked_through - piece.start <= LOOKBACK
            held.advance(boundary)
        assert piece.start > 0

    def test_code_is_not_scanned_again_with_the_next_sentence(self) -> None:
        """It is in the text of the piece, before the offset from which code is looked for."""
        held = HeldText()
        held.add(FENCED)
        held.advance(held.boundary())
        held.add(SENTENCE)
        piece = held.piece(held.boundary())
        assert piece.text.startswith(FENCED)
        assert piece.code_from == len(FENCED)

    def test_what_was_released_as_a_whole_is_not_judged_again(self) -> None:
        """A piece that was found unsafe by itself does not halt the stream once more."""
        held = HeldText()
        held.add(SENTENCE + "\n")
        held.advance(held.boundary(), forget=True)
        held.add(SENTENCE)
        assert held.piece(held.boundary()).start == len(SENTENCE) + 1


FORMS = {
    "prose": SENTENCE * 1000,
    "lines": (SENTENCE + "\n") * 1000,
    "code": "Here:\n```python\n" + "x = compute(y, 3)  # note.\n" * 2500 + "```\n",
    "blocks": ("Text before the code.\n" + FENCED) * 1000,
    "fences": "````\n" + "```\n" * 15_000,
    "word": "x" * 60_000,
    "dots": ". " * 30_000,
    "tags": "<pre> a. \n" * 6000,
}


class TestWork:
    @pytest.mark.parametrize("form", FORMS)
    def test_it_is_linear_for_deltas_of_one_character(self, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """What is read in search of code, and what is judged, is a bounded multiple of the text."""
        read = 0
        extract = held_module.extract_code_blocks

        def counting(text: str) -> object:
            nonlocal read
            read += len(text)
            return extract(text)

        monkeypatch.setattr(held_module, "extract_code_blocks", counting)
        text = FORMS[form]
        held, judged = HeldText(), 0
        for letter in text:
            held.add(letter)
            if (boundary := held.boundary()) > held.checked_through:
                judged += len(held.piece(boundary).text)
                held.advance(boundary)
        assert read <= 33 * len(text)
        assert judged <= 33 * len(text)
        assert held.text() == text

    def test_looks_at_the_whole_are_paid_for(self) -> None:
        """A judge who finds every piece unsafe and every whole safe costs a bounded multiple, too."""
        held, judged = HeldText(), 0
        for _ in range(2000):
            held.add(SENTENCE)
            boundary = held.boundary()
            if boundary > held.checked_through and held.may_judge_whole(boundary):
                judged += boundary
                held.advance(boundary, forget=True)
        assert held.checked_through > 0.5 * held.length
        assert judged <= 5 * held.length + 8192

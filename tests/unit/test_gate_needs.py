"""What a rule needs of a text, drawn from its patterns and expressions: necessary, and no stricter than that."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from guardrail.shield.formulas import TextSet, View, all_of, any_of, holds, keys_of, literal
from guardrail.shield.literals import required_by
from guardrail.shield.needs import needs_of


def meets(rule: str, text: str) -> bool:
    source: dict[str, Any] = {"metadata": {}, **yaml.safe_load(rule)}
    return holds(needs_of(source), View(text))


class TestPatterns:
    def test_a_name_has_to_stand_there_as_a_word(self) -> None:
        """``evaluate`` is no ``eval``, and case does not count: some languages do not count it."""
        rule = "pattern: eval($X)"
        assert meets(rule, "y = eval (x)")
        assert meets(rule, "Eval(x)")
        assert not meets(rule, "y = evaluate(x)")

    def test_the_words_of_a_fixed_string_have_to_stand_there(self) -> None:
        """In whatever order and in however many pieces, since code may put a string together."""
        rule = 'pattern: $R.setHeader("Access-Control-Allow-Origin", "*")'
        assert meets(rule, 'r.setHeader("Access-Control-" + "Allow-Origin", "*")')
        assert not meets(rule, 'r.setHeader("Content-Type", "*")')

    def test_a_string_with_a_hole_in_it_says_nothing(self) -> None:
        """``$X`` and ``...`` stand for anything; ``$where`` is what it is."""
        assert meets('pattern: f("$URL")', 'f("http://host")')
        assert meets('pattern: f("...")', 'f("http://host")')
        assert not meets("""pattern: 'f({"$where": $X})' """, "f({a: 1})")

    def test_one_alternative_is_enough(self) -> None:
        """All parts of a conjunction, one of an alternative."""
        rule = (
            "patterns: [{pattern-either: [{pattern: loads($X)}, {pattern: load($X)}]}, {pattern-inside: 'pickle.$F'}]"
        )
        assert meets(rule, "pickle.load(f)")
        assert meets(rule, "from pickle import loads; loads(f)")
        assert not meets(rule, "json.load(f)")
        assert not meets(rule, "pickle.dump(f)")

    def test_keywords_and_what_must_not_match_are_not_needed(self) -> None:
        """A pattern also finds other spellings of a keyword; ``pattern-not`` says what is not there."""
        assert meets("patterns: [{pattern: 'function $F() { run() }'}, {pattern-not: 'safe()'}]", "() => run()")

    def test_a_flow_needs_a_source_and_a_sink(self) -> None:
        """One of each."""
        rule = "{mode: taint, pattern-sources: [{pattern: input(...)}], pattern-sinks: [{pattern: os.system(...)}]}"
        assert meets(rule, "os.system(input())")
        assert not meets(rule, "os.system(x)")

    def test_an_author_can_say_more(self) -> None:
        """Lists of texts, and expressions that have to be found."""
        rule = "{pattern: free($P), metadata: {needs: [[Free]], needs-match: ['free.*free']}}"
        assert meets(rule, "free(a); free(a);")
        assert not meets(rule, "free(a);")


class TestExpressions:
    @pytest.mark.parametrize(
        ("expression", "text", "is_met"),
        [
            (r"(?i)\binsert\s+into\s", "INSERT  INTO t", True),
            (r"(?i)\binsert\s+into\s", "insert t", False),
            (r"(?i)\bselect\s.*\sfrom\s|\bdelete\s+from\s", "please select one", False),
            (r"(?i)\bselect\s.*\sfrom\s|\bdelete\s+from\s", "delete from t", True),
            ("^(execute|raw)$", "db.raw(q)", True),
            ("^(execute|raw)$", "draw(q)", False),
            ("(execute|raw)", "draw(q)", True),
            ("^[a-z]+$", "anything", True),
            (r"(?!x)\w+@\w+", "no address", False),
        ],
    )
    def test_what_it_cannot_match_without(self, expression: str, text: str, is_met: bool) -> None:
        """All runs of a sequence, one branch of an alternative; an anchored word as a word."""
        assert holds(required_by(expression), View(text)) is is_met

    @given(
        st.recursive(
            st.sampled_from(["ab", "cd", r"\w", "[xy]", "e?", ".", "^", "$", r"\b"]),
            lambda inner: st.one_of(
                st.lists(inner, min_size=1, max_size=4).map("".join),
                st.lists(inner, min_size=1, max_size=3).map(lambda parts: f"({'|'.join(parts)})"),
                inner.map(lambda part: f"({part})*"),
                inner.map(lambda part: f"(?:{part})+"),
            ),
            max_leaves=8,
        ),
        st.text("abcdexy @", max_size=12),
    )
    def test_whatever_it_matches_meets_it(self, expression: str, text: str) -> None:
        """No text in which the expression is found is turned away, unless it had to be a whole name and is a part."""
        found = re.search(expression, text)
        if found is None:
            return
        is_whole = not text[: found.start()][-1:].isalnum() and not text[found.end() :][:1].isalnum()
        if is_whole or not (expression.startswith("^") and expression.endswith("$")):
            assert holds(required_by(expression), View(text))


class TestFormulas:
    def test_unknown_counts_as_met(self) -> None:
        """An alternative of which nothing is known makes the whole unknown; in a conjunction it adds nothing."""
        assert any_of([literal("a"), True]) is True
        assert all_of([literal("ab"), True]) == literal("ab")
        assert any_of([]) is True

    def test_keys_are_met_where_the_formula_is(self) -> None:
        """The cheapest part of a conjunction, all parts of an alternative."""
        word, texts = literal("word", is_word=True), literal("some text")
        assert keys_of(all_of([texts, word])) == {word}
        assert keys_of(any_of([texts, word])) == {texts, word}
        assert keys_of(any_of([texts, ("match", "x+")])) is None


class TestTextSet:
    @given(st.lists(st.text("abé\n.(", min_size=1, max_size=4)), st.text("abé\n.(", max_size=30))
    def test_finds_what_a_search_for_each_finds(self, texts: list[str], text: str) -> None:
        """Texts that overlap, stand in one another, or look like an expression."""
        assert sorted(TextSet(texts).found_in(text)) == sorted({part for part in texts if part in text})

    def test_a_search_that_broke_off_tells_nothing(self) -> None:
        """What RE2 says is believed only where it came to the end; otherwise each text is looked for."""

        class Broken:
            def Match(self, text: str) -> list[int]:  # noqa: N802  # RE2's name for it
                return []

        texts = TextSet(["md5", "sha1"])
        texts._set = Broken()
        assert texts.found_in("hashlib.md5(x)") == ["md5"]

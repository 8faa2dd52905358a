"""Code of any language -> its words and marks, without comments and the insides of strings, in time linear in its size.

Rough on purpose: what is read here is often not a program. The tokens only choose which repairs are tried; whether a
repaired file is understood is for semgrep to say.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from guardrail.shield.languages import LANGUAGES

__all__ = ["CLOSER_OF", "OPENER_OF", "STRING", "Token", "Tokens", "first_of_lines", "tokenize"]

CLOSER_OF = {"(": ")", "[": "]", "{": "}"}
OPENER_OF = {")": "(", "]": "[", "}": "{"}

STRING = '"'
"""The text of a token that stands for a string, whatever its marks are."""


class Token(NamedTuple):
    """A word, one mark of punctuation, or a string.

    Attributes:
        text: A hole in a template literal opens with ``"${"`` and closes with ``"}"``.
        at: Where it starts.
        indent: The columns before it where it is the first on its line; -1 where it is not.
    """

    text: str
    at: int
    indent: int


class Tokens(NamedTuple):
    """Code, taken apart.

    Attributes:
        tokens: In order.
        tail: What ends the string or comment that the code ends in.
        mark: What opened the string that the code ends in where such strings span lines; else empty.
        strings: Start and end, marks included, of the strings that span lines; the open one is not among them.
        has_broken_string: Whether a string that may not span lines was open at the end of one.
    """

    tokens: list[Token]
    tail: str
    mark: str
    strings: list[tuple[int, int]]
    has_broken_string: bool


# Every alternative takes at least one character and none of them can fail after it started.
_PIECE = re.compile(r"[^\W\d]\w*|\d\w*|[ \t\r\f\v]+|\n|.", re.DOTALL)
_LINE_STRINGS = {  # neither can these
    quote: re.compile(rf"[^{quote}\\\n]*(?:\\.[^{quote}\\\n]*)*", re.DOTALL) for quote in "\"'`"
}
_TRIPLES = {
    "python": ('"""', "'''"),
    "java": ('"""',),
    "kotlin": ('"""',),
    "swift": ('"""',),
    "csharp": ('"""',),
}
_RAW = {("kotlin", '"""'), ("csharp", '"""'), ("go", "`")}  # a backslash in them is a backslash
_SPANNING = {("javascript", "`"), ("typescript", "`"), ("tsx", "`"), ("go", "`"), ("php", '"'), ("php", "'")}
_SPANNING |= {("rust", '"'), ("bash", '"'), ("bash", "'")}
_REGEX_AFTER = frozenset("(,=:[!&|?{;+-*%~^") | {"return", "typeof", "case", "in", "of", "when", "if", "unless", "and"}
_SCRIPTS = frozenset(["javascript", "typescript", "tsx"])


def tokenize(code: str, language: str) -> Tokens:
    """Takes code apart.

    Args:
        code: Of any kind.
        language: A key of ``LANGUAGES``.

    Returns:
        Its tokens, for reading only: the repairs of a block ask for the same ones several times.
    """
    return (_tokenize_short if len(code) <= _SHORT else _tokenize)(code, language)


def _tokenize(code: str, language: str) -> Tokens:
    return _Tokenizer(code, language).run()


_SHORT = 20_000  # characters of code whose tokens are kept
_tokenize_short = lru_cache(maxsize=8)(_tokenize)


class _Tokenizer:
    """One pass over the code; ``_at`` only grows."""

    def __init__(self, code: str, language: str) -> None:
        self._code = code
        self._language = language
        self._known = LANGUAGES[language]
        self._at = 0
        self._tokens: list[Token] = []
        self._strings: list[tuple[int, int]] = []
        self._tail = ""
        self._mark = ""
        self._is_broken = False
        self._holes: list[int] = []  # open "{" in each open "${"
        self._heredocs: list[str] = []
        self._line_has_no_regex = -1  # where that line ends

    def run(self) -> Tokens:
        code, size = self._code, len(self._code)
        indent, line_start = 0, True
        if self._language == "php" and code.lstrip().startswith("<"):
            self._skip_page()
        while self._at < size:
            at = self._at
            piece = _PIECE.match(code, at)
            assert piece is not None  # "." takes whatever the others do not
            text = piece[0]
            if text == "\n":
                self._at += 1
                indent, line_start = 0, True
                if self._heredocs:
                    self._skip_heredocs()
                elif self._language == "ruby" and code.startswith("=begin", self._at):
                    self._skip_past("\n=end")
            elif text[0] in " \t\r\f\v":
                self._at = piece.end()
                if line_start:
                    indent = len(text.expandtabs(8))
            elif text[0].isalnum() or text[0] == "_":
                self._at = piece.end()
                self._tokens.append(Token(text, at, indent if line_start else -1))
                line_start = False
            elif self._skip_comment(text):
                continue
            else:
                self._at = piece.end()
                self._take(text, at, indent if line_start else -1)
                line_start = False
        return Tokens(self._tokens, self._tail, self._mark, self._strings, self._is_broken)

    def _take(self, text: str, at: int, indent: int) -> None:
        if text == "'" and self._is_digit_before(at):
            return  # 1'000 in C++
        if text in self._known.quotes or text == '"':
            self._tokens.append(Token(STRING, at, indent))
            self._skip_string(text, at)
        elif text == "'" and self._language == "rust":
            self._skip_character()
        elif text == "/" and self._may_be_regex():
            self._tokens.append(Token(STRING, at, indent))
        elif text == "}" and self._holes and self._holes[-1] == 0:
            self._holes.pop()
            self._tokens.append(Token("}", at, indent))
            self._skip_template(at)
        else:
            if self._holes and text in "{}":
                self._holes[-1] += 1 if text == "{" else -1
            if text == "<" and self._language in ("php", "ruby", "bash", "hcl"):
                self._find_heredoc(at)
            if text == "?" and self._language == "php" and self._code.startswith(">", self._at):
                self._skip_page()
            self._tokens.append(Token(text, at, indent))

    def _is_digit_before(self, at: int) -> bool:
        return at > 0 and self._code[at - 1].isdigit() and self._language in ("c", "cpp")

    def _end_in(self, tail: str, mark: str = "") -> None:
        self._at, self._tail, self._mark = len(self._code), tail, mark

    def _skip_past(self, end: str) -> None:
        found = self._code.find(end, self._at)
        if found < 0:
            self._end_in(end)
        else:
            self._at = found + len(end)

    # -- comments and pages

    def _skip_comment(self, text: str) -> bool:
        code, at = self._code, self._at
        if text == "#" and self._known.hashes:
            if self._language == "php" and code.startswith("#[", at):
                return False
            if self._language == "bash" and at and code[at - 1] not in " \t\n;&|()":
                return False
        elif text != "/" or not self._known.slashes:
            return False
        elif code.startswith("/*", at):
            self._at += 2
            self._skip_past("*/")
            return True
        elif not code.startswith("//", at):
            return False
        end = code.find("\n", at)
        if self._language == "php":
            page = code.find("?>", at, end if end >= 0 else len(code))
            end = page if page >= 0 else end
        if end < 0:
            self._end_in("\n")
        else:
            self._at = end
        return True

    def _skip_page(self) -> None:
        """Skips HTML up to the next opening tag."""
        start = self._code.find("<?", self._at)
        self._at = len(self._code) if start < 0 else start + 2
        if self._code.startswith("php", self._at):
            self._at += 3

    # -- strings

    def _skip_string(self, quote: str, at: int) -> None:
        code, language = self._code, self._language
        for mark in _TRIPLES.get(language, ()):
            if code.startswith(mark, at):
                self._at = at + 3
                self._skip_to(mark, at, has_escapes=(language, mark) not in _RAW)
                return
        before = code[max(at - 2, 0) : at]
        if language == "csharp" and quote == '"' and (before.endswith("@") or before == "@$"):
            self._skip_verbatim(at)
        elif language == "rust" and quote == '"' and before.endswith(("r", "#")) and (hashes := self._raw_hashes(at)):
            self._skip_to('"' + "#" * (hashes - 1), at, has_escapes=False)
        elif quote == "`" and language in _SCRIPTS:
            self._skip_template(at)
        elif (language, quote) in _SPANNING:
            self._skip_to(quote, at, has_escapes=(language, quote) not in _RAW and (language, quote) != ("bash", "'"))
        else:
            found = _LINE_STRINGS[quote].match(code, self._at)
            assert found is not None
            self._at = found.end() + code.startswith(quote, found.end())
            if code.startswith("\n", found.end()):
                self._is_broken = True
            elif found.end() == len(code):
                self._end_in(quote)
            elif code.startswith("\\", found.end()):  # the last character
                self._end_in(" " + quote)

    def _skip_to(self, mark: str, start: int, *, has_escapes: bool) -> None:
        for found in _stops(mark, has_escapes).finditer(self._code, self._at):
            if found[0] == mark:
                self._at = found.end()
                if self._code.find("\n", start, self._at) >= 0:
                    self._strings.append((start, self._at))
                return
        self._end_in(" " * self._code.endswith("\\") + mark, mark)

    def _skip_verbatim(self, start: int) -> None:
        for found in _VERBATIM_STOPS.finditer(self._code, self._at):
            if found[0] == '"':
                self._at = found.end()
                if self._code.find("\n", start, self._at) >= 0:
                    self._strings.append((start, self._at))
                return
        self._end_in('"', '@"')

    def _skip_template(self, start: int) -> None:
        for found in _TEMPLATE_STOPS.finditer(self._code, self._at):
            if found[0] == "`":
                self._at = found.end()
                if self._code.find("\n", start, self._at) >= 0:
                    self._strings.append((start, self._at))
                return
            if found[0] == "${":
                self._at = found.end()
                self._holes.append(0)
                self._tokens.append(Token("${", found.start(), -1))
                return
        self._end_in(" " * self._code.endswith("\\") + "`", "`")

    def _raw_hashes(self, at: int) -> int:
        """Returns one more than the hashes between the ``r`` of a raw string and its quote; 0 where it is none."""
        hashes = 0
        while hashes < 9 and self._code.startswith("#", at - 1 - hashes):
            hashes += 1
        return hashes + 1 if self._code.startswith("r", max(at - 1 - hashes, 0)) else 0

    def _skip_character(self) -> None:
        """Skips the rest of a character of Rust, and nothing of a lifetime."""
        if self._code.startswith("\\", self._at):
            end = self._code.find("'", self._at + 2, self._at + 12)
            self._at = end + 1 if end >= 0 else self._at
        elif self._code.startswith("'", self._at + 1):
            self._at += 2

    def _may_be_regex(self) -> bool:
        """Skips a regular expression where there is one: after what no operand ends with, and with an end."""
        code, at = self._code, self._at
        is_word = self._language == "ruby" or self._language in _SCRIPTS
        if not is_word or (self._tokens and self._tokens[-1].text not in _REGEX_AFTER) or at <= self._line_has_no_regex:
            return False
        is_class = False
        while at < len(code) and code[at] != "\n":
            if code[at] == "/" and not is_class:
                self._at = at + 1
                return True
            is_class = code[at] == "[" or (is_class and code[at] != "]")
            at += 2 if code[at] == "\\" else 1
        self._line_has_no_regex = at
        return False

    # -- here-documents

    def _find_heredoc(self, at: int) -> None:
        opener = "<<<" if self._language == "php" else "<<"
        found = _HEREDOC.match(self._code, at + len(opener)) if self._code.startswith(opener, at) else None
        if found is None or len(self._heredocs) > 20 or (opener == "<<" and self._code.startswith("<", at - 1)):
            return
        if self._language == "ruby" and not (found[1] or found[2].isupper()):
            return  # array << item
        self._heredocs.append(found[2])
        self._at = found.end()

    def _skip_heredocs(self) -> None:
        self._at -= 1  # the end may stand on the next line
        for word in self._heredocs:
            found = _heredoc_end(word).search(self._code, self._at)
            if found is None:
                self._end_in(f"\n{word}\n")
                break
            self._at = found.end()
        self._heredocs.clear()


_TEMPLATE_STOPS = re.compile(r"\\.|\$\{|`", re.DOTALL)
_VERBATIM_STOPS = re.compile('""|"')
_HEREDOC = re.compile(r"[ ]?([~-]?)[\"'`]?([^\W\d]\w{0,63})[\"'`]?")


@lru_cache(maxsize=64)
def _stops(mark: str, has_escapes: bool) -> re.Pattern[str]:
    return re.compile((r"\\.|" if has_escapes else "") + re.escape(mark), re.DOTALL)


@lru_cache(maxsize=64)
def _heredoc_end(word: str) -> re.Pattern[str]:
    return re.compile(rf"\n[ \t]*{word}\b")


def first_of_lines(tokens: list[Token]) -> Iterator[tuple[int, Token]]:
    """Yields, with their places, the tokens that start a logical line: the first ones outside brackets."""
    depth = 0
    for i, token in enumerate(tokens):
        if token.indent >= 0 and depth == 0:
            yield i, token
        if token.text in CLOSER_OF:
            depth += 1
        elif token.text in OPENER_OF:
            depth = max(depth - 1, 0)

"""Repairs of shell fragments and of parts of a Dockerfile: compound commands are closed, and opened where only their
end is there; an open string or here-document is ended.

Grammar: POSIX.1-2017, Shell Command Language, 2.10 (https://pubs.opengroup.org/onlinepubs/9699919799), and what bash
adds to it, as far as it is needed to tell which words are keywords.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

__all__ = ["docker_repairs", "repairs"]

_WORD = re.compile(r"[^\s;&|()<>\"'`$\\]+")
_HEREDOC = re.compile(r"<<(-?)[ \t]{0,8}\\?([\"']?)([\w.!-]{1,64})\2")
_BLANK = re.compile(r"\s*(?:#[^\n]*\n\s*)*")  # cannot fail
_PATTERN = re.compile(r"\(?[^\n()]{0,200}\)")
_NO_PARAMETERS = re.compile(r"\([ \t]{0,8}\)")

# Words after which a command starts.
_BEFORE_COMMAND = frozenset(["if", "then", "elif", "else", "while", "until", "do", "!", "{", "time"])
_ENDS = {"fi": "then", "done": "do", "esac": "case", "}": "{"}

# What is open: what stood last. What it takes to open it, and to close it.
_OPENERS = {
    "if": "if :; then :; ",
    "then": "if :; ",
    "do": "while :; do :; ",
    "loop": "while :; ",
    "case": "case x in x) :; ",
    "{": "{ :; ",
    "(": "( :; ",
    "pattern": "case x in ",
}
_CLOSERS = {
    "if": "\nthen :; fi",
    "then": "\n:; fi",
    "do": "\n:; done",
    "while": "\n:; do :; done",
    "for": "\ndo :; done",
    "case": "\nesac",
    "head": " in x) :;; esac",
    "{": "\n:; }",
    "(": "\n)",
}

_INSTRUCTIONS = frozenset(
    {
        "FROM", "RUN", "CMD", "LABEL", "EXPOSE", "ENV", "ADD", "COPY", "ENTRYPOINT", "VOLUME", "USER", "WORKDIR",
        "ARG", "ONBUILD", "STOPSIGNAL", "HEALTHCHECK", "SHELL", "MAINTAINER",
    }
)  # fmt: skip


def repairs(code: str, language: str, lead: str) -> Iterator[tuple[str, str]]:
    """Yields what to write before and after code, likeliest first.

    Args:
        code: The fragment.
        language: ``"bash"``.
        lead: What opens the string that the code starts in; part of each prefix.
    """
    reader = _Reader(lead + code)
    reader.run()
    before = "".join(_OPENERS[name] for name in reversed(reader.unopened))
    after = "".join(_CLOSERS[name] for name in reversed(reader.stack))
    text = code.rstrip()
    tail = reader.tail or (" :" if text.endswith(("&&", "||", "|")) else "\n" if code.endswith("\\") else "")
    yield before + lead, tail + after
    case = _OPENERS["case"]
    if before.startswith(case):
        yield _OPENERS["pattern"] + before[len(case) :] + lead, tail + after
    yield "f() {\n" + before + lead, tail + after + "\n}"
    yield before + lead, tail + "\n:" + after


def docker_repairs(code: str, language: str, lead: str) -> Iterator[tuple[str, str]]:
    """Yields what to write before and after lines of a Dockerfile: those of an instruction that began before them."""
    lines = [line for line in code.split("\n") if line.strip() and not line.lstrip().startswith("#")]
    first = lines[0].split()[0] if lines else ""
    text = code.rstrip()
    tail = " :" if text.endswith(("&&", "|", "\\")) else ""
    if first.upper() in _INSTRUCTIONS:
        yield lead, tail
        return
    heads = ("ENV ", "RUN ", "RUN : ") if "=" in first else ("RUN ", "RUN : ", "ENV ")
    for head in heads:
        yield head + lead, tail


class _Reader:
    """Reads a fragment once; ``stack`` is what is open in it, ``unopened`` what it closes without having opened it."""

    def __init__(self, code: str) -> None:
        self._code = code
        self._at = 0
        self._is_start = True  # whether a command may start here
        self._heredocs: list[tuple[str, bool]] = []
        self.stack: list[str] = []
        self.unopened: list[str] = []
        self.tail = ""

    def run(self) -> None:
        code, size = self._code, len(self._code)
        while self._at < size:
            at, char = self._at, self._code[self._at]
            if char == "\n":
                self._at, self._is_start = at + 1, True
                self._skip_heredocs()
            elif char.isspace():
                self._at += 1
            elif char == "\\":
                self._at, self._is_start = at + 2, False
            elif char == "#" and (at == 0 or code[at - 1] in " \t\n;&|("):
                end = code.find("\n", at)
                self._at = size if end < 0 else end
            elif char in "'\"":
                self._skip_string(char)
            elif char in "$(<":
                self._take_expansion(char)
            elif char in ";&|":
                self._take_separator()
            elif char == ")":
                self._close_parenthesis()
            elif found := _WORD.match(code, at):
                self._at = found.end()
                self._take_word(found[0])
            else:
                self._at, self._is_start = at + 1, False

    def _end_in(self, tail: str) -> None:
        self._at, self.tail = len(self._code), tail

    def _skip_string(self, quote: str) -> None:
        self._is_start = False
        at, size = self._at + 1, len(self._code)
        if quote == "'":
            end = self._code.find("'", at)
            at = end if end >= 0 else size
        else:
            while at < size and self._code[at] != '"':
                at += 2 if self._code[at] == "\\" else 1
        if at >= size:
            self._end_in(" " * (at > size) + quote)
        else:
            self._at = at + 1

    def _skip_heredocs(self) -> None:
        for mark, may_indent in self._heredocs:
            indent = "\t*" if may_indent else ""
            found = re.compile(rf"^{indent}{re.escape(mark)}[ \t]{{0,8}}$", re.MULTILINE).search(self._code, self._at)
            if found is None:
                self._end_in(f"\n{mark}")
                break
            self._at = found.end()
        self._heredocs.clear()

    def _take_expansion(self, char: str) -> None:
        code, at, size = self._code, self._at, len(self._code)
        if code.startswith("${", at):
            depth, at = 1, at + 2
            while at < size and depth:
                depth += (code[at] == "{") - (code[at] == "}")
                at += 1
            self._at, self._is_start = at, False
        elif code.startswith("$((", at) or (code.startswith("((", at) and self._is_start):
            end = code.find("))", at)
            self._at, self._is_start = (size if end < 0 else end + 2), False
        elif char == "(" and (found := _NO_PARAMETERS.match(code, at)):
            self._at, self._is_start = found.end(), True
        elif char == "(" or code.startswith("$(", at):
            self.stack.append("(")
            self._at, self._is_start = at + 1 + (char == "$"), True
        elif code.startswith("<<<", at):
            self._at += 3
        elif char == "<" and (found := _HEREDOC.match(code, at)):
            self._heredocs.append((found[3], bool(found[1])))
            self._at, self._is_start = found.end(), False
        else:
            self._at, self._is_start = at + 1, False

    def _take_separator(self) -> None:
        if not self._code.startswith(";;", self._at):
            self._at, self._is_start = self._at + 1, True
            return
        if "case" not in self.stack[-12:]:
            self.unopened.append("case")
            self.stack[:] = ["case"]
        self._is_start = False
        self._skip_pattern(self._at + 2)

    def _skip_pattern(self, at: int) -> None:
        """Skips the pattern of a case, which has a closing parenthesis of its own."""
        blank = _BLANK.match(self._code, at)
        self._at = blank.end() if blank else at
        if self._code.startswith("esac", self._at):
            self._is_start = True
        elif found := _PATTERN.match(self._code, self._at):
            self._at, self._is_start = found.end(), True

    def _close_parenthesis(self) -> None:
        self._is_start = True
        if self.stack[-1:] == ["("]:
            self.stack.pop()
            self._is_start = False
        elif not self.stack and not self.unopened and self._at < 200 and "\n" not in self._code[: self._at].lstrip():
            self.unopened.append("pattern")
            self.stack.append("case")
        self._at += 1

    def _take_word(self, word: str) -> None:
        stack = self.stack
        if not self._is_start:
            if word == "in" and stack[-1:] == ["head"]:
                stack[-1] = "case"
                self._skip_pattern(self._at)
            return
        self._is_start = word in _BEFORE_COMMAND
        if word in ("if", "{"):
            stack.append(word)
        elif word in ("while", "until"):
            stack.append("while")
        elif word in ("for", "select"):
            stack.append("for")
        elif word == "case":
            stack.append("head")
        elif word == "then":
            if stack[-1:] == ["if"]:
                stack[-1] = "then"
            elif not stack:
                self._open("then", "then")
        elif word in ("elif", "else"):
            if stack[-1:] == ["then"]:
                stack[-1] = "if" if word == "elif" else "then"
            elif not stack:
                self._open("if", "if" if word == "elif" else "then")
        elif word == "do":
            if stack[-1:] in (["while"], ["for"]):
                stack[-1] = "do"
            else:
                self._open("loop", "do")
        elif word in _ENDS:
            self._close(_ENDS[word])

    def _open(self, name: str, inside: str) -> None:
        self.unopened.append(name)
        self.stack.append(inside)

    def _close(self, name: str) -> None:
        self._is_start = False
        if name in self.stack[-12:]:
            while self.stack.pop() != name:
                pass
        else:
            self.unopened.append({"then": "if"}.get(name, name))
            self.stack.clear()

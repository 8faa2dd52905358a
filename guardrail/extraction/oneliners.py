r"""Find the one command that is dangerous at any length: fetch a script and run it, ``curl https://... | sh``.

It stands in prose, in inline code or in ``<code>``. The command counts where it names something to fetch (a URL, a
host, a variable), so that talk of "curl | sh" is none.
"""

from __future__ import annotations

import re

from guardrail.verdict import CodeBlock, Span

__all__ = ["find_oneliners"]

_FETCH = r"\b(?:curl|wget)[ \t][^\n\r`|<>()]{1,300}"
_SHELL = r"(?:sudo[ \t]+(?:-\S{1,20}[ \t]+){0,3})?(?:/(?:usr/)?bin/)?(?:ba|z|da|k)?sh\b(?![\w.-])"
_ONE_LINER = re.compile(
    rf"{_FETCH}(?:\|[ \t]*(?:tee|gunzip|tar|base64)[^\n\r`|<>()]{{0,100}}){{0,2}}\|[ \t]*"
    rf"(?:{_SHELL}|(?:sudo[ \t]+)?(?:python3?|perl|ruby|node)\b(?![\w.-]))(?:[ \t]+-[\w-]{{0,30}}){{0,4}}"
    rf"|\b(?:(?:ba|z)?sh|source)[ \t]+<\([ \t]*{_FETCH}\)"
    rf"|\b(?:(?:ba|z)?sh[ \t]+-c|eval)[ \t]+[\"']?\$\([ \t]*{_FETCH}\)[\"']?"
)
_TARGET = re.compile(r"://|\$\{?\w|\w\.\w")


def find_oneliners(text: str) -> list[CodeBlock]:
    """Finds commands that run what they fetch, in order; each is a block of bash."""
    if "curl" not in text and "wget" not in text:
        return []
    return [
        CodeBlock(match[0], "bash", Span(match.start(), match.end()), (match.start(),))
        for match in _ONE_LINER.finditer(text)
        if _TARGET.search(match[0])
    ]

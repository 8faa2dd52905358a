r"""Find the code in a message: text -> ``CodeBlock`` values with exact places and a language.

The first step of Code Shield; what is found here is what a scanner sees. The grammar is the block structure of
CommonMark 0.31 (https://spec.commonmark.org/0.31.2/): fences of backticks and tildes, indented code, both also inside
block quotes and list items. The scanner goes through the lines once and keeps a stack of open containers; the prefix
that a container asks for (``> ``, or the width of a list marker) is taken off each line of code.

A line ends at ``\n``, ``\r\n`` or a lone ``\r``; ``code`` joins its lines with ``\n`` and has none at its end. Offsets
are code points of the message. For each line of ``code``, ``text[line_starts[i]:]`` starts with that line, with one
exception: where taking off an indentation cuts a tab in two, the rest of the tab stands in ``code`` as spaces, and
``line_starts[i]`` is the tab's place.

A fence that is never closed counts to the end of its container: an answer cut short is still judged.

Known differences from CommonMark, each on the side of finding more code or of bounded work:

- HTML blocks and link reference definitions are not recognised: a fence inside ``<div>`` is still a fence.
- Containers nested more than 32 deep are flattened.
- Entities and backslash escapes in an info string are left as they are; so is NUL in code.
- Code in HTML (``<pre>``) and in inline backticks is not extracted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from guardrail.verdict import CodeBlock, Span

__all__ = ["LANGUAGES", "canonical_language", "extract_code_blocks", "guess_language"]

_MAX_DEPTH = 32  # bounds the work per line: a blank line is matched against every open list item
_LINE_END = re.compile(r"\r\n|\r|\n")
_BLANKS = re.compile(r"[ \t]*")
_FENCE = re.compile(r"`{3,}|~{3,}")
_MARKER = re.compile(r"[-+*](?=[ \t]|$)|[0-9]{1,9}[.)](?=[ \t]|$)")
_HEADING = re.compile(r"#{1,6}(?=[ \t]|$)")
_SETEXT = re.compile(r"(?:=+|-+)[ \t]*$")
_WORD = re.compile(r"[^\s{},;:=]+")

_ALIASES = {
    "python": "python py python3 py3 python2 py2 pyi cpython ipython gyp",
    "javascript": "javascript js node nodejs jsx mjs cjs ecmascript es6 react",
    "typescript": "typescript ts tsx mts cts",
    "java": "java",
    "c": "c h c99 c11 ansi-c",
    "cpp": "cpp c++ cc cxx hpp hh hxx h++ c++11 c++14 c++17 c++20 arduino",
    "csharp": "csharp c# cs dotnet",
    "php": "php php3 php4 php5 php7 php8 phtml",
    "go": "go golang",
    "rust": "rust rs",
    "ruby": "ruby rb jruby",
    "bash": "bash sh shell zsh ksh shellscript fish",
    "powershell": "powershell ps1 pwsh ps",
    "batch": "batch bat cmd dosbatch",
    "kotlin": "kotlin kt kts",
    "swift": "swift",
    "scala": "scala",
    "perl": "perl pl",
    "r": "r rlang",
    "lua": "lua",
    "dart": "dart",
    "objectivec": "objectivec objective-c objc obj-c",
    "sql": "sql mysql postgresql postgres sqlite plsql tsql",
    "html": "html htm xhtml",
    "css": "css scss sass less",
    "xml": "xml svg xsl xsd",
    "yaml": "yaml yml",
    "json": "json json5 jsonc jsonl ndjson",
    "toml": "toml",
    "ini": "ini conf cfg properties dotenv env",
    "csv": "csv tsv",
    "markdown": "markdown md mdx",
    "diff": "diff patch",
    "dockerfile": "dockerfile docker containerfile",
    "makefile": "makefile make mk",
    "hcl": "hcl terraform tf",
    "text": "text txt plain plaintext none nohighlight",
    "console": "console output shell-session shellsession terminal log logs",
}
_CANONICAL = {alias: name for name, aliases in _ALIASES.items() for alias in aliases.split()}

LANGUAGES = frozenset(_ALIASES)
"""The canonical names."""


def canonical_language(info: str) -> str | None:
    """Reads the language from a fence's info string.

    The first word counts, without case: ``py``, ``{.python .numberLines}``, ``python title="x"``, ``c++``,
    ``language-js``, ``js{1,3}``.

    Args:
        info: What stands after the opening fence.

    Returns:
        The canonical name, the lower-cased word where it is not in the table, None where there is none.
    """
    word = _WORD.search(info.strip()[:200])
    if word is None:
        return None
    name = word.group().lower().lstrip(".").removeprefix("language-").removeprefix("lang-")
    return _CANONICAL.get(name, name) or None


def extract_code_blocks(text: str) -> list[CodeBlock]:
    """Finds the code blocks of a message, in order.

    Args:
        text: The message, CommonMark or plain text; any size, in time linear in it.

    Returns:
        Each fenced and each indented block, with its language where the info string gives one. Blocks without a
        language are left so; see :func:`guess_language`.
    """
    # A message without either mark of code is the common case and costs two searches.
    if "```" not in text and "~~~" not in text and "    " not in text and "\t" not in text:
        return []
    scanner = _Scanner(text)
    start = 0
    for match in _LINE_END.finditer(text):
        scanner.line(start, match.start())
        start = match.end()
    if start < len(text):
        scanner.line(start, len(text))
    scanner.close_leaf()
    return scanner.blocks


@dataclass
class _Container:
    """An open block quote (width 0) or list item, with the columns its lines are indented by."""

    width: int
    is_empty: bool = False  # a list item whose marker line had nothing after the marker


@dataclass
class _Leaf:
    """The code block being read; ``fence`` is empty for an indented block."""

    fence: str
    indent: int
    language: str | None
    start: int
    lines: list[str] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    end: int = 0


class _Scanner:
    """Reads lines in order; ``pos``, ``col`` and ``spare`` are the place in the current line.

    ``spare`` counts the columns of the tab at ``pos`` that are still to be read, where some were taken off.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.blocks: list[CodeBlock] = []
        self._containers: list[_Container] = []
        self._leaf: _Leaf | None = None
        self._in_paragraph = False
        self._pos = self._col = self._spare = self._end = 0

    def line(self, start: int, end: int) -> None:
        """Reads one line, without its line end."""
        self._pos, self._end, self._col, self._spare = start, end, 0, 0
        matched = self._match_containers()
        is_whole = matched == len(self._containers)
        if self._leaf is not None and self._leaf.fence and is_whole:
            self._fence_line(self._leaf)
            return
        if not is_whole and not (self._leaf is None and self._in_paragraph):
            self._close_containers(matched)
        # A line that opens no container and no block goes on with the paragraph, even without its prefix ("lazy").
        self._open_blocks(matched)

    def close_leaf(self) -> None:
        """Ends the block being read, if there is one, and keeps it."""
        leaf, self._leaf = self._leaf, None
        if leaf is None:
            return
        lines, starts = leaf.lines, leaf.starts
        if not leaf.fence:
            while lines and not lines[-1].strip(" \t"):
                lines.pop()
                starts.pop()
        first = starts[0] if starts else leaf.start
        last = starts[-1] if starts else leaf.start
        end = max(first, min(_line_end(self.text, last), leaf.end) if starts else first)
        self.blocks.append(CodeBlock("\n".join(lines), leaf.language, Span(first, end), tuple(starts) or (first,)))

    # -- containers

    def _match_containers(self) -> int:
        for index, container in enumerate(self._containers):
            blank = self._is_blank()
            if container.width == 0:
                if self._indent(3) > 3 or not self._take_quote():
                    return index
            elif blank and container.is_empty:
                return index  # an item may begin with one blank line, not two
            elif blank or self._indent(container.width) >= container.width:
                self._take_columns(container.width)
                container.is_empty = False
            else:
                return index
        return len(self._containers)

    def _close_containers(self, keep: int) -> None:
        if keep < len(self._containers):
            self.close_leaf()
            self._in_paragraph = False
            del self._containers[keep:]

    def _take_quote(self) -> bool:
        at = self._skip_blanks()
        if at >= self._end or self.text[at] != ">":
            return False
        self._take_columns(self._indent(3))
        self._pos += 1
        self._col += 1
        self._spare = 0
        if self._indent(1) >= 1:
            self._take_columns(1)
        return True

    def _open_blocks(self, matched: int) -> None:
        text = self.text
        is_lazy = matched < len(self._containers)
        while True:
            if self._is_blank():
                self._blank_line(is_lazy, matched)
                return
            indent = self._indent(4)
            if indent >= 4:
                if not self._in_paragraph:
                    self._indented_line()
                return
            at = self._skip_blanks()
            char = text[at]
            if char == ">":
                self._leave(is_lazy, matched)
                is_lazy = False
                self._take_quote()
                if len(self._containers) < _MAX_DEPTH:
                    self._containers.append(_Container(0))
                continue
            may_underline = char == "-" and self._in_paragraph and not is_lazy
            if self._is_rule(at, char) and not (may_underline and _is_setext(text, at, self._end)):
                self._leave(is_lazy, matched)
                return
            if len(self._containers) < _MAX_DEPTH and self._take_marker(at, indent, is_lazy, matched):
                is_lazy = False
                continue
            self._leaf_line(at, indent, is_lazy, matched)
            return

    def _take_marker(self, at: int, indent: int, is_lazy: bool, matched: int) -> bool:
        match = _MARKER.match(self.text, at, self._end)
        if match is None:
            return False
        is_empty = _BLANKS.match(self.text, match.end(), self._end).end() >= self._end  # type: ignore[union-attr]
        marker = match.group()
        # Only a list that starts at 1 and has text may interrupt a paragraph of its own container.
        interrupts = self._in_paragraph and not is_lazy
        if interrupts and (is_empty or (len(marker) > 1 and int(marker[:-1]) != 1)):
            return False
        self._leave(is_lazy, matched)
        self._take_columns(indent)
        self._pos += len(marker)
        self._col += len(marker)
        self._spare = 0
        after = self._indent(5)
        width = 1 if is_empty or after >= 5 else after
        if not is_empty:
            self._take_columns(width)
        else:
            self._pos = self._end
        self._containers.append(_Container(indent + len(marker) + width, is_empty))
        return True

    def _leave(self, is_lazy: bool, matched: int) -> None:
        """Ends the paragraph or indented block before a new block opens."""
        if is_lazy:
            self._close_containers(matched)
        self.close_leaf()
        self._in_paragraph = False

    # -- leaves

    def _blank_line(self, is_lazy: bool, matched: int) -> None:
        if is_lazy:
            self._close_containers(matched)
        self._in_paragraph = False
        if self._leaf is not None:
            self._append(self._leaf, 4)

    def _indented_line(self) -> None:
        if self._leaf is None:
            self._leaf = _Leaf("", 4, None, self._pos)
        self._append(self._leaf, 4)

    def _leaf_line(self, at: int, indent: int, is_lazy: bool, matched: int) -> None:
        text, end = self.text, self._end
        match = _FENCE.match(text, at, end)
        if match is not None and not (match.group()[0] == "`" and text.find("`", match.end(), end) >= 0):
            self._leave(is_lazy, matched)
            info = canonical_language(text[match.end() : min(end, match.end() + 400)])
            self._leaf = _Leaf(match.group(), indent, info, min(_next_line(text, end), len(text)))
            return
        if _HEADING.match(text, at, end):
            self._leave(is_lazy, matched)
            return
        if self._leaf is not None:
            self.close_leaf()
        if self._in_paragraph and not is_lazy and _is_setext(text, at, end):
            self._in_paragraph = False
            return
        self._in_paragraph = True

    def _fence_line(self, leaf: _Leaf) -> None:
        if self._indent(4) <= 3:
            at = self._skip_blanks()
            match = _FENCE.match(self.text, at, self._end)
            if match is not None and match.group()[0] == leaf.fence[0] and len(match.group()) >= len(leaf.fence):
                after = _BLANKS.match(self.text, match.end(), self._end)
                if after is not None and after.end() >= self._end:
                    self.close_leaf()
                    return
        self._append(leaf, leaf.indent)

    def _append(self, leaf: _Leaf, indent: int) -> None:
        self._take_columns(min(self._indent(indent), indent))
        start = self._pos
        if self._spare and start < self._end:
            leaf.lines.append(" " * self._spare + self.text[start + 1 : self._end])
        else:
            leaf.lines.append(self.text[start : self._end])
        leaf.starts.append(start)
        leaf.end = self._end

    def _is_rule(self, at: int, char: str) -> bool:
        if char not in "-_*":
            return False
        line = self.text[at : self._end]
        count = line.count(char)
        return count >= 3 and count + line.count(" ") + line.count("\t") == len(line)

    # -- columns; a tab goes to the next multiple of four

    def _is_blank(self) -> bool:
        return self._skip_blanks() >= self._end

    def _skip_blanks(self) -> int:
        match = _BLANKS.match(self.text, self._pos, self._end)
        return match.end() if match else self._pos

    def _indent(self, limit: int) -> int:
        """Returns the columns of white space here; may stop counting once past ``limit``."""
        pos, col, spare, columns = self._pos, self._col, self._spare, 0
        while pos < self._end and columns <= limit:
            char = self.text[pos]
            if char == "\t":
                step = spare or 4 - col % 4
            elif char == " ":
                step = 1
            else:
                break
            columns += step
            col += step
            pos += 1
            spare = 0
        return columns

    def _take_columns(self, columns: int) -> None:
        while columns > 0 and self._pos < self._end:
            char = self.text[self._pos]
            if char not in " \t":
                return
            step = (self._spare or 4 - self._col % 4) if char == "\t" else 1
            if step > columns:
                self._spare = step - columns
                self._col += columns
                return
            self._pos += 1
            self._col += step
            self._spare = 0
            columns -= step


def _is_setext(text: str, at: int, end: int) -> bool:
    return _SETEXT.match(text, at, end) is not None


def _line_end(text: str, start: int) -> int:
    match = _LINE_END.search(text, start)
    return match.start() if match else len(text)


def _next_line(text: str, end: int) -> int:
    match = _LINE_END.match(text, end)
    return match.end() if match else end


_SIGNATURES: dict[str, tuple[str, ...]] = {
    "python": (
        r"^\s*(?:async )?def \w+\(.*\)(?: *->.*)?:\s*$",
        r"^\s*(?:from [\w.]+ import [\w*(]|import \w+(?:\.\w+)*(?: as \w+)?\s*$)",
        r"^\s*(?:if|elif|for|while|with|try|except|class)\b[^{;]*:\s*$",
        r"^\s*(?:print\(|@\w+|self\.\w+)",
        r"^>>> ",
    ),
    "php": (r"<\?(?:php\b|=)", r"^\s*\$\w+\s*=[^=].*;\s*$", r"\$_(?:GET|POST|REQUEST|COOKIE|SERVER)\b", r"\$this->\w"),
    "java": (
        r"^\s*(?:public|private|protected)\s+(?:static\s+|final\s+|abstract\s+)*(?:class|interface|void|[A-Z]\w*)\b",
        r"^\s*import (?:static )?(?:java|javax|jakarta|org|com)\.[\w.*]+;",
        r"\bSystem\.out\.print|\bString\[\] args\b",
        r"^\s*@(?:Override|Autowired|GetMapping|RestController)\b",
    ),
    "go": (
        r"^package \w+\s*$",
        r"^func (?:\(\w+ \*?\w+\) )?\w+\(",
        r"\w+(?:, \w+)* := ",
        r"\bfmt\.\w+\(",
        r"if err != nil",
    ),
    "javascript": (
        r"^\s*(?:const|let|var) [\w{\[][^;:]*=",
        r"\bfunction\s*\w*\([^)]{0,200}\)\s*\{",
        r"=>\s*[{(\w]",
        r"\brequire\(['\"]|\bmodule\.exports\b|\bconsole\.log\(|\bdocument\.\w|\bwindow\.\w",
        r"^\s*(?:import|export) .{0,200}\bfrom ['\"]|^\s*export (?:default|const|function)\b",
    ),
    "cpp": (
        r"^\s*#include <(?:iostream|string|vector|map|memory|algorithm|fstream)>",
        r"\bstd::\w",
        r"^\s*using namespace \w",
    ),
    "c": (
        r"^\s*#include\s*[<\"][\w/]+\.h[>\"]",
        r"^\s*(?:int|void|char|static|unsigned|size_t|struct \w+)\s+\**\w+\(.{0,300}\)\s*\{?\s*$",
        r"\b(?:printf|malloc|strcpy|strcat|sprintf|scanf|gets|memcpy)\(",
        r"^\s*(?:char|int|unsigned)\s+\*?\w+\[?\w*\]?\s*(?:=.*)?;",
    ),
}
_COMPILED = {name: tuple(re.compile(p) for p in patterns) for name, patterns in _SIGNATURES.items()}
_DECISIVE = (
    ("php", re.compile(r"<\?(?:php\b|=)")),
    ("bash", re.compile(r"^#!.*\b(?:ba|z|k)?sh\b")),
    ("python", re.compile(r"^(?:#!.*\bpython|>>> )")),
    ("javascript", re.compile(r"^#!.*\bnode\b")),
)


def guess_language(code: str) -> str | None:
    """Guesses the language of code that carries no label.

    Counts signatures over the first 200 lines of at most 400 characters. Conservative: two different signatures of one
    language, and more than any other language has, or one that no other language shares.

    Args:
        code: A block's code.

    Returns:
        A canonical name, or None where nothing is clear.
    """
    lines = [line[:400] for line in code[:80_000].split("\n")[:200]]
    for line in lines[:5]:
        for name, pattern in _DECISIVE:
            if pattern.search(line):
                return name
    scores: dict[str, int] = {}
    for name, patterns in _COMPILED.items():
        hits = sum(any(p.search(line) for line in lines) for p in patterns)
        if hits:
            scores[name] = hits
    if "cpp" in scores:
        scores["cpp"] += scores.pop("c", 0)
    ranked = sorted(scores.items(), key=lambda item: -item[1])
    if not ranked or (ranked[0][1] < 2 and len(ranked) > 1):
        return None
    if len(ranked) > 1 and ranked[0][1] == ranked[1][1]:
        return None
    return ranked[0][0]

"""Files for semgrep to read: a code block -> the file as it stands, and variants that a parser may still understand.

A block from a chat is often not a whole program: a method without its class, a tail cut off, ``...`` for what was
left out. A *variant* keeps the text of the block, code point for code point, and adds around it (brackets closed at
the end and opened at the start, a ``<?php``), or blanks characters one for one (``...`` lines, prompts); or the file
gets another dialect's suffix (TypeScript, C++).

Each file ends with the canary of its language, a call that an extra rule always matches: a file whose canary was not
found was not read to its end.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

from guardrail.verdict import CodeBlock

__all__ = ["CANARY", "LANGUAGES", "Target", "encode", "make_targets"]

CANARY = "guardrail_canary_7f3a"
"""The name that is called after each block."""

_CALL = f'{CANARY}("end")'


@dataclass(frozen=True)
class Language:
    """How semgrep reads one language.

    Attributes:
        suffix: Of the file's name; semgrep goes by it.
        rules: The languages that a rule may name to be run on it.
        canary: What is written after the block.
        pattern: What finds it.
        hashes: Whether ``#`` starts a comment.
        slashes: Whether ``//`` and ``/* */`` do.
        quotes: What opens a string.
        wraps: What a fragment may have to stand in, each ended by ``}``.
    """

    suffix: str
    rules: str
    canary: str = f"{_CALL}\n"
    pattern: str = _CALL
    hashes: bool = False
    slashes: bool = True
    quotes: str = "\"'"
    wraps: tuple[str, ...] = ()


_SCRIPT = f";{_CALL};\n"
_C_FUNCTION = f"void guardrail_canary(void) {{ {_CALL}; }}\n"
_BODIES = ("void f() { ", "class A { ")
_FUNCTIONS = ("function f() { ", "class A { ")

LANGUAGES: dict[str, Language] = {
    "python": Language(".py", "python", hashes=True, slashes=False),
    "javascript": Language(".js", "javascript", canary=_SCRIPT, quotes="\"'`", wraps=_FUNCTIONS),
    "typescript": Language(".ts", "typescript", canary=_SCRIPT, quotes="\"'`", wraps=_FUNCTIONS),
    "tsx": Language(".tsx", "typescript", canary=_SCRIPT, quotes="\"'`", wraps=_FUNCTIONS),
    "java": Language(
        ".java",
        "java",
        canary=f"class GuardrailCanary {{ void end() {{ {_CALL}; }} }}\n",
        pattern=_CALL + ";",
        wraps=_BODIES,
    ),
    "c": Language(".c", "c", canary=_C_FUNCTION, pattern=_CALL + ";", wraps=_BODIES),
    "cpp": Language(".cpp", "cpp", canary=_C_FUNCTION, pattern=_CALL + ";", wraps=_BODIES),
    "csharp": Language(
        ".cs",
        "csharp",
        canary=f"class GuardrailCanary {{ void End() {{ {_CALL}; }} }}\n",
        pattern=_CALL + ";",
        wraps=_BODIES,
    ),
    "php": Language(".php", "php", canary=_SCRIPT, pattern=_CALL + ";", hashes=True, wraps=_FUNCTIONS),
    "go": Language(".go", "go", canary=f"func guardrailCanary() {{ {_CALL} }}\n", quotes="\"'`"),
    "rust": Language(
        ".rs", "rust", canary=f"fn guardrail_canary() {{ {_CALL} }}\n", quotes='"', wraps=("fn f() { ", "impl A { ")
    ),
    "ruby": Language(".rb", "ruby", hashes=True, slashes=False),
    "kotlin": Language(
        ".kt", "kotlin", canary=f"fun guardrailCanary() {{ {_CALL} }}\n", wraps=("fun f() { ", "class A { ")
    ),
    "swift": Language(
        ".swift",
        "swift",
        canary=f"func guardrailCanary() {{ {_CALL} }}\n",
        quotes='"',
        wraps=("func f() { ", "class A { "),
    ),
    "bash": Language(".sh", "bash", canary=f'{CANARY} "end"\n', pattern=f'{CANARY} "end"', hashes=True, slashes=False),
    "dockerfile": Language(
        ".dockerfile",
        "dockerfile",
        canary=f'RUN {CANARY} "end"\n',
        pattern=f'RUN {CANARY} "end"',
        hashes=True,
        slashes=False,
    ),
    "hcl": Language(".tf", "hcl", canary=f'{CANARY} = "end"\n', pattern=f'{CANARY} = "end"', hashes=True),
    "yaml": Language(
        ".yaml", "yaml", canary=f"---\n{CANARY}: end\n", pattern=f"{CANARY}: end", hashes=True, slashes=False
    ),
}
_DIALECTS = {"javascript": ("javascript", "tsx", "typescript"), "typescript": ("typescript", "tsx"), "c": ("c", "cpp")}


@dataclass(frozen=True)
class Target:
    """A file to scan: ``prefix`` + body + canary; body has as many code points as the code it stands for."""

    name: str
    language: str
    prefix: str
    body: str
    suffix: str

    @property
    def text(self) -> str:
        return self.prefix + self.body + self.suffix


def encode(text: str) -> bytes:
    return text.encode("utf-8", errors="replace")  # a lone surrogate becomes "?": one code point for one


def make_targets(block: CodeBlock, stem: str) -> list[Target]:
    """Returns the file for a block, and after it the variants to try where that one is not understood."""
    language = block.language or ""
    body = _normalise(block.code, language)
    plain, dots = body, _blank_elisions(body, language)
    shapes = [("", text, "") for text in dict.fromkeys((plain, dots))]  # prefix, body, suffix
    shapes += _closed(dots, language)
    if language == "php":
        shapes = [_php(*shape) for shape in shapes]
        # Page mode proves nothing of bare code, which would all be page text: only for text that opens as a page.
        if body.lstrip().startswith("<"):
            shapes += [("", plain, "\n<?php "), ("", plain, "")]
    targets: list[Target] = []
    seen: set[tuple[str, str]] = set()
    for dialect in _DIALECTS.get(language, (language,)):
        suffix, canary = LANGUAGES[dialect].suffix, LANGUAGES[dialect].canary
        for before, text, after in shapes:
            whole = before + text + after
            if (dialect, whole) in seen:
                continue
            seen.add((dialect, whole))
            name = f"{stem}{len(targets)}{suffix}"
            targets.append(Target(name, dialect, before, text, f"{after}\n{canary}"))
    return targets[:10]


_INVISIBLE = dict.fromkeys(map(ord, "\ufeff\u200b\u200c\u200d\u2060\u00ad\0"), " ")
_SEPARATORS = {0x2028: "\n", 0x2029: "\n"}


def _normalise(code: str, language: str) -> str:
    """Maps characters one for one to what the language's own reader makes of them, where semgrep's differs."""
    if code.isascii() and "\0" not in code:
        return code
    code = code.translate(_INVISIBLE)
    if language in ("javascript", "typescript"):
        return code.translate(_SEPARATORS)  # both end a // comment
    if language == "python":  # identifiers are compared in NFKC: fullwidth "eval" is eval
        wide = {
            ord(c): n
            for c in set(code)
            if not c.isascii() and (n := unicodedata.normalize("NFKC", c)).isalnum() and n.isascii() and len(n) == 1
        }
        return code.translate(wide)
    return code


def _blank_elisions(code: str, language: str) -> str:
    """Blanks lines that are only dots; in Python also the prompts of a session, whose output becomes comments."""
    lines = code.split("\n")
    is_session = language == "python" and code.lstrip().startswith(">>>")
    for i, line in enumerate(lines):
        text = line.strip()
        if is_session:
            if line.startswith((">>>", "...")):
                lines[i] = line[4:] + " " * min(4, len(line)) if len(line) > 3 else " " * len(line)
            elif line:
                lines[i] = "#" + line[1:]
        elif text and not text.strip(".…") and language != "python":
            lines[i] = " " * len(line)
    return "\n".join(lines)


_OPENERS = {"(": ")", "[": "]", "{": "}"}


def _closed(code: str, language: str) -> list[tuple[str, str, str]]:
    """Returns what to write before and after the code so that its brackets match, likeliest first."""
    stack, unopened, tail = _brackets(code, language)
    before = "".join({")": "(", "]": "[", "}": "{"}[c] for c in reversed(unopened))
    after = tail + "".join(_OPENERS[c] for c in reversed(stack))
    shapes: list[tuple[str, str, str]] = []
    if language == "python":
        pad = "\n" + " " * (_last_indent(code) + 4) + "pass\n"
        first = code.lstrip("\n ")[:8]
        head = "try:\n  pass\n" if first.startswith(("except", "finally")) else ""
        head = "if 0:\n  pass\n" if first.startswith(("elif", "else")) else head
        return [("", code, after), ("", code, after + pad), (before + head, code, after), (head, code, after + pad)]
    first = code.lstrip()
    lead = ""
    if unopened[:1] == ["}"]:
        rest = first[1:].lstrip() if first.startswith("}") else ""
        lead = "try " if rest.startswith(("catch", "finally")) else "if (1) " if rest.startswith("else") else ""
        lead = "do " if rest.startswith("while") else lead
        if language == "go" and lead:
            lead = "if true "
    elif first.startswith("else"):
        lead = "if (1) {} "
    elif first.startswith(("catch", "finally")):
        lead = "try {} "
    opened = before[: len(before) - 1] + lead + before[len(before) - 1 :] if before else lead
    if language == "go":
        opened = "func f() { " * bool(before or lead) + opened
        after += "\n}" * bool(before or lead)
    shapes += [("", code, after), (opened, code, after), (opened, code, ";" + after), ("", code, "\n" + after)]
    return shapes + [(wrap + opened, code, after + "\n}") for wrap in LANGUAGES[language].wraps]


def _last_indent(code: str) -> int:
    lines = [line for line in code.split("\n") if line.strip()]
    return len(lines[-1]) - len(lines[-1].lstrip()) if lines else 0


def _brackets(code: str, language: str) -> tuple[list[str], list[str], str]:
    """Returns the open brackets, the closers without an opener, and what ends an open string or comment."""
    stack: list[str] = []
    unopened: list[str] = []
    hashes, slashes, quotes = (LANGUAGES[language].hashes, LANGUAGES[language].slashes, LANGUAGES[language].quotes)
    i, n = 0, len(code)
    while i < n:
        char = code[i]
        if (char == "#" and hashes) or (slashes and code.startswith("//", i)):
            end = code.find("\n", i)
            if end < 0:
                return stack, unopened, "\n"
            i = end
        elif slashes and code.startswith("/*", i):
            end = code.find("*/", i + 2)
            if end < 0:
                return stack, unopened, "*/"
            i = end + 2
        elif char in quotes:
            mark = char * 3 if language in ("python", "java") and code.startswith(char * 3, i) else char
            is_raw = mark == "`" and language == "go"
            i += len(mark)
            spans_lines = len(mark) == 3 or char == "`" or language == "php"
            while i < n and not code.startswith(mark, i):
                if code[i] == "\n" and not spans_lines:
                    break
                i += 2 if code[i] == "\\" and not is_raw else 1
            if i >= n:
                return stack, unopened, mark
            i += len(mark) if code.startswith(mark, i) else 0
        else:
            if char in _OPENERS:
                stack.append(char)
            elif char in ")]}":
                if stack and _OPENERS[stack[-1]] == char:
                    stack.pop()
                elif not any(_OPENERS[c] == char for c in stack[-8:]):
                    unopened.append(char)
            i += 1
    return stack, unopened, ""


def _php(before: str, body: str, after: str) -> tuple[str, str, str]:
    """Puts code without an opening tag into PHP mode; text that starts with ``<`` is a page and is left as it is."""
    has_tag = body.lstrip().startswith("<") and "<?" in body
    in_page = body.rfind("?>") > max(body.rfind("<?"), -1)
    return ("" if has_tag else "<?php ") + before, body, after + ("\n<?php " if in_page else "")

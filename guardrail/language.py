"""Name the language of a code block: a fence's label -> canonical name, or a guess from the code.

A guess that is wrong sends a block to the wrong rules, and a program that is taken for data is not scanned at all; so
data is guessed only where a whole block has its form, and what is not clear stays without a language.
"""

from __future__ import annotations

import json
import re

from guardrail.signatures import MARKS

__all__ = ["LANGUAGES", "canonical_language", "guess_language"]

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


_MAX_CHARS, _MAX_LINES, _MAX_LINE = 20_000, 200, 400
_MAX_PARSED = 4_000  # characters; enough to tell two languages apart, 0.3 ms each
_ENOUGH = 2
_CLEAR = 3  # points between the first and the second that no parser needs to settle
_GRAMMARS = frozenset(
    [
        *("bash", "c", "cpp", "csharp", "css", "go", "java", "javascript", "kotlin", "lua", "php", "python", "ruby"),
        *("rust", "scala", "swift", "typescript"),
    ]
)

_STRICT = frozenset({"csharp", "go", "java", "kotlin", "python", "rust"})

_DECISIVE = (
    ("php", re.compile(r"<\?(?:php\b|=)")),
    ("bash", re.compile(r"^#!.*\b(?:ba|z|k|da)?sh\b")),
    ("python", re.compile(r"^(?:#!.*\bpython|>>> )")),
    ("javascript", re.compile(r"^#!.*\bnode\b")),
    ("ruby", re.compile(r"^#!.*\bruby\b")),
    ("perl", re.compile(r"^#!.*\bperl\b")),
    ("html", re.compile(r"^\s*<!doctype html", re.IGNORECASE)),
    ("xml", re.compile(r"^\s*<\?xml\b")),
)
_SQL = re.compile(
    r"(?:SELECT\b[^;]{1,400}?\bFROM\b|SELECT\s+[\w(@*'\"]|INSERT\s+INTO\b|UPDATE\s+[\w.`\"\[\]]+\s+SET\b|DELETE\s+FROM\b"
    r"|CREATE\s+(?:OR\s+REPLACE\s+)?(?:TEMP\w*\s+|UNIQUE\s+)?"
    r"(?:TABLE|INDEX|VIEW|DATABASE|SCHEMA|FUNCTION|PROCEDURE|TRIGGER|USER|ROLE|TYPE|SEQUENCE)\b"
    r"|ALTER\s+(?:TABLE|DATABASE|USER|ROLE)\b|DROP\s+(?:TABLE|INDEX|VIEW|DATABASE|SCHEMA|FUNCTION|USER)\b"
    r"|WITH\s+(?:RECURSIVE\s+)?\w+\s+AS\s*\(|GRANT\s+[\w, ]{1,200}\s(?:ON|TO)\b|TRUNCATE\s+TABLE\b|EXPLAIN\s+SELECT\b)",
    re.IGNORECASE,
)
_SQL_WEAK = re.compile(r"(?:SELECT|WITH)\b")
_HTML = re.compile(
    r"\s*<(?:html|head|body|div|p|span|a|ul|ol|li|table|tr|td|th|form|input|button|img|h[1-6]|nav|section|header|footer"
    r"|main|article|script|style|link|meta|label|select|textarea|iframe|video|template)(?=[\s>/])[^>]{0,400}>",
    re.IGNORECASE,
)
_JSX = re.compile(r"className=|=\{|\{/\*")
_XML = re.compile(r"\s*<[A-Za-z][\w:.-]*(?=[\s>/])")
_HCL = re.compile(
    r'^(?:(?:resource|data) "[^"\n]*" "[^"\n]*" \{|(?:variable|provider|module|output|backend) "[^"\n]*" \{'
    r"|(?:terraform|locals) \{)[ \t]*$",
    re.MULTILINE,
)
_DOCKER_FROM = re.compile(r"FROM [\w./:${}@-]+(?: AS \w[\w-]*)?[ \t]*$", re.MULTILINE | re.IGNORECASE)
_DOCKER = re.compile(
    r"^(RUN|COPY|WORKDIR|CMD|ENTRYPOINT|EXPOSE|ENV|ADD|ARG|USER|VOLUME|HEALTHCHECK|LABEL) \S", re.MULTILINE
)
_JSON_KEY = re.compile(r'[ \t]*(?:[{\[][ \t{]*)?"[^"\n]{0,200}"[ \t]*:')
_JSON_LINE = re.compile(
    r'[ \t]*(?:[\[\]{},]+|"[^"\n]*"\s*:.*|[{\[].*":.*[}\]],?|"[^"\n]*",?|[\d.eE+-]+,?'
    r"|true,?|false,?|null,?|\.\.\.,?|//.*)[ \t]*$"
)
_YAML_KEY = re.compile(r"[ \t]*(?:- )?[\w.$/-]+:(?:[ \t]+\S.*)?[ \t]*$|[ \t]*(?:- )?\"[^\"\n]+\":(?:[ \t].*)?$")
_YAML_ITEM = re.compile(r"[ \t]*- \S")
_YAML_PARENT = re.compile(r"[ \t]*(?:- )?[a-z_][\w.-]*:[ \t]*$")
_INI_LINE = re.compile(r"[ \t]*(?:\[[\w .:\"-]+\]|[\w.-]+[ \t]*[=:][^{}();]*|[#;].*)$")
_INI_SECTION = re.compile(r"^\[[\w .:\"-]+\][ \t]*$", re.MULTILINE)
_PROSE_LINE = re.compile(
    r"[ \t]*(?:[-*] |\d+[.)] )?"
    r"(?:[A-Z][\w',-]*(?: [\w',()-]+[,:;]?){3,}[.!?:,]?|[\w',-]+(?: [\w',()-]+[,:;]?){3,}[.!?:,])$"
)


def guess_language(code: str) -> str | None:
    """Guesses the language of code that carries no label.

    The first 20,000 characters count: 200 lines of at most 400. What a block *is* (a JSON document, a page, a
    Dockerfile) comes first; then the marks of each language are weighed (:mod:`guardrail.signatures`), and where two
    are close and ast-grep is installed, each one's parser says how much of the code it does not understand.

    Args:
        code: A block's code.

    Returns:
        A canonical name, or None where nothing is clear: prose, logs, tracebacks, languages that are not known.
    """
    lines = [line[:_MAX_LINE] for line in code[:_MAX_CHARS].split("\n")[:_MAX_LINES]]
    full = [line for line in lines if line.strip()]
    if not full:
        return None
    text = "\n".join(lines)
    return _guess_form(text, full) or _guess_program(text, full)


def _guess_form(text: str, full: list[str]) -> str | None:
    """Tells what is known by its first words or by the form of all its lines."""
    for line in full[:5]:
        for name, pattern in _DECISIVE:
            if pattern.search(line):
                return name
    if _is_json(text, full):
        return "json"
    code = [line for line in full if not line.lstrip().startswith(("--", "#", "//", "/*"))]
    head = "\n".join(code[:12]).lstrip()
    if _SQL.match(head) and (not full[0].rstrip().endswith((".", ":")) or _SQL_WEAK.match(head)):
        return "sql"
    if _HTML.match(head) and not _JSX.search(text):
        return "html"
    if _XML.match(head) and "</" in text and text.rstrip().endswith(">") and not _JSX.search(text):
        return "xml"
    if _HCL.search(text):
        return "hcl"
    instructions = {match[1] for match in _DOCKER.finditer(text)}
    if (_DOCKER_FROM.match(head) and (instructions or len(code) == 1)) or len(instructions) >= 3:
        return "dockerfile"
    if len(instructions) == 2 and instructions <= {"COPY", "RUN", "WORKDIR", "CMD", "EXPOSE"}:
        return "dockerfile"
    return _guess_settings(full, text)


def _is_json(text: str, full: list[str]) -> bool:
    start = text.lstrip()[:1]
    if start in ("{", "["):
        try:
            json.loads(text)
        except (ValueError, RecursionError):
            pass
        else:
            return True
    elif start != '"':
        return False
    keys = sum(_JSON_KEY.match(line) is not None for line in full)
    return keys >= 2 and sum(_JSON_LINE.match(line) is not None for line in full) >= 0.9 * len(full)


def _guess_settings(full: list[str], text: str) -> str | None:
    """Tells YAML and INI, where every line has their form."""
    lines = [line for line in full if not line.lstrip().startswith("#") and line.strip() != "---"]
    if not lines:
        return None
    if _INI_SECTION.search(text) and all(_INI_LINE.match(line) for line in lines):
        return "ini"
    keys = sum(_YAML_KEY.match(line) is not None for line in lines)
    items = sum(_YAML_ITEM.match(line) is not None for line in lines)
    parents = sum(_YAML_PARENT.match(line) is not None for line in lines)
    is_nested = any(line[:1] in (" ", "\t", "-") for line in lines[1:])
    is_whole = all(_YAML_KEY.match(line) or _YAML_ITEM.match(line) for line in lines)
    return "yaml" if is_whole and parents and is_nested and keys >= 2 and keys + items >= 3 else None


def _guess_program(text: str, full: list[str]) -> str | None:
    scores = _score(text)
    if not scores:
        return None
    ranked = sorted(scores.items(), key=lambda item: -item[1])
    best = ranked[0][1]
    if sum(_PROSE_LINE.match(line) is not None for line in full) >= 0.5 * len(full) and best < 2 * _CLEAR:
        return None
    close = [(name, score) for name, score in ranked if score > best - _CLEAR]
    if len(close) > 1 or best < 2 * _ENOUGH:
        close = _settle(text, close[:4])
    (name, score), *others = close
    # What a parser does not understand decides between languages, not whether it is one: blocks are cut anywhere.
    if max(score, scores[name]) < _ENOUGH or (others and others[0][1] == score):
        return None
    return name


def _score(text: str) -> dict[str, float]:
    scores: dict[str, float] = {}
    for name, marks in MARKS.items():
        score = 0
        for weight, needles, pattern in marks:
            for needle in needles:
                if needle in text:
                    if pattern is None or pattern.search(text) is not None:
                        score += weight
                    break
        if score:
            scores[name] = score
    # C++ and TypeScript are C and JavaScript with marks of their own; without such a mark only a parser can tell.
    for name, base in (("cpp", "c"), ("typescript", "javascript")):
        own = scores.pop(name, 0)
        if own >= _ENOUGH or scores.get(base, 0) >= _ENOUGH:
            scores[name] = scores.get(base, 0) + (own if own >= _ENOUGH else -1)
    return scores


def _settle(text: str, close: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """Takes points off for what a language's parser does not understand; as it was where there is no parser."""
    try:
        from ast_grep_py import SgRoot
    except ImportError:
        return close
    text = text if len(text) <= _MAX_PARSED else text[:_MAX_PARSED].rpartition("\n")[0]
    settled = []
    for name, score in close:
        if name in _GRAMMARS and text:
            source = f"<?php\n{text}" if name == "php" else text
            errors = SgRoot(source, name).root().find_all(kind="ERROR")
            lost = sum(e.range().end.index - e.range().start.index for e in errors)
            score -= min(4.0, 0.5 * len(errors) + 10.0 * lost / len(text))
            # The grammars of these take next to nothing else for a program.
            score += not errors and name in _STRICT
        settled.append((name, score))
    return sorted(settled, key=lambda item: -item[1])

"""Fragments as they are pasted: the real semgrep understands them once repaired, and finds what is in them."""

from __future__ import annotations

import asyncio

import pytest

from guardrail.errors import ScanError
from guardrail.shield import PartialScan
from guardrail.shield.semgrep import SemgrepScanner
from guardrail.verdict import CodeBlock, Finding, Span

pytest.importorskip("semgrep")

# What is cut off, the language, the code. Each holds one weakness that has a rule.
FRAGMENTS = {
    "python: arguments before the first line": ("python", "    name, value)\nimport os\nos.system('ls ' + name)\n"),
    "python: deeper than it goes on": ("python", "        a = 1\n    eval(x)\nb = 2\n"),
    "python: first line lost its indentation": ("python", "a = 1\n    eval(x)\n    b = 2\n"),
    "python: try without except": ("python", "def f(x):\n    try:\n        eval(x)\n"),
    "python: except without try": ("python", "    eval(x)\nexcept ValueError:\n    pass\n"),
    "python: decorator at the end": ("python", "def f(x):\n    return eval(x)\n\n@app.route(\n    '/a',\n"),
    "python: ends behind an operator": ("python", "y = eval(x)\nz = y +"),
    "javascript: starts in a comment": ("javascript", " the text of it.\n */\neval(x);\n"),
    "javascript: ends of callbacks": ("javascript", "    eval(x);\n  });\n});\n"),
    "javascript: ends of an object": ("javascript", "  a: 1,\n  b: { c: 2 },\n};\neval(x);\n"),
    "javascript: catch without try": ("javascript", "  eval(x);\n} catch (e) {\n  g(e);\n}\n"),
    "javascript: an open template": ("javascript", "const a = `x ${ eval(b) } y"),
    "javascript: a brace in a regular expression": (
        "javascript",
        "const a = x.replace(/[{]/g, '');\nif (a) {\n  eval(a);\n",
    ),
    "javascript: a case": ("javascript", "  case 1:\n    eval(x);\n    break;\n  }\n"),
    "typescript: a method and a class's end": ("typescript", "  run(x: string): void {\n    eval(x);\n  }\n}\n"),
    "java: starts in a comment": (
        "java",
        " * Text of it.\n */\nvoid f(String c) throws Exception { Runtime.getRuntime().exec(\"sh -c \" + c); }\n",
    ),
    "java: an open try": ("java", "try {\n  Runtime.getRuntime().exec(\"sh -c \" + c);\n"),
    "java: ends of a method and a class": (
        "java",
        "    Runtime.getRuntime().exec(\"sh -c \" + c);\n  }\n\n  public int g() {\n    return 1;\n  }\n}\n",
    ),
    "c: a condition without its end": ("c", "#ifdef A\nvoid f(char *a) {\n  gets(a);\n}\n"),
    "c: an end without its condition": ("c", "void f(char *a) {\n  gets(a);\n}\n#endif\n"),
    "c: else without if": ("c", "    gets(a);\n  } else {\n    g();\n  }\n"),
    "cpp: a loop's end": ("cpp", "    gets(a);\n  } while (a[0]);\n}\n"),
    "csharp: a verbatim string": (
        "csharp",
        "void F(string a) {\n  var p = @\"C:\\\";\n  Process.Start(\"cmd.exe\", \"/c \" + a);\n",
    ),
    "csharp: regions": ("csharp", "#region A\nvoid F(string a) { Process.Start(\"cmd.exe\", \"/c \" + a); }\n"),
    "php: ends of an array": ("php", "  'a' => 1,\n  'b' => 2,\n);\neval($_GET['x']);\n"),
    "php: starts in a comment": ("php", " * Text.\n */\neval($_GET['x']);\n"),
    "go: else without if": ("go", "\tmd5.Sum(b)\n} else {\n\tg()\n}\n"),
    "rust: a match arm's end": (
        "rust",
        "        Some(a) => unsafe { std::mem::transmute::<u32, f32>(a) },\n        None => 0.0,\n    }\n}\n",
    ),
    "ruby: an open method": ("ruby", "def f(x)\n  if x\n    eval(x)\n"),
    "ruby: ends alone": ("ruby", "      eval(params[:x])\n    end\n  end\nend\n"),
    "ruby: rescue without begin": ("ruby", "  eval(params[:x])\nrescue StandardError\n  nil\nend\n"),
    "ruby: an open block": ("ruby", "items.each do |x|\n  eval(params[:x])\n"),
    "kotlin: ends alone": ("kotlin", "    Runtime.getRuntime().exec(\"sh -c \" + c)\n  }\n}\n"),
    "bash: fi alone": ("bash", "  eval \"$1\"\nfi\n"),
    "bash: an open loop": ("bash", "for a in $@; do\n  eval \"$a\"\n"),
    "bash: an open here-document": ("bash", "eval \"$1\"\ncat <<EOF\nit's\n"),
}  # fmt: skip

# Code that one reading takes for a string.
DOUBTFUL = {
    "python: a docstring's end": ("python", '    of it.\n    """\n    eval(x)\n'),
    "python: nothing but a docstring's end": ("python", '    """\n    eval(x)\n'),
    "python: between two docstrings": ("python", '    """\n    return eval(x)\n\ndef g():\n    """\n'),
    "python: a word and two docstrings": ("python", 'Text\n"""\nreturn eval(x)\n\ndef g():\n    """\n'),
    "python: cut in a docstring": ("python", 'def f(x):\n    eval(x)\n\ndef g():\n    """Text of it.\n\n    And more'),
    "javascript: a template's end": ("javascript", "`;\neval(x);\n"),
    "javascript: between two templates": ("javascript", "`;\neval(x);\nconst b = `"),
    "php: a string's end": ("php", "';\neval($_GET['x']);\n"),
    "tsx: what a .ts file loses": (
        "typescript",
        "export const A = ({ html }) => <div dangerouslySetInnerHTML={{ __html: html }} />;\n",
    ),
}


def block_of(code: str, language: str) -> CodeBlock:
    starts = [0]
    for line in code.split("\n")[:-1]:
        starts.append(starts[-1] + len(line) + 1)
    return CodeBlock(code, language, Span(0, len(code)), tuple(starts))


@pytest.fixture(scope="module")
def results() -> dict[str, list[Finding] | ScanError]:
    """All fragments, scanned together."""
    cases = {**FRAGMENTS, **DOUBTFUL}
    scanner = SemgrepScanner(timeout_s=120, workers=0)
    blocks = [block_of(code, language) for language, code in cases.values()]
    return dict(zip(cases, asyncio.run(scanner.scan(blocks)), strict=True))


@pytest.mark.parametrize("name", FRAGMENTS)
def test_a_fragment_is_verified_with_what_it_holds(name: str, results: dict[str, list[Finding] | ScanError]) -> None:
    """The block counts as read to its end, and its weakness is found in it."""
    result = results[name]
    assert isinstance(result, list), str(result)
    assert result


@pytest.mark.parametrize("name", DOUBTFUL)
def test_code_in_a_string_is_read_as_code(name: str, results: dict[str, list[Finding] | ScanError]) -> None:
    """Where code would end up in a string, or be dropped, what it holds is found nevertheless."""
    result = results[name]
    findings = result if isinstance(result, list) else result.findings if isinstance(result, PartialScan) else []
    assert findings, str(result)

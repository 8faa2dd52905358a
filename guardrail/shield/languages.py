"""How semgrep reads each language: the file's suffix, whose rules run on it, and the canary behind the code.

Each file ends with the canary of its language, a call that an extra rule always matches: a file whose canary was not
found was not read to its end.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CANARY", "DIALECTS", "LANGUAGES", "Language"]

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
    """

    suffix: str
    rules: str
    canary: str = f"{_CALL}\n"
    pattern: str = _CALL
    hashes: bool = False
    slashes: bool = True
    quotes: str = "\"'"


_SCRIPT = f";{_CALL};\n"
_C_FUNCTION = f"void guardrail_canary(void) {{ {_CALL}; }}\n"

LANGUAGES: dict[str, Language] = {
    "python": Language(".py", "python", hashes=True, slashes=False),
    "javascript": Language(".js", "javascript", canary=_SCRIPT, quotes="\"'`"),
    "typescript": Language(".ts", "typescript", canary=_SCRIPT, quotes="\"'`"),
    "tsx": Language(".tsx", "typescript", canary=_SCRIPT, quotes="\"'`"),
    "java": Language(
        ".java",
        "java",
        canary=f"class GuardrailCanary {{ void end() {{ {_CALL}; }} }}\n",
        pattern=_CALL + ";",
    ),
    "c": Language(".c", "c", canary=_C_FUNCTION, pattern=_CALL + ";"),
    "cpp": Language(".cpp", "cpp", canary=_C_FUNCTION, pattern=_CALL + ";"),
    "csharp": Language(
        ".cs",
        "csharp",
        canary=f"class GuardrailCanary {{ void End() {{ {_CALL}; }} }}\n",
        pattern=_CALL + ";",
    ),
    "php": Language(".php", "php", canary=_SCRIPT, pattern=_CALL + ";", hashes=True),
    "go": Language(".go", "go", canary=f"func guardrailCanary() {{ {_CALL} }}\n", quotes="\"'`"),
    "rust": Language(".rs", "rust", canary=f"fn guardrail_canary() {{ {_CALL} }}\n", quotes='"'),
    "ruby": Language(".rb", "ruby", hashes=True, slashes=False),
    "kotlin": Language(".kt", "kotlin", canary=f"fun guardrailCanary() {{ {_CALL} }}\n"),
    "swift": Language(
        ".swift",
        "swift",
        canary=f"func guardrailCanary() {{ {_CALL} }}\n",
        quotes='"',
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
DIALECTS = {"javascript": ("javascript", "tsx", "typescript"), "typescript": ("typescript", "tsx"), "c": ("c", "cpp")}
"""What a label may stand for, likeliest first; a language that is not named stands for itself."""

"""What the commands share: exit codes, consoles, options, and the guard they ask.

Results go to stdout; errors, warnings and progress go to stderr.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from guardrail.pipeline import Guard

__all__ = [
    "STYLES",
    "ExitCode",
    "ModelOption",
    "PolicyOption",
    "build_guard",
    "err_console",
    "out_console",
    "say",
    "say_error",
    "visible",
]

STYLES = {"allow": "green", "flag": "yellow", "retry": "magenta", "block": "bold red"}
"""Action -> how it looks on a terminal."""

PolicyOption = Annotated[
    str | None,
    typer.Option(
        "--policy", metavar="NAME|FILE", help="strict, default, monitor, or a YAML file.", show_default="default"
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME",
        help="auto, embedded, llama-guard-2, llama-guard-3, cascade, or a plug-in's name.",
        show_default="auto",
    ),
]


class ExitCode(IntEnum):
    """The table in ``guardrail.cli`` says what each means."""

    OK = 0
    FAILED = 1
    USAGE = 2
    BLOCKED = 3
    UNJUDGED = 4
    INTERRUPTED = 130


def out_console() -> Console:
    """The console of results."""
    return Console(highlight=False)


def err_console() -> Console:
    """The console of errors and progress."""
    return Console(stderr=True, highlight=False)


def say(message: str, *, style: str | None = None) -> None:
    """Prints a line on stderr; never wrapped, so that it can be searched for."""
    err_console().print(message, style=style, markup=False, soft_wrap=True)


def say_error(message: str) -> None:
    """Prints an error on stderr."""
    say(f"guardrail: {message}", style="red")


# Zero-width characters, line separators, and what changes the direction of the text behind it.
_HIDDEN = frozenset(map(chr, [*range(0x200B, 0x2010), *range(0x2028, 0x202F), *range(0x2060, 0x206A), 0xFEFF]))


def visible(text: str) -> str:
    """Makes foreign text safe to print: a character that a terminal would obey, or not show, becomes one that it shows.

    Control characters become their pictures (ESC is ``␛``); invisible and direction-changing ones become ``�``. Each
    character stays one character.
    """
    return "".join(_shown(char) for char in text)


def _shown(char: str) -> str:
    code = ord(char)
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    return "\ufffd" if 0x80 <= code < 0xA0 or 0xD800 <= code < 0xE000 or char in _HIDDEN else char


def build_guard(*, model: str | None, policy: str | None) -> Guard:
    """Builds the guard that options and environment describe.

    Raises:
        ConfigurationError: If the settings, the policy or the model cannot work.
    """
    from guardrail import assembly
    from guardrail.config import load_settings

    return assembly.build_guard(load_settings(model=model, policy=policy))

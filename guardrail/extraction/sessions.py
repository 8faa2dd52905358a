r"""Read the commands out of a console session: ``$ ls`` and what it printed -> the command lines, with their places.

A prompt is ``$ `` or ``user@host:~/dir$ ``. A command goes on after a line that ends in a backslash, and to the end of
its here-document; the prompt of such lines (``> ``) is taken off. Everything else is output and is left out; only in a
block that is labelled a shell's are lines without a prompt kept, since there they may be commands.
"""

from __future__ import annotations

import re

from guardrail.verdict import CodeBlock, Span

__all__ = ["is_session", "session_commands"]

_PROMPT = re.compile(
    r"[ \t]{0,16}(?:\([\w.-]{1,40}\) ?)?(?:\$|[\w.-]{1,64}@[\w.-]{1,64}(?:[: ][^\s$#]{0,200})?[ ]?[$#])[ \t]+(?=\S)"
)
_HERE = re.compile(r"<<-?[ \t]*['\"]?(\w{1,64})")


def is_session(block: CodeBlock) -> bool:
    """Whether a block's first line has a prompt, or any line of one that is labelled a console."""
    lines = [line for line in block.code.split("\n") if line.strip()]
    return any(_PROMPT.match(line) for line in (lines if block.language == "console" else lines[:1]))


def session_commands(block: CodeBlock) -> list[CodeBlock]:
    """Returns the commands of a session as one block of bash."""
    lines: list[str] = []
    starts: list[int] = []
    goes_on, ends_at = False, ""
    for line, start in zip(block.code.split("\n"), block.line_starts, strict=True):
        prompt = _PROMPT.match(line)
        if goes_on or ends_at:
            skipped = 2 if line.startswith("> ") else 0
        elif prompt is not None:
            skipped = prompt.end()
        elif block.language == "bash":
            skipped = 0
        else:
            continue
        command = line[skipped:]
        lines.append(command)
        starts.append(start + skipped)
        if ends_at:
            ends_at = "" if command.strip() == ends_at else ends_at
        else:
            here = _HERE.search(command)
            ends_at = here[1] if here else ""
        goes_on = not ends_at and command.endswith("\\")
    return [CodeBlock("\n".join(lines), "bash", Span(starts[0], max(starts[0], block.span.end)), tuple(starts))]

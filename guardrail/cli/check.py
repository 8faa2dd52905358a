"""``guardrail check``: judges one text."""

from __future__ import annotations

import json
import os
import sys
from enum import Enum
from typing import TYPE_CHECKING, Annotated

import typer

from guardrail.cli.console import STYLES, ExitCode, ModelOption, PolicyOption, build_guard, out_console
from guardrail.errors import InvalidInput

if TYPE_CHECKING:
    from rich.text import Text

    from guardrail.verdict import Decision, Reason

__all__ = ["check"]


class Speaker(str, Enum):
    """Whose texts are judged."""

    USER = "user"
    ASSISTANT = "assistant"


def check(
    text: Annotated[str, typer.Argument(help="The text to judge; - reads it from standard input.", metavar="TEXT|-")],
    role: Annotated[
        Speaker | None,
        typer.Option("--role", help="Who wrote the text.", show_default="user; assistant with --prompt"),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="The user message that the assistant's text answers.")
    ] = None,
    policy: PolicyOption = None,
    model: ModelOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on one line.")] = False,
) -> None:
    """Judge one text. Exits with 0 if it may pass (allow, flag) and 3 if not (retry, block)."""
    from guardrail.verdict import Conversation, Role

    speaker = Role(role.value) if role is not None else Role.ASSISTANT if prompt else Role.USER
    content = _stdin_text() if text == "-" else _argument_text(text, "TEXT")
    before = _argument_text(prompt, "--prompt") if prompt else None
    conversation = Conversation.of(content, role=speaker, prompt=before)
    guard = build_guard(model=model, policy=policy)
    decision = guard.check(conversation)
    if as_json:
        typer.echo(json.dumps(decision.to_dict(), ensure_ascii=False).encode())
    else:
        _show(decision, scans_code=guard.scans_code)
    if not decision.action.releases:
        raise typer.Exit(ExitCode.BLOCKED)


def _stdin_text() -> str:
    data = sys.stdin.buffer.read()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise InvalidInput(f"standard input is not UTF-8: byte {exc.start + 1} of {len(data)}") from exc


def _argument_text(text: str, name: str) -> str:
    """Python gives undecodable argument bytes as lone surrogates."""
    try:
        os.fsencode(text).decode("utf-8")
    except UnicodeError as exc:
        offset = getattr(exc, "start", 0) + 1
        raise InvalidInput(f"{name} is not UTF-8: byte {offset}; use - and standard input for other bytes") from exc
    return text


def _show(decision: Decision, *, scans_code: bool) -> None:
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    style = STYLES[decision.action.value]
    what = {"prompt": "user message", "response": "assistant message"}[decision.rail.value]
    lines = [Text.assemble((decision.action.value.upper(), style), f"  {what} is {decision.outcome.value}")]
    lines += [_reason_line(reason) for reason in decision.reasons]
    for finding in decision.findings:
        where = f"{finding.language} line {finding.line}, column {finding.column}"
        lines.append(Text(f"  {finding.cwe} at {where}: {finding.message}"))
    top = sorted(decision.scores.items(), key=lambda item: -item[1])[:3]
    if top:
        lines.append(Text("highest scores: " + ", ".join(f"{category.title} {score:.2f}" for category, score in top)))
    sources = dict.fromkeys(str(verdict.source) for verdict in decision.verdicts)
    code = "" if scans_code else "; code is not examined"
    lines.append(Text(f"judged by {', '.join(sources) or 'nobody'}; policy {decision.policy_name}{code}", style="dim"))
    out_console().print(Panel(Group(*lines), border_style=style, expand=False))


def _reason_line(reason: Reason) -> Text:
    from rich.text import Text

    from guardrail.taxonomy import HazardCategory
    from guardrail.verdict import ReasonKind

    subject = HazardCategory(reason.subject).title if reason.kind is ReasonKind.HAZARD else reason.subject
    words = {
        ReasonKind.HAZARD: subject,
        ReasonKind.UNSAFE: "unsafe, no category named",
        ReasonKind.FINDING: f"insecure code: {subject}",
        ReasonKind.UNSCANNED: subject,
        ReasonKind.UNVERIFIED: f"could not be judged: {subject}",
    }[reason.kind]
    score = "" if reason.score is None else f"  {reason.score:.2f}"
    limit = "" if reason.threshold is None else f" (from {reason.threshold:.2f} on)"
    return Text.assemble("• ", (f"{reason.action.value:<6}", STYLES[reason.action.value]), f" {words}{score}{limit}")

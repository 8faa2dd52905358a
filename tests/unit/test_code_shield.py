"""Code Shield's verdicts, over scripted scanners."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from guardrail.code_shield import CodeShield
from guardrail.errors import ScanError
from guardrail.shield import PartialScan
from guardrail.verdict import CodeBlock, Conversation, Finding, Outcome, Role, Severity, Span


def finding(severity: Severity, start: int = 0) -> Finding:
    return Finding("python.x", "CWE-1", severity, Span(start, start + 1), 1, 1, "python", "m")


class ScriptedScanner:
    """Answers by a word in the code, and counts its calls."""

    def __init__(self, answers: dict[str, list[Finding] | ScanError]) -> None:
        self.answers = answers
        self.calls: list[list[str]] = []

    async def scan(self, blocks: Sequence[CodeBlock]) -> list[list[Finding] | ScanError]:
        self.calls.append([block.code for block in blocks])
        return [self.answers.get(block.code, []) for block in blocks]


def said(text: str) -> Conversation:
    return Conversation.of(text, role=Role.ASSISTANT)


ERROR, INFO = finding(Severity.ERROR, 9), finding(Severity.INFO, 3)


class TestCodeShield:
    async def test_without_code_the_scanner_is_not_asked(self) -> None:
        """A message without code is safe and costs no scan."""
        scanner = ScriptedScanner({})
        (verdict,) = await CodeShield(scanner).classify([said("hello")])
        assert (verdict.outcome, verdict.detail, scanner.calls) == (Outcome.SAFE, "no code", [])

    async def test_all_blocks_go_in_one_call_and_answers_keep_their_owner(self) -> None:
        """Verdict i belongs to conversation i, over one scan for all."""
        scanner = ScriptedScanner({"bad": [ERROR]})
        texts = ["```py\nok\n```\n```py\nfine\n```", "no code", "```py\nbad\n```", "```py\nlast\n```"]
        verdicts = await CodeShield(scanner).classify([said(text) for text in texts])
        assert [verdict.outcome.value for verdict in verdicts] == ["safe", "safe", "unsafe", "safe"]
        assert scanner.calls == [["ok", "fine", "bad", "last"]]

    @pytest.mark.parametrize(("severity", "outcome"), [("info", "safe"), ("warning", "unsafe"), ("error", "unsafe")])
    async def test_severity(self, severity: str, outcome: str) -> None:
        """A note is safe and reported; a warning or an error is unsafe."""
        hit = finding(Severity(severity))
        (verdict,) = await CodeShield(ScriptedScanner({"x": [hit]})).classify([said("```py\nx\n```")])
        assert (verdict.outcome.value, verdict.findings) == (outcome, (hit,))

    async def test_a_failed_block_is_unverified_and_keeps_all_findings(self) -> None:
        """Could not check is never safe, and hides nothing that was found."""
        scanner = ScriptedScanner({"a": PartialScan("half", [INFO]), "b": [ERROR]})
        (verdict,) = await CodeShield(scanner).classify([said("```py\na\n```\n```py\nb\n```")])
        assert verdict.outcome is Outcome.UNVERIFIED
        assert verdict.findings == (INFO, ERROR)
        assert "not verified: 1 of 2 blocks" in verdict.detail

    async def test_a_failed_block_touches_no_other_message(self) -> None:
        """One broken block does not make another conversation unverified."""
        scanner = ScriptedScanner({"a": ScanError("gone")})
        first, second = await CodeShield(scanner).classify([said("```py\na\n```"), said("```py\nb\n```")])
        assert (first.outcome, second.outcome) == (Outcome.UNVERIFIED, Outcome.SAFE)

    async def test_languages_without_rules_are_named(self) -> None:
        """What was not scanned is said, and the word of the message itself is not repeated."""
        scanner = ScriptedScanner({})
        text = "```scala\nx\n```\n```json\n{}\n```\n```my-secret\nx\n```\n```\nprose\n```"
        (verdict,) = await CodeShield(scanner).classify([said(text)])
        assert verdict.outcome is Outcome.UNVERIFIED
        assert verdict.unscanned == ("other", "scala", "unlabelled")
        assert verdict.detail == (
            "not scanned: 4 of 4 blocks in languages without rules (json 1, other 1, scala 1, unlabelled 1)"
        )
        assert scanner.calls == []

    @pytest.mark.parametrize(("label", "outcome"), [("scala", "unverified"), ("json", "safe"), ("", "unverified")])
    async def test_code_without_rules_is_never_safe(self, label: str, outcome: str) -> None:
        """Programs without rules count as unchecked; data never does."""
        shield = CodeShield(ScriptedScanner({}))
        (verdict,) = await shield.classify([said(f"```{label}\nx\n```")])
        assert verdict.outcome.value == outcome

    async def test_unlabelled_code_is_guessed(self) -> None:
        """Clear Python without a label is scanned as Python."""
        scanner = ScriptedScanner({})
        await CodeShield(scanner).classify([said("```\nimport os\ndef f(x):\n    pass\n```")])
        assert len(scanner.calls) == 1

    async def test_a_scanner_that_answers_short_is_an_error(self) -> None:
        """Fewer results than blocks never reads as clean."""

        class Short:
            async def scan(self, blocks: Sequence[CodeBlock]) -> list[list[Finding] | ScanError]:
                return []

        with pytest.raises(ScanError, match="1 blocks, got 0"):
            await CodeShield(Short()).classify([said("```py\nx\n```")])

"""Judge the code in messages: extraction -> scanner -> one ``Verdict`` a conversation.

All code blocks of all conversations go to the scanner in one call. A message without code never starts it.

The outcome, for one message:

- ``UNVERIFIED`` where a block was not scanned to its end. Findings of its other blocks, and of the part that was
  understood, stand in ``findings`` all the same: the policy takes the strictest of what they and the missing answer
  ask for, so neither hides the other.
- else ``UNSAFE`` where a finding is a warning or an error;
- else ``UNVERIFIED`` where a block is in a language without rules, or in none that could be told: ``unscanned`` names
  them, and the policy's ``on_unscanned_code`` says what that means. Data and prose (JSON, text, diffs) are not code;
- else ``SAFE``, with findings of severity info if there are any.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from guardrail import instruments
from guardrail.errors import ScanError
from guardrail.extraction import LANGUAGES, extract_code_blocks, guess_language
from guardrail.protocols import CodeScanner
from guardrail.shield import PartialScan
from guardrail.shield.semgrep import SemgrepScanner
from guardrail.verdict import CodeBlock, Conversation, Finding, Outcome, Severity, Source, Timing, Verdict

__all__ = ["CodeShield"]

_DEFAULT_LANGUAGES = frozenset(
    [
        "bash",
        "c",
        "cpp",
        "csharp",
        "dockerfile",
        "go",
        "hcl",
        "java",
        "javascript",
        "kotlin",
        "php",
        "python",
        "ruby",
        "rust",
        "swift",
        "typescript",
        "yaml",
    ]
)
_LONG_CHARS = 20_000
_NOT_PROGRAMS = frozenset(
    {"console", "css", "csv", "diff", "ini", "json", "markdown", "text", "toml", "xml", "mermaid", "latex"}
)


class CodeShield:
    """Judges the code of a conversation's last message; implements ``HazardClassifier``.

    Args:
        scanner: Examines the blocks; None for semgrep with the rules of this package.
        languages: Canonical languages the scanner has rules for; None asks a ``SemgrepScanner``, and means the
            languages of this package's rules for any other.
        revision: Revision of scanner and rules; None asks a ``SemgrepScanner``.

    Raises:
        MissingExtra: If semgrep is to be used and is not installed.
    """

    def __init__(
        self,
        scanner: CodeScanner | None = None,
        *,
        languages: frozenset[str] | None = None,
        revision: str | None = None,
    ) -> None:
        self._scanner: CodeScanner = SemgrepScanner() if scanner is None else scanner
        semgrep = self._scanner if isinstance(self._scanner, SemgrepScanner) else None
        self._languages = languages or (semgrep.languages if semgrep else _DEFAULT_LANGUAGES)
        self._source = Source("code-shield", revision if revision is not None else semgrep.revision if semgrep else "")

    @property
    def source(self) -> Source:
        """``code-shield``, with the hash of the rules and semgrep's version."""
        return self._source

    def start(self) -> None:
        """Starts in the background what makes later scans short, where the scanner has such."""
        if isinstance(self._scanner, SemgrepScanner):
            self._scanner.start()

    def close(self) -> None:
        """Ends the scanner's processes, where it keeps any."""
        if isinstance(self._scanner, SemgrepScanner):
            self._scanner.close()

    async def classify(self, conversations: Sequence[Conversation]) -> list[Verdict]:
        """Judges the code of each conversation's last message.

        Args:
            conversations: Any number.

        Returns:
            Verdict i belongs to conversation i; a block that could not be scanned makes its verdict unverified.

        Raises:
            ScanError: If the scanner failed as a whole, or answered for another number of blocks.
        """
        texts = [conversation.last.content for conversation in conversations]
        # Ten thousand fences take a second or two, in which other checks have to go on.
        is_long = sum(map(len, texts)) > _LONG_CHARS
        found = await asyncio.to_thread(list, map(_blocks, texts)) if is_long else [_blocks(text) for text in texts]
        wanted = [block for blocks in found for block in blocks if block.language in self._languages]
        started = time.perf_counter()
        results = list(await self._scanner.scan(wanted)) if wanted else []
        seconds = time.perf_counter() - started
        elapsed = Timing(compute_ms=seconds * 1000)
        if len(results) != len(wanted):
            raise ScanError(f"expected results for {len(wanted)} blocks, got {len(results)}")
        if wanted:
            failed = sum(isinstance(result, ScanError) for result in results)
            instruments.tell(instruments.BlocksScanned(len(wanted), failed, seconds))
        answers = iter(results)
        return [
            self._verdict(blocks, [next(answers) for block in blocks if block.language in self._languages], elapsed)
            for blocks in found
        ]

    def _verdict(
        self, blocks: list[CodeBlock], results: Sequence[list[Finding] | ScanError], timing: Timing
    ) -> Verdict:
        if not blocks:
            return Verdict(Outcome.SAFE, self._source, detail="no code")
        findings: list[Finding] = []
        failures: list[ScanError] = []
        for result in results:
            if isinstance(result, ScanError):
                failures.append(result)
                findings += result.findings if isinstance(result, PartialScan) else ()
            else:
                findings += result
        findings.sort(key=lambda finding: (finding.span.start, finding.span.end, finding.rule_id))
        notes = [f"not verified: {len(failures)} of {len(blocks)} blocks: {failures[0]}"] if failures else []
        skipped = [block for block in blocks if block.language not in self._languages]
        if skipped:
            names = ", ".join(f"{name} {n}" for name, n in sorted(Counter(map(_label, skipped)).items()))
            notes.append(f"not scanned: {len(skipped)} of {len(blocks)} blocks in languages without rules ({names})")
        # A block that failed asks for the stricter `on_unverified` by itself.
        unscanned = () if failures else tuple(sorted({_label(b) for b in skipped if b.language not in _NOT_PROGRAMS}))
        if failures:
            outcome = Outcome.UNVERIFIED
        elif any(finding.severity is not Severity.INFO for finding in findings):
            outcome = Outcome.UNSAFE
        elif unscanned:
            outcome = Outcome.UNVERIFIED
        else:
            outcome = Outcome.SAFE
        return Verdict(
            outcome,
            self._source,
            findings=tuple(findings),
            unscanned=unscanned,
            detail="; ".join(notes),
            timing=timing,
        )


def _blocks(text: str) -> list[CodeBlock]:
    blocks = [block for block in extract_code_blocks(text) if block.code.strip()]
    return [b if b.language is not None else replace(b, language=guess_language(b.code)) for b in blocks]


def _label(block: CodeBlock) -> str:
    """A language for people; a word from the message that is no known language is not repeated."""
    if block.language is None:
        return "unlabelled"
    return block.language if block.language in LANGUAGES else "other"

"""``guardrail scan-code``: looks for weaknesses in files, folders and answers."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from contextlib import suppress
from enum import Enum
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from guardrail.cli.console import ExitCode, err_console, out_console, say, say_error
from guardrail.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.status import Status

    from guardrail.config import Settings
    from guardrail.shield.files import NotScanned, SourceFile
    from guardrail.shield.filescan import FileFinding, FileScan
    from guardrail.shield.rulebook import Rulebook

__all__ = ["RulesOption", "load_rulebook", "read_language", "scan_code"]

# A chunk holds up to half a million characters; a busy machine takes most of a minute for that.
_CHUNK_LIMIT_S = 180.0

RulesOption = Annotated[
    Path | None,
    typer.Option(
        "--rules",
        metavar="FOLDER",
        help="Rules of your own, <language>/*.yaml; one with the id of a built-in rule replaces it.",
        show_default="GUARDRAIL_RULES",
    ),
]


class Format(str, Enum):
    """How the report is written."""

    TEXT = "text"
    JSON = "json"
    SARIF = "sarif"


class Least(str, Enum):
    """A severity, from this one on."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class FailOn(str, Enum):
    """From which severity on a finding makes the exit code 3."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"
    NEVER = "never"


_RANK = {"info": 0, "warning": 1, "error": 2, "never": 3}


def scan_code(
    paths: Annotated[list[str], typer.Argument(help="Files and folders; - is standard input.", metavar="PATH...|-")],
    language: Annotated[
        str | None,
        typer.Option(
            "--language", metavar="NAME", help="Language of standard input; without, it is an answer with code blocks."
        ),
    ] = None,
    report: Annotated[Format, typer.Option("--format", help="How the report is written.")] = Format.TEXT,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the report there, not to stdout.")
    ] = None,
    rules: RulesOption = None,
    severity: Annotated[Least, typer.Option("--severity", help="The least severity that is reported.")] = Least.WARNING,
    fail_on: Annotated[
        FailOn, typer.Option("--fail-on", help="Exit with 3 where a finding is at least this severe.")
    ] = FailOn.WARNING,
    allow_unjudged: Annotated[
        bool, typer.Option("--allow-unjudged", help="Exit with 0 though some code could not be scanned, not with 4.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No summary.")] = False,
) -> None:
    """Look for weaknesses (CWE) in source files, folders, and the code blocks of Markdown.

    Exits with 0 where there is none, 3 where --fail-on says so, 4 where some code could not be scanned to its end.
    """
    from guardrail.cli import code_report
    from guardrail.config import load_settings
    from guardrail.shield.filescan import scan_sources
    from guardrail.shield.semgrep import SemgrepScanner

    _require_readable(paths, language)
    settings = load_settings(rules=str(rules) if rules is not None else None)
    rulebook = load_rulebook(settings)
    whole = read_language(language) if language is not None else None
    scanner = SemgrepScanner(executable=settings.semgrep, rules=rulebook, timeout_s=_CHUNK_LIMIT_S)
    with err_console().status("scanning") as status:
        found = _counted(_find(paths, whole, scanner.languages), status)
        scan = asyncio.run(scan_sources(found, scanner))
    least = min(_RANK[severity.value], _RANK[fail_on.value])  # what fails the run is shown
    shown = [each for each in scan.findings if _RANK[each.finding.severity.value] >= least]
    if report is Format.TEXT:
        _write_text(scan, shown, output)
    else:
        make = code_report.as_json if report is Format.JSON else code_report.as_sarif
        _write(make(scan, shown, rulebook.rules, scanner.revision), output)
    if not quiet:
        at = out_console() if output is not None or report is Format.TEXT else err_console()
        code_report.show_summary(at, scan, len(shown), scanner.revision)
    _exit(scan, fail_on, allow_unjudged=allow_unjudged)


def load_rulebook(settings: Settings) -> Rulebook:
    """Returns the rules that the settings ask for, checked.

    Raises:
        ConfigurationError: If a rule of the user's is wrong; the message names file and rule.
    """
    from guardrail.shield.rulebook import RULES, Rulebook
    from guardrail.shield.validate import load_rules

    if not settings.rules:
        return Rulebook.load(RULES)
    return load_rules(Path(settings.rules), semgrep=settings.semgrep)


def read_language(name: str) -> str:
    """Returns the canonical name of a language.

    Raises:
        InvalidInput: If it is none.
    """
    from guardrail.extraction import LANGUAGES, canonical_language

    language = canonical_language(name)
    if language not in LANGUAGES:
        raise InvalidInput(f"{name!r} is no language; known: {', '.join(sorted(LANGUAGES))}")
    return language


def _require_readable(paths: list[str], language: str | None) -> None:
    for path in paths:
        if path != "-" and not os.path.lexists(path):
            raise InvalidInput(f"there is no file or folder {path}")
    if paths.count("-") > 1:
        raise InvalidInput("standard input can be read once: name - once")
    if language is not None and "-" not in paths:
        raise InvalidInput("--language is of standard input, and - is not among the paths")


def _find(paths: list[str], language: str | None, languages: frozenset[str]) -> Iterator[SourceFile | NotScanned]:
    from guardrail.shield.files import find_files, read_stdin

    if "-" in paths:
        yield from read_stdin(sys.stdin.buffer.read(), language, languages)
    yield from find_files((Path(path) for path in paths if path != "-"), languages)


def _counted(found: Iterator[SourceFile | NotScanned], status: Status) -> Iterator[SourceFile | NotScanned]:
    """Tells a waiting person how far the scan has come."""
    for count, each in enumerate(found, 1):
        status.update(f"scanning: {count:,} files read")
        yield each


def _write_text(scan: FileScan, shown: list[FileFinding], output: Path | None) -> None:
    from guardrail.cli import code_report

    if output is None:
        code_report.show_findings(out_console(), shown, scan.failed)
        return
    page = StringIO()
    code_report.show_findings(Console(file=page, highlight=False, color_system=None), shown, scan.failed)
    _write(page.getvalue(), output)


def _write(text: str, output: Path | None) -> None:
    """Writes a report; a file under the final name is always a whole one."""
    data = text.encode("utf-8", errors="replace")
    if output is None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    target = Path(os.path.realpath(output))
    if target.exists() and not target.is_file():
        target.write_bytes(data)  # a pipe or a device
        return
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        os.replace(name, target)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise


def _exit(scan: FileScan, fail_on: FailOn, *, allow_unjudged: bool) -> None:
    severe = sum(_RANK[each.finding.severity.value] >= _RANK[fail_on.value] for each in scan.findings)
    if severe:
        raise typer.Exit(ExitCode.BLOCKED)
    if scan.failed and not allow_unjudged:
        say_error(f"{len(scan.failed):,} could not be scanned to their end; --allow-unjudged accepts that")
        raise typer.Exit(ExitCode.UNJUDGED)
    if not scan.files:
        say("nothing was scanned: no file is in a language with rules", style="yellow")
        if not allow_unjudged:
            raise typer.Exit(ExitCode.UNJUDGED)

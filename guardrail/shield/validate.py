"""Check rules before they are used: semgrep's own reading of each rule, in each of its languages.

A pattern that semgrep cannot read ends the run of its whole language, and semgrep reads a pattern in the first language
of its rule alone. So each rule is given to it once a language, all in one run over an empty file, which takes 0.2 s:
its report then names every rule that is wrong. A misspelt key it passes over in silence; that is found here.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from guardrail.errors import ConfigurationError, ScanError
from guardrail.shield.formulas import fault_in
from guardrail.shield.install import find_semgrep
from guardrail.shield.needs import expressions_of
from guardrail.shield.oneshot import make_environment
from guardrail.shield.rulebook import RULES, Rule, Rulebook

__all__ = ["Fault", "find_faults", "load_rules"]

_LIMIT_S = 120
_KEYS = (
    *("id", "languages", "severity", "message", "metadata", "mode", "options", "paths", "fix", "fix-regex"),
    *("pattern", "patterns", "pattern-either", "pattern-regex", "pattern-sources", "pattern-sinks"),
    *("pattern-sanitizers", "pattern-propagators", "match", "taint", "min-version", "max-version", "category"),
)


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a rule.

    Attributes:
        rule: The rule.
        detail: What is wrong with it.
    """

    rule: Rule
    detail: str

    def __str__(self) -> str:
        return f"{self.rule.path}: rule {self.rule.id}: {self.detail}"


def load_rules(folder: Path, *, semgrep: str | None = None) -> Rulebook:
    """Reads the package's rules and a user's; one of the user's takes the place of the package's of the same id.

    Args:
        folder: Holds ``<language>/*.yaml``.
        semgrep: As ``SemgrepScanner`` takes it.

    Raises:
        ConfigurationError: If the folder holds no rules, a file that would not be read, or a rule that is wrong; the
            message names file and rule.
        MissingExtra: If semgrep is not installed.
    """
    rules = read_folder(folder).rules.values()
    faults = find_faults(rules, find_semgrep(semgrep))
    if faults:
        more = f"; and {len(faults) - 1} more: guardrail rules test {folder}" if len(faults) > 1 else ""
        raise ConfigurationError(f"{faults[0]}{more}")
    return Rulebook.load(RULES, folder)


def read_folder(folder: Path) -> Rulebook:
    """Reads a user's rules alone.

    Raises:
        ConfigurationError: If it holds none, one that cannot be read, or a file where no rules are looked for.
    """
    if not folder.is_dir():
        raise ConfigurationError(f"expected a folder of rules, got {folder}, which is none")
    for path in sorted([*folder.rglob("*.yaml"), *folder.rglob("*.yml")]):
        if path.suffix == ".yml" or len(path.relative_to(folder).parts) != 2:
            raise ConfigurationError(f"{path} would not be read: rules stand in {folder}/<language>/*.yaml")
    return Rulebook.load(folder)


def find_faults(rules: Iterable[Rule], core: Path) -> list[Fault]:
    """Says which rules semgrep cannot use, in the order they are given.

    Args:
        rules: Any number.
        core: ``semgrep-core``, which is ``osemgrep`` when called so.

    Raises:
        ScanError: If semgrep does not say.
    """
    faults: list[Fault] = []
    by_name: dict[str, tuple[Rule, str]] = {}
    for i, rule in enumerate(rules):
        faults += [Fault(rule, detail) for detail in (*_misspelt(rule), *_unfit(rule))]
        by_name.update({f"r{i}.{language}": (rule, language) for language in sorted(rule.languages)})
    sources = [{**rule.source, "id": name, "languages": [language]} for name, (rule, language) in by_name.items()]
    for error in _ask(sources, core) if sources else ():
        known = by_name.get(str(error.get("rule_id")))
        if known is None:
            raise ScanError(f"semgrep cannot check the rules: {str(error.get('type'))[:60]}")
        rule, language = known
        lines = str(error.get("message", "")).strip().split("\n")
        # "Rule parse error in rule r1.go:", what is wrong, and the pattern between two lines of dashes
        detail = lines[1].strip() if len(lines) > 1 else lines[0]
        faults.append(Fault(rule, f"semgrep cannot use it for {language}: {detail}"))
    order = {rule.id: i for i, (rule, _) in enumerate(by_name.values())}
    return sorted(faults, key=lambda fault: order[fault.rule.id])


def _misspelt(rule: Rule) -> Iterable[str]:
    for key in map(str, rule.source):
        near = get_close_matches(key, _KEYS, n=1, cutoff=0.8)
        if key not in _KEYS and (near or key.startswith("pat")):
            yield f"unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else "")


def _unfit(rule: Rule) -> Iterable[str]:
    """What the gate could not use: a rule that it wrongly leaves out finds nothing, and says nothing."""
    metadata = rule.source["metadata"]
    needs, matches = metadata.get("needs", []), metadata.get("needs-match", [])
    if not isinstance(needs, list) or not all(isinstance(texts, list) and texts for texts in needs):
        yield "expected metadata.needs to be lists of texts, [[one, or another], [and one of these]]"
    if not isinstance(matches, list) or not all(isinstance(expression, str) for expression in matches):
        yield "expected metadata.needs-match to be a list of expressions"
        return
    for written, expression in zip(matches, expressions_of(rule.source), strict=True):
        if fault := fault_in(expression):
            yield f"RE2 cannot use metadata.needs-match {written!r}: {fault}"


def _ask(sources: list[dict[str, object]], core: Path) -> list[dict[str, object]]:
    command = [
        *("osemgrep", "scan", "--experimental", "--json", "--quiet", "--metrics=off", "--disable-version-check"),
        *("--no-git-ignore", "--novcs", "--no-rewrite-rule-ids", "-j", "1", "--config", "rules.json", "code"),
    ]
    with tempfile.TemporaryDirectory(prefix="guardrail-rules-") as name:
        folder = Path(name)
        (folder / "code").mkdir()
        (folder / "home").mkdir()
        (folder / "code" / "empty.txt").write_bytes(b"")
        (folder / "rules.json").write_text(json.dumps({"rules": sources}), "utf-8")
        try:
            done = subprocess.run(  # noqa: S603  # fixed arguments; the rules travel in a file
                command,
                executable=core,
                cwd=folder,
                env=make_environment(folder / "home"),
                capture_output=True,
                stdin=subprocess.DEVNULL,
                timeout=_LIMIT_S,
                check=False,
            )
            report = json.loads(done.stdout)
            errors: list[dict[str, object]] = report["errors"]
        except subprocess.TimeoutExpired as exc:
            raise ScanError(f"semgrep did not check the rules within {_LIMIT_S} s") from exc
        except OSError as exc:
            raise ScanError(f"expected to run {core}, got {type(exc).__name__}: {exc.strerror}") from exc
        except (ValueError, KeyError, TypeError) as exc:
            raise ScanError(f"semgrep ended with status {done.returncode} and did not check the rules") from exc
    if done.returncode != 0 and not errors:
        raise ScanError(f"semgrep ended with status {done.returncode} and did not say which rule is wrong")
    return errors

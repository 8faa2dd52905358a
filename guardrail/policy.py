"""Verdicts in, decision out: a pure function, read from a versioned YAML file.

A policy answers, for each rail: which action does a hazard category ask for and from which score on; which action does
a code finding of each severity ask for; and what happens when nobody could judge. The strictest reason wins. What a
file does not say is denied: a category without a rule takes the rail's ``unsafe`` rule, whose default is ``block`` at
0.5.

A category's risk is its score, or the classifier's probability of "unsafe" where the classifier names that category in
its answer. The ``unsafe`` rule itself decides where the classifier says "unsafe" and names no category.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import date, datetime, timezone
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from guardrail.errors import PolicyError
from guardrail.suppression import Suppression
from guardrail.taxonomy import HazardCategory
from guardrail.verdict import Action, Confidence, Decision, Outcome, Rail, Reason, ReasonKind, Severity, Verdict

__all__ = ["PRESETS", "Policy", "RailPolicy", "Rule", "load_policy", "parse_policy", "policy_schema"]

PRESETS = ("strict", "default", "monitor")

_SAFE = Outcome.SAFE  # a name of the module is found in a tenth of the time, and this is asked for every text

_DEFAULT_BLOCK_MESSAGE = "I can't help with that."


@dataclass(frozen=True, slots=True)
class Rule:
    """What to do from which score on.

    Attributes:
        action: The action asked for.
        threshold: Least score, 0..1, at which it is asked for.
    """

    action: Action = Action.BLOCK
    threshold: float = 0.5


@dataclass(frozen=True, slots=True)
class RailPolicy:
    """The rules of one rail.

    Attributes:
        unsafe: For "unsafe" with no category named, and for every category without a rule of its own.
        categories: Rules of single categories.
        findings: Action for code findings of each severity; by confidence where they differ.
    """

    unsafe: Rule = Rule()
    categories: Mapping[HazardCategory, Rule] = field(default_factory=dict)
    findings: Mapping[Severity, Action | Mapping[Confidence, Action]] = field(default_factory=dict)
    # The least score that could be a reason: most texts have none, and are decided by a look at their highest score.
    _least: float = field(init=False, repr=False, compare=False, default=0.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_least", min(self.rule(category).threshold for category in HazardCategory))

    def rule(self, category: HazardCategory) -> Rule:
        """Returns the category's own rule, or ``unsafe``."""
        return self.categories.get(category, self.unsafe)

    @property
    def scans_code(self) -> bool:
        """Whether any finding could change a decision."""
        return any(self.treatment(s, c) is not Action.ALLOW for s in self.findings for c in Confidence)

    def treatment(self, severity: Severity, confidence: Confidence) -> Action:
        """Returns the action for a finding; what is not said is blocked."""
        treatment = self.findings.get(severity, Action.BLOCK)
        return treatment if isinstance(treatment, Action) else treatment.get(confidence, Action.BLOCK)

    def has_nothing_against(self, verdict: Verdict) -> bool:
        """Whether a verdict is plainly no reason for anything; where this says no, the rules must be asked."""
        if verdict.outcome is not _SAFE or verdict.categories or verdict.findings or verdict.unscanned:
            return False
        unsafe = verdict.unsafe_probability
        if unsafe is not None and not unsafe < self.unsafe.threshold:
            return False
        # Written so that a score which is no number, and compares with nothing, is never passed over here.
        return not verdict.scores or max(verdict.scores.values()) < self._least


_FINDINGS: Mapping[Rail, Mapping[Severity, Action]] = MappingProxyType(
    {
        # A user may paste insecure code to have it mended; the answer is what must be sound.
        Rail.PROMPT: dict.fromkeys(Severity, Action.ALLOW),
        Rail.RESPONSE: {Severity.INFO: Action.ALLOW, Severity.WARNING: Action.FLAG, Severity.ERROR: Action.BLOCK},
    }
)


@dataclass(frozen=True, slots=True)
class Policy:
    """What verdicts mean.

    Attributes:
        name: For people; part of every decision.
        rails: Rules of both rails.
        suppressions: Findings that ask for nothing.
        on_unverified: Action where a classifier gave no answer.
        on_unscanned_code: Action for code in a language without rules; never stricter than ``on_unverified``.
        max_attempts: Generations in one guarded exchange, at least 1.
        deadline_s: Total time of one check or one guarded exchange, in seconds.
        block_message: What the user sees in place of a blocked answer.
    """

    name: str = "deny"
    rails: Mapping[Rail, RailPolicy] = field(
        default_factory=lambda: {rail: _RailSection().to_rail(rail) for rail in Rail}
    )
    suppressions: tuple[Suppression, ...] = ()
    on_unverified: Action = Action.BLOCK
    on_unscanned_code: Action = Action.BLOCK
    max_attempts: int = 3
    deadline_s: float = 30.0
    block_message: str = _DEFAULT_BLOCK_MESSAGE
    hash: str = field(init=False, default="")

    def __post_init__(self) -> None:
        values = asdict(self, dict_factory=_plain)
        canonical = json.dumps(values, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
        object.__setattr__(self, "hash", hashlib.sha256(canonical.encode()).hexdigest()[:16])

    def with_max_attempts(self, max_attempts: int) -> Policy:
        """Returns this policy with another number of attempts, and the hash that goes with it."""
        return replace(self, max_attempts=max_attempts)

    def decide(self, rail: Rail, verdicts: Sequence[Verdict], *, path: str = "", today: date | None = None) -> Decision:
        """Turns verdicts into a decision.

        Args:
            rail: Which rail was judged.
            verdicts: What each classifier concluded; with none, nothing was verified.
            path: The conversation's path, for suppressions that name one.
            today: For suppressions that end; None means the day it is, in UTC.
        """
        rules = self.rails[rail]
        telling = [verdict for verdict in verdicts if not rules.has_nothing_against(verdict)]
        if not telling and verdicts:
            return Decision(Action.ALLOW, rail, tuple(verdicts), (), self.name, self.hash)
        day = today or datetime.now(timezone.utc).date()
        reasons = [reason for verdict in telling for reason in self._reasons(rail, verdict, path, day)]
        if not verdicts:
            reasons.append(Reason(self.on_unverified, ReasonKind.UNVERIFIED, "no classifier was asked"))
        if rail is Rail.PROMPT:  # A prompt cannot be generated again.
            reasons = [_without_retry(reason) for reason in reasons]
        reasons.sort(key=lambda reason: -reason.action.strictness)
        action = reasons[0].action if reasons else Action.ALLOW
        return Decision(action, rail, tuple(verdicts), tuple(reasons), self.name, self.hash)

    def _reasons(self, rail: Rail, verdict: Verdict, path: str, today: date) -> Iterator[Reason]:
        rules = self.rails[rail]
        if verdict.unscanned:
            if rules.scans_code:
                languages = ", ".join(verdict.unscanned)
                yield Reason(self.on_unscanned_code, ReasonKind.UNSCANNED, f"code not examined: {languages}")
        elif verdict.outcome is Outcome.UNVERIFIED:
            yield Reason(self.on_unverified, ReasonKind.UNVERIFIED, verdict.detail or "no answer")
        for finding in verdict.findings:
            action, note = rules.treatment(finding.severity, finding.confidence), ""
            if any(suppression.covers(finding, path=path, today=today) for suppression in self.suppressions):
                action, note = Action.ALLOW, " (suppressed)"
            yield Reason(action, ReasonKind.FINDING, f"{finding.cwe} {finding.rule_id}{note}")
        unsafe = verdict.unsafe_probability
        reached = False
        for category in HazardCategory:
            score = verdict.scores.get(category, 0.0)
            risk = max(score, unsafe or 0.0) if category in verdict.categories else score
            rule = rules.rule(category)
            if risk > 0.0 and risk >= rule.threshold:
                reached = True
                yield Reason(rule.action, ReasonKind.HAZARD, category.value, risk, rule.threshold)
        if reached or verdict.categories:
            return
        if unsafe is None:
            if verdict.outcome is Outcome.UNSAFE and not verdict.findings:
                yield Reason(rules.unsafe.action, ReasonKind.UNSAFE, "unsafe")
        elif unsafe >= rules.unsafe.threshold:
            yield Reason(rules.unsafe.action, ReasonKind.UNSAFE, "unsafe", unsafe, rules.unsafe.threshold)


def _without_retry(reason: Reason) -> Reason:
    if reason.action is not Action.RETRY:
        return reason
    return Reason(Action.BLOCK, reason.kind, reason.subject, reason.score, reason.threshold)


def _plain(items: list[tuple[str, Any]]) -> dict[str, Any]:
    return {key: _plain_value(value) for key, value in items if key != "hash" and not key.startswith("_")}


def _plain_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {getattr(key, "value", key): _plain_value(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain_value(item) for item in value]
    return value.isoformat() if isinstance(value, date) else getattr(value, "value", value)


# The file format. Pydantic lives here alone and is turned into values at once.


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=False, frozen=True)


_Threshold = Annotated[float, Field(gt=0, le=1, description="Least score, 0..1, at which the action is taken.")]


class _RuleSection(_Section):
    """What to do from which score on; a threshold left out is that of `unsafe`."""

    action: Action | None = Field(default=None, description="Left out: the action of `unsafe`.")
    threshold: _Threshold | None = None


class _ConfidencesSection(_Section):
    """Action for findings of each confidence; one left out takes the strictest of those that are given."""

    low: Action | None = None
    medium: Action | None = None
    high: Action | None = None

    def to_actions(self) -> dict[Confidence, Action] | None:
        given = {c: action for c in Confidence if (action := getattr(self, c.value)) is not None}
        strictest = max(given.values(), key=lambda action: action.strictness, default=None)
        return None if strictest is None else {c: given.get(c, strictest) for c in Confidence}


def _read_treatment(value: Any) -> Any:
    """A word stands for all three confidences."""
    if not isinstance(value, str):
        return value
    if value not in list(Action):
        raise ValueError(f"expected one of {', '.join(action.value for action in Action)}, or one for each confidence")
    return {confidence.value: value for confidence in Confidence}


_Treatment = Annotated[
    _ConfidencesSection, BeforeValidator(_read_treatment, json_schema_input_type=Action | _ConfidencesSection)
]


class _FindingsSection(_Section):
    """Action for code findings of each severity; left out: prompt allow, response allow/flag/block."""

    info: _Treatment = Field(default_factory=_ConfidencesSection)
    warning: _Treatment = Field(default_factory=_ConfidencesSection)
    error: _Treatment = Field(default_factory=_ConfidencesSection)


class _SuppressionSection(_Section):
    """Findings that ask for nothing. All that is given has to fit; `rule` or `cwe` is needed."""

    rule: str | None = Field(default=None, min_length=1, description="A rule id; * and ? as in file names.")
    cwe: str | None = Field(default=None, pattern=r"^CWE-\d+$", description="A weakness, e.g. CWE-327.")
    path: str | None = Field(default=None, min_length=1, description="The request's path; * and ? as in file names.")
    until: date | None = Field(default=None, description="The last day on which it holds, e.g. 2027-01-31.")
    reason: str = Field(default="", max_length=1000)

    @model_validator(mode="after")
    def _has_subject(self) -> _SuppressionSection:
        if self.rule is None and self.cwe is None:
            raise ValueError("give a rule or a cwe")
        return self


class _RailSection(_Section):
    unsafe: _RuleSection = Field(
        default_factory=_RuleSection, description="For every category without a rule; left out: block at 0.5."
    )
    categories: dict[HazardCategory, _RuleSection] = Field(default_factory=dict, description="Rules of categories.")
    findings: _FindingsSection = Field(default_factory=_FindingsSection)

    def to_rail(self, rail: Rail) -> RailPolicy:
        unsafe = Rule(
            self.unsafe.action or Action.BLOCK, 0.5 if self.unsafe.threshold is None else self.unsafe.threshold
        )
        categories = {
            category: Rule(
                section.action or unsafe.action, unsafe.threshold if section.threshold is None else section.threshold
            )
            for category, section in self.categories.items()
        }
        findings = {
            severity: getattr(self.findings, severity.value).to_actions()
            or dict.fromkeys(Confidence, _FINDINGS[rail][severity])
            for severity in Severity
        }
        return RailPolicy(unsafe, categories, findings)


class _RailsSection(_Section):
    prompt: _RailSection = Field(default_factory=_RailSection, description="The check of what the user wrote.")
    response: _RailSection = Field(default_factory=_RailSection, description="The check of what the assistant wrote.")


class _PolicyFile(_Section):
    """A guardrail policy."""

    version: Literal[1] = Field(description="Version of this format.")
    name: str = Field(default="custom", min_length=1, max_length=100)
    rails: _RailsSection = Field(default_factory=_RailsSection)
    suppressions: list[_SuppressionSection] = Field(default_factory=list, description="Findings that are accepted.")
    on_unverified: Action = Field(default=Action.BLOCK, description="Action where a classifier gave no answer.")
    on_unscanned_code: Action | None = Field(
        default=None, description="Action for code in a language without rules; left out: that of `on_unverified`."
    )
    max_attempts: int = Field(default=3, ge=1, le=20, description="Generations in one guarded exchange.")
    deadline_s: float = Field(default=30.0, gt=0, le=3600, description="Seconds for one check or exchange.")
    block_message: str = Field(default=_DEFAULT_BLOCK_MESSAGE, min_length=1, max_length=4000)

    def to_policy(self) -> Policy:
        sections = {Rail.PROMPT: self.rails.prompt, Rail.RESPONSE: self.rails.response}
        return Policy(
            name=self.name,
            rails={rail: section.to_rail(rail) for rail, section in sections.items()},
            suppressions=tuple(Suppression(**section.model_dump()) for section in self.suppressions),
            on_unverified=self.on_unverified,
            on_unscanned_code=self.on_unscanned_code or self.on_unverified,
            max_attempts=self.max_attempts,
            deadline_s=self.deadline_s,
            block_message=self.block_message,
        )


def policy_schema() -> dict[str, Any]:
    """Returns the JSON Schema of a policy file, as shipped in ``guardrail/policies/policy.schema.json``."""
    schema = _PolicyFile.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "guardrail policy"}


def load_policy(name_or_path: str | Path) -> Policy:
    """Reads a preset by name, or a policy file.

    Args:
        name_or_path: ``strict``, ``default``, ``monitor``, or the path of a YAML file.

    Raises:
        PolicyError: If there is no such file or it is not a policy.
    """
    if str(name_or_path) in PRESETS:
        name = f"{name_or_path}.yaml"
        return parse_policy((resources.files("guardrail") / "policies" / name).read_text("utf-8"), origin=name)
    path = Path(name_or_path)
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as exc:
        raise PolicyError(f"{path}: not UTF-8 at byte {exc.start}; save the policy as UTF-8") from exc
    except OSError as exc:
        presets = ", ".join(PRESETS)
        raise PolicyError(f"cannot read policy {path}: {exc.strerror}; give a YAML file or one of {presets}") from exc
    return parse_policy(text, origin=str(path))


def parse_policy(text: str, *, origin: str = "policy") -> Policy:
    """Reads a policy from YAML.

    Args:
        text: The YAML document.
        origin: Where it comes from, for error messages.

    Raises:
        PolicyError: If it is not a policy; the message gives line, what is wrong, and the nearest known key.
    """
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            raise PolicyError(f"{origin}: the file is empty; a policy starts with 'version: 1'")
        problems = list(_duplicate_keys(root, origin))
        values = loader.construct_document(root)
    except yaml.YAMLError as exc:
        raise PolicyError(_yaml_problem(exc, origin)) from exc
    finally:
        loader.dispose()
    if not isinstance(values, dict):
        raise PolicyError(f"{origin}:1: expected a mapping that starts with 'version: 1', got {type(values).__name__}")
    try:
        file = _PolicyFile.model_validate(values)
        problems += _retry_on_prompt(file, root, origin)
        if (file.on_unscanned_code or file.on_unverified).strictness > file.on_unverified.strictness:
            problems.append(
                f"{origin}:{_line(root, ('on_unscanned_code',))}: on_unscanned_code: may not be stricter than "
                f"on_unverified, which is {file.on_unverified.value}"
            )
    except ValidationError as exc:
        problems += [_problem(error, root, origin) for error in exc.errors()]
    if problems:
        raise PolicyError("\n".join(problems))
    return file.to_policy()


def _yaml_problem(exc: yaml.YAMLError, origin: str) -> str:
    mark = getattr(exc, "problem_mark", None)
    where = f"{origin}:{mark.line + 1}" if mark is not None else origin
    return f"{where}: not readable as YAML: {getattr(exc, 'problem', None) or 'syntax error'}"


def _duplicate_keys(node: yaml.Node, origin: str) -> Iterator[str]:
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    yield f"{origin}:{key.start_mark.line + 1}: '{key.value}' is given twice; keep one"
                seen.add(key.value)
            yield from _duplicate_keys(value, origin)


def _retry_on_prompt(file: _PolicyFile, root: yaml.Node, origin: str) -> list[str]:
    """A prompt cannot be generated again, so asking for it is a mistake to be told of."""
    prompt = file.rails.prompt
    places: list[tuple[str, ...]] = [("unsafe", "action")] if prompt.unsafe.action is Action.RETRY else []
    places += [
        ("categories", c.value, "action") for c, rule in prompt.categories.items() if rule.action is Action.RETRY
    ]
    places += [
        ("findings", severity.value)
        for severity in Severity
        if Action.RETRY in (getattr(prompt.findings, severity.value).to_actions() or {}).values()
    ]
    return [
        f"{origin}:{_line(root, ('rails', 'prompt', *place))}: rails.prompt.{'.'.join(place)}: "
        "a prompt cannot be retried; use allow, flag or block"
        for place in places
    ]


def _problem(error: Any, root: yaml.Node, origin: str) -> str:
    location = tuple(str(part) for part in error["loc"] if part != "[key]")
    where = f"{origin}:{_line(root, location)}: {'.'.join(location)}"
    if error["type"] == "extra_forbidden":
        known = _known_keys(location[:-1])
        return f"{where}: unknown key; {_nearest(location[-1], known)}"
    if error["loc"][-1] == "[key]":
        return f"{where}: unknown hazard category; {_nearest(location[-1], [c.value for c in HazardCategory])}"
    if error["type"] == "missing":
        return f"{origin}:1: '{location[-1]}' is missing; a policy starts with 'version: 1'"
    return f"{where}: {error['msg'][0].lower()}{error['msg'][1:]}, got {error['input']!r}"


def _known_keys(path: tuple[str, ...]) -> list[str]:
    """The keys that the format knows at a place in the file."""
    model: type[BaseModel] = _PolicyFile
    parts = iter(path)
    for part in parts:
        if part in ("categories", "suppressions"):
            next(parts, None)
            model = _RuleSection if part == "categories" else _SuppressionSection
        else:
            annotation = model.model_fields[part].annotation
            assert isinstance(annotation, type)  # every nested section is a model
            model = annotation
    return list(model.model_fields)


def _nearest(given: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(given, known, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"known here: {', '.join(known)}"


def _line(node: yaml.Node, path: Sequence[str]) -> int:
    """The line, from 1, of the key that a path of keys leads to, or of its nearest ancestor."""
    line = int(node.start_mark.line) + 1
    for part in path:
        if isinstance(node, yaml.SequenceNode) and part.isdigit() and int(part) < len(node.value):
            node = node.value[int(part)]
            line = int(node.start_mark.line) + 1
            continue
        if not isinstance(node, yaml.MappingNode):
            break
        for key, value in node.value:
            if key.value == part:
                line, node = int(key.start_mark.line) + 1, value
                break
        else:
            break
    return line

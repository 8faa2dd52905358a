"""The values that flow through guardrail: frozen, and free of behaviour that needs a model.

``Conversation`` -> classifiers -> ``Verdict`` -> policy -> ``Decision``. Offsets are Unicode code points into the
judged message (Python string indices); scores and probabilities are in 0..1 and higher is riskier; times are
milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from guardrail.errors import InvalidInput
from guardrail.taxonomy import HazardCategory

__all__ = [
    "Action",
    "Assessment",
    "Attempt",
    "CodeBlock",
    "Confidence",
    "Conversation",
    "Decision",
    "Exchange",
    "Finding",
    "GuardPrompt",
    "Message",
    "Outcome",
    "PromptSegment",
    "Rail",
    "Reason",
    "ReasonKind",
    "Role",
    "Severity",
    "Source",
    "Span",
    "Timing",
    "Verdict",
    "riskiest",
    "unverified",
]


class Role(str, Enum):
    """Who wrote a message."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


class Rail(str, Enum):
    """The stage at which a check stands."""

    PROMPT = "prompt"
    RESPONSE = "response"


# Looked up for every message: a member of an Enum costs five times as much as a name of the module.
_RAILS = {Role.USER: Rail.PROMPT, Role.ASSISTANT: Rail.RESPONSE}
_JUDGED = frozenset(_RAILS)


class Outcome(str, Enum):
    """What a classifier concluded. ``UNVERIFIED`` means that no answer was obtained; it is never safe."""

    SAFE = "safe"
    UNSAFE = "unsafe"
    UNVERIFIED = "unverified"


class Severity(str, Enum):
    """How much a finding matters, in semgrep's words."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Confidence(str, Enum):
    """How sure a finding is, in semgrep's words."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


class Action(str, Enum):
    """What the policy says to do; from mildest to strictest."""

    ALLOW = "allow"
    FLAG = "flag"
    RETRY = "retry"
    BLOCK = "block"

    @property
    def strictness(self) -> int:
        """0 for ``ALLOW`` up to 3 for ``BLOCK``."""
        return _STRICTNESS[self]

    @property
    def releases(self) -> bool:
        """Whether the text may be shown: true for ``ALLOW`` and ``FLAG``."""
        return self in (Action.ALLOW, Action.FLAG)


_STRICTNESS = {action: strictness for strictness, action in enumerate(Action)}


@dataclass(frozen=True, slots=True)
class Span:
    """A half-open range of code points, ``start <= end``."""

    start: int
    end: int

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end:
            raise ValueError(f"expected 0 <= start <= end, got {self.start}..{self.end}")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages in order; the last one is judged, those before it are context.

    Attributes:
        messages: At least one; the last is from the user or the assistant.
        path: Where the exchange belongs, in the caller's words: a file, a route. The policy may name it;
            it is not judged.
    """

    messages: tuple[Message, ...]
    path: str = ""

    def __post_init__(self) -> None:
        if not self.messages:
            raise InvalidInput("expected at least one message, got none")
        if self.messages[-1].role not in _JUDGED:
            raise InvalidInput(
                f"the last message is judged and must be from user or assistant, got {self.last.role.value}"
            )

    @property
    def last(self) -> Message:
        """The message that is judged."""
        return self.messages[-1]

    @property
    def rail(self) -> Rail:
        """``PROMPT`` where the user spoke last, ``RESPONSE`` where the assistant did."""
        return _RAILS[self.messages[-1].role]

    @classmethod
    def of(cls, text: str, *, role: Role = Role.USER, prompt: str | None = None) -> Conversation:
        """Makes a conversation of one message, after the user message that it answers if one is given.

        Args:
            text: The message to judge.
            role: Who wrote it.
            prompt: The user message before it; only an assistant's message can have one.

        Raises:
            InvalidInput: If a prompt is given for a user's message.
        """
        if prompt is None:
            return cls((Message(role, text),))
        if role is not Role.ASSISTANT:
            raise InvalidInput("a prompt is the user message before an assistant message; it needs role=assistant")
        return cls((Message(Role.USER, prompt), Message(role, text)))

    def then(self, role: Role, content: str) -> Conversation:
        """Returns this conversation with one more message at its end."""
        return Conversation((*self.messages, Message(role, content)), self.path)


@dataclass(frozen=True, slots=True)
class CodeBlock:
    """Code found in a message.

    Attributes:
        code: The code as a compiler would read it: fence, indentation and quote marks of the message removed.
        language: Canonical lower-case name (``"python"``), or None where the message does not say.
        span: Where the code stands in the message, fences excluded.
        line_starts: For each line of ``code``, the offset in the message of that line's first character.
    """

    code: str
    language: str | None
    span: Span
    line_starts: tuple[int, ...]

    def message_offset(self, line: int, column: int) -> int:
        """Returns the offset in the message of a place in the code; line and column count from 1."""
        index = min(max(line, 1), len(self.line_starts)) - 1
        return min(self.line_starts[index] + max(column, 1) - 1, self.span.end)


@dataclass(frozen=True, slots=True)
class Finding:
    """One rule hit in a code block.

    Attributes:
        rule_id: The rule, e.g. ``"python.sql-injection"``.
        cwe: The weakness, e.g. ``"CWE-89"``.
        severity: How much it matters.
        span: Where it stands in the message.
        line: Line in the code block, from 1.
        column: Column in the code block, from 1.
        language: Language of the code block.
        message: What is wrong, for the reader.
        confidence: How sure it is.
        fix: What to do instead, in one line for the reader or the generator; may be empty.
    """

    rule_id: str
    cwe: str
    severity: Severity
    span: Span
    line: int
    column: int
    language: str
    message: str
    confidence: Confidence = Confidence.MEDIUM
    fix: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Returns the finding as JSON values."""
        return {
            "rule_id": self.rule_id,
            "cwe": self.cwe,
            "severity": self.severity.value,
            "confidence": self.confidence.value,
            "start": self.span.start,
            "end": self.span.end,
            "line": self.line,
            "column": self.column,
            "language": self.language,
            "message": self.message,
            "fix": self.fix,
        }


@dataclass(frozen=True, slots=True)
class Source:
    """Where a verdict came from.

    Attributes:
        model: Model or rule-set id, e.g. ``"meta-llama/Meta-Llama-Guard-2-8B"``.
        revision: Revision of the weights or rules, ``""`` where there is none.
        template_hash: Hash of the prompt template, ``""`` where there is none.
    """

    model: str
    revision: str = ""
    template_hash: str = ""

    def __str__(self) -> str:
        return f"{self.model}@{self.revision}" if self.revision else self.model


@dataclass(frozen=True, slots=True)
class Timing:
    """How long a verdict took: waiting for its turn, and being computed, in milliseconds."""

    queue_ms: float = 0.0
    compute_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one classifier concluded about one message.

    Attributes:
        outcome: Safe, unsafe, or unverified when no answer was obtained.
        source: The model or rules that answered, with revision and template hash.
        scores: Hazard category -> risk in 0..1; higher is riskier. Empty for a code verdict.
        categories: The categories the classifier itself names, riskiest first.
        unsafe_probability: P("unsafe") against P("safe") at the first answer token, 0..1; None for a code verdict.
        findings: Rule hits in code blocks, in order of their place in the message.
        unscanned: Languages of code blocks that no rule could examine, each once, sorted. They keep a verdict from
            being safe; where nothing else does, the policy's ``on_unscanned_code`` counts, not ``on_unverified``.
        detail: Why there is no answer (UNVERIFIED), or what was left out of the context; never text of the message.
        timing: Not part of equality: two verdicts are equal when they conclude the same.
    """

    outcome: Outcome
    source: Source
    scores: Mapping[HazardCategory, float] = field(default_factory=dict)
    categories: tuple[HazardCategory, ...] = ()
    unsafe_probability: float | None = None
    findings: tuple[Finding, ...] = ()
    unscanned: tuple[str, ...] = ()
    detail: str = ""
    timing: Timing = field(default=Timing(), compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Returns the verdict as JSON values, without its timing."""
        return {
            "outcome": self.outcome.value,
            "model": self.source.model,
            "revision": self.source.revision,
            "template_hash": self.source.template_hash,
            "unsafe_probability": self.unsafe_probability,
            "scores": {category.value: score for category, score in self.scores.items()},
            "categories": [category.value for category in self.categories],
            "findings": [finding.to_dict() for finding in self.findings],
            "unscanned": list(self.unscanned),
            "detail": self.detail,
        }


def unverified(source: Source, detail: str, *, timing: Timing | None = None) -> Verdict:
    """Makes the verdict of a classifier that gave no answer.

    Args:
        source: The classifier that was asked.
        detail: Why there is no answer; never text of the message.
        timing: How long it took to find out.
    """
    return Verdict(Outcome.UNVERIFIED, source, detail=detail, timing=timing or Timing())


class ReasonKind(str, Enum):
    """What sort of cause a reason is.

    ``UNSAFE`` is a text that a classifier finds unsafe without a category that reaches its threshold; ``UNSCANNED`` is
    code that no rule could examine.
    """

    HAZARD = "hazard"
    UNSAFE = "unsafe"
    FINDING = "finding"
    UNSCANNED = "unscanned"
    UNVERIFIED = "unverified"


@dataclass(frozen=True, slots=True)
class Reason:
    """One cause of a decision.

    Attributes:
        action: What this cause asks for.
        kind: What sort of cause it is.
        subject: The category, ``"unsafe"``, ``"CWE-89 python.sql-injection"``, the languages of the code, or why there
            was no answer.
        score: The score that reached the threshold, 0..1; None where there is no score.
        threshold: The policy's threshold; None where there is none.
    """

    action: Action
    kind: ReasonKind
    subject: str
    score: float | None = None
    threshold: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns the reason as JSON values."""
        return {
            "action": self.action.value,
            "kind": self.kind.value,
            "subject": self.subject,
            "score": self.score,
            "threshold": self.threshold,
        }


@dataclass(frozen=True, slots=True)
class Decision:
    """What the policy makes of the verdicts on one message.

    Attributes:
        action: The strictest action any reason asks for; ``ALLOW`` where there is none.
        rail: Whether a prompt or a response was judged.
        verdicts: One for each classifier that was asked.
        reasons: Strictest first.
        policy_name: Name of the policy.
        policy_hash: Hash of the policy's content.
    """

    action: Action
    rail: Rail
    verdicts: tuple[Verdict, ...]
    reasons: tuple[Reason, ...]
    policy_name: str
    policy_hash: str

    @property
    def outcome(self) -> Outcome:
        """Unsafe where any verdict is, else unverified where any is, else safe; unverified without verdicts."""
        if len(self.verdicts) == 1:
            return self.verdicts[0].outcome
        outcomes = {verdict.outcome for verdict in self.verdicts}
        if Outcome.UNSAFE in outcomes:
            return Outcome.UNSAFE
        return Outcome.UNVERIFIED if Outcome.UNVERIFIED in outcomes or not outcomes else Outcome.SAFE

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The findings of all verdicts."""
        return tuple(finding for verdict in self.verdicts for finding in verdict.findings)

    @property
    def categories(self) -> tuple[HazardCategory, ...]:
        """The categories that any verdict names, each once, in the order of the taxonomy."""
        named = {category for verdict in self.verdicts for category in verdict.categories}
        return tuple(category for category in HazardCategory if category in named) if named else ()

    @property
    def scores(self) -> dict[HazardCategory, float]:
        """The riskiest score of each category over all verdicts."""
        scores: dict[HazardCategory, float] = {}
        for verdict in self.verdicts:
            for category, score in verdict.scores.items():
                scores[category] = max(score, scores.get(category, 0.0))
        return scores

    @property
    def unsafe_probability(self) -> float | None:
        """The riskiest probability that any verdict gives; None where none gives one."""
        given = [v.unsafe_probability for v in self.verdicts if v.unsafe_probability is not None]
        return max(given) if given else None

    def summary(self) -> str:
        """Returns the reasons in one line, e.g. ``"hate 0.93, CWE-89 python.sql-injection"``."""
        return ", ".join(_brief(reason) for reason in self.reasons) or "no reasons"

    def to_dict(self) -> dict[str, Any]:
        """Returns the decision as JSON values: the one form that the command line and the scanner write.

        Times are left out, so equal decisions give equal bytes.
        """
        return {
            "decision": self.action.value,
            "outcome": self.outcome.value,
            "rail": self.rail.value,
            "categories": [category.value for category in self.categories],
            "unsafe_probability": self.unsafe_probability,
            "scores": {category.value: score for category, score in self.scores.items()},
            "findings": [finding.to_dict() for finding in self.findings],
            "reasons": [reason.to_dict() for reason in self.reasons],
            "policy": {"name": self.policy_name, "hash": self.policy_hash},
            "verdicts": [verdict.to_dict() for verdict in self.verdicts],
        }


def _brief(reason: Reason) -> str:
    return reason.subject if reason.score is None else f"{reason.subject} {reason.score:.2f}"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One generation and its response check, kept for audit.

    Attributes:
        number: From 1.
        text: What the generator answered; kept in memory for the caller, never logged.
        decision: What was decided about it.
        feedback: What the generator was told before this attempt; None at the first.
    """

    number: int
    text: str
    decision: Decision
    feedback: str | None


@dataclass(frozen=True, slots=True)
class Exchange:
    """A guarded exchange from prompt to released text.

    Attributes:
        text: What may be shown: the checked answer, or the policy's block message.
        decision: The decision that ended the exchange; its action is ``ALLOW``, ``FLAG`` or ``BLOCK``.
        prompt_decision: What was decided about the prompt.
        attempts: Every attempt in order; empty where the prompt was blocked.
    """

    text: str
    decision: Decision
    prompt_decision: Decision
    attempts: tuple[Attempt, ...]

    @property
    def is_blocked(self) -> bool:
        """Whether ``text`` is the block message rather than an answer."""
        return not self.decision.action.releases


@dataclass(frozen=True, slots=True)
class PromptSegment:
    """A piece of a guard prompt.

    Attributes:
        text: The characters.
        is_data: True for text that came from a message: tokenised with special tokens off.
    """

    text: str
    is_data: bool


@dataclass(frozen=True, slots=True)
class GuardPrompt:
    """A rendered guard prompt; the segments are tokenised apart and joined.

    Attributes:
        segments: Template text and message text in order.
        template_hash: Hash of the template that rendered it.
        detail: What was left out of the context, if anything.
    """

    segments: tuple[PromptSegment, ...]
    template_hash: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Assessment:
    """What a guard model says about one prompt.

    Attributes:
        unsafe_probability: Softmax over the first answer token of ``unsafe`` against ``safe``, 0..1.
        scores: Code of the model's own version (``"S9"``) -> risk in 0..1.
        completion: What greedy decoding gives, e.g. ``"unsafe\\nS1,S9"``.
        timing: Queue and compute time.
    """

    unsafe_probability: float
    scores: Mapping[str, float]
    completion: str
    timing: Timing = field(default=Timing(), compare=False)


def riskiest(verdicts: Iterable[Verdict]) -> Verdict:
    """Joins the verdicts on the windows of one text: the riskiest one stands, with each score at its highest.

    An unverified window makes the whole unverified unless another window is unsafe: part of the text was not judged.

    Args:
        verdicts: At least one, all of the same source.
    """
    windows = list(verdicts)
    if len(windows) == 1:
        return windows[0]
    rank = {Outcome.SAFE: 0, Outcome.UNVERIFIED: 1, Outcome.UNSAFE: 2}
    worst = max(windows, key=lambda v: (rank[v.outcome], v.unsafe_probability or 0.0))
    scores = {
        c: max(v.scores.get(c, 0.0) for v in windows) for c in HazardCategory if any(c in v.scores for v in windows)
    }
    named = {category for verdict in windows for category in verdict.categories}
    return Verdict(
        worst.outcome,
        worst.source,
        scores=scores,
        categories=tuple(sorted(named, key=lambda c: (-scores.get(c, 0.0), list(HazardCategory).index(c)))),
        unsafe_probability=worst.unsafe_probability,
        findings=tuple(finding for verdict in windows for finding in verdict.findings),
        detail=worst.detail,
        timing=Timing(max(v.timing.queue_ms for v in windows), sum(v.timing.compute_ms for v in windows)),
    )

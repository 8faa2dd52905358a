from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Role(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROLE_UNSPECIFIED: _ClassVar[Role]
    ROLE_SYSTEM: _ClassVar[Role]
    ROLE_USER: _ClassVar[Role]
    ROLE_ASSISTANT: _ClassVar[Role]
    ROLE_TOOL: _ClassVar[Role]

class Rail(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RAIL_UNSPECIFIED: _ClassVar[Rail]
    RAIL_PROMPT: _ClassVar[Rail]
    RAIL_RESPONSE: _ClassVar[Rail]

class Action(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ACTION_UNSPECIFIED: _ClassVar[Action]
    ACTION_ALLOW: _ClassVar[Action]
    ACTION_FLAG: _ClassVar[Action]
    ACTION_RETRY: _ClassVar[Action]
    ACTION_BLOCK: _ClassVar[Action]

class Outcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OUTCOME_UNSPECIFIED: _ClassVar[Outcome]
    OUTCOME_SAFE: _ClassVar[Outcome]
    OUTCOME_UNSAFE: _ClassVar[Outcome]
    OUTCOME_UNVERIFIED: _ClassVar[Outcome]

class Severity(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SEVERITY_UNSPECIFIED: _ClassVar[Severity]
    SEVERITY_INFO: _ClassVar[Severity]
    SEVERITY_WARNING: _ClassVar[Severity]
    SEVERITY_ERROR: _ClassVar[Severity]

class Confidence(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CONFIDENCE_UNSPECIFIED: _ClassVar[Confidence]
    CONFIDENCE_LOW: _ClassVar[Confidence]
    CONFIDENCE_MEDIUM: _ClassVar[Confidence]
    CONFIDENCE_HIGH: _ClassVar[Confidence]

class HazardCategory(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    HAZARD_CATEGORY_UNSPECIFIED: _ClassVar[HazardCategory]
    HAZARD_CATEGORY_VIOLENT_CRIMES: _ClassVar[HazardCategory]
    HAZARD_CATEGORY_NON_VIOLENT_CRIMES: _ClassVar[HazardCategory]
    HAZARD_CATEGORY_SEX_RELATED_CRIMES: _ClassVar[HazardCategory]
    HAZARD_CATEGORY_CHILD_SEXUAL_EXPLOITATION: _ClassVar[HazardCategory]
    HAZARD_CATEGORY_SPECIALIZED_ADVICE: _ClassVar[HazardCategory]
    HAZARD_CATEGORY_PRIVACY: _ClassVar[HazardCategory]
    HAZARD_CATEGORY_INTELLECTUAL_PROPERTY: _ClassVar[HazardCategory]
    HAZARD_CATEGORY_INDISCRIMINATE_WEAPONS: _ClassVar[HazardCategory]
    HAZARD_CATEGORY_HATE: _ClassVar[HazardCategory]
    HAZARD_CATEGORY_SUICIDE_SELF_HARM: _ClassVar[HazardCategory]
    HAZARD_CATEGORY_SEXUAL_CONTENT: _ClassVar[HazardCategory]

class Release(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RELEASE_UNSPECIFIED: _ClassVar[Release]
    RELEASE_CHECKED: _ClassVar[Release]
    RELEASE_IMMEDIATELY: _ClassVar[Release]

class PromptCheck(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PROMPT_CHECK_UNSPECIFIED: _ClassVar[PromptCheck]
    PROMPT_CHECK_FIRST: _ClassVar[PromptCheck]
    PROMPT_CHECK_PARALLEL: _ClassVar[PromptCheck]
ROLE_UNSPECIFIED: Role
ROLE_SYSTEM: Role
ROLE_USER: Role
ROLE_ASSISTANT: Role
ROLE_TOOL: Role
RAIL_UNSPECIFIED: Rail
RAIL_PROMPT: Rail
RAIL_RESPONSE: Rail
ACTION_UNSPECIFIED: Action
ACTION_ALLOW: Action
ACTION_FLAG: Action
ACTION_RETRY: Action
ACTION_BLOCK: Action
OUTCOME_UNSPECIFIED: Outcome
OUTCOME_SAFE: Outcome
OUTCOME_UNSAFE: Outcome
OUTCOME_UNVERIFIED: Outcome
SEVERITY_UNSPECIFIED: Severity
SEVERITY_INFO: Severity
SEVERITY_WARNING: Severity
SEVERITY_ERROR: Severity
CONFIDENCE_UNSPECIFIED: Confidence
CONFIDENCE_LOW: Confidence
CONFIDENCE_MEDIUM: Confidence
CONFIDENCE_HIGH: Confidence
HAZARD_CATEGORY_UNSPECIFIED: HazardCategory
HAZARD_CATEGORY_VIOLENT_CRIMES: HazardCategory
HAZARD_CATEGORY_NON_VIOLENT_CRIMES: HazardCategory
HAZARD_CATEGORY_SEX_RELATED_CRIMES: HazardCategory
HAZARD_CATEGORY_CHILD_SEXUAL_EXPLOITATION: HazardCategory
HAZARD_CATEGORY_SPECIALIZED_ADVICE: HazardCategory
HAZARD_CATEGORY_PRIVACY: HazardCategory
HAZARD_CATEGORY_INTELLECTUAL_PROPERTY: HazardCategory
HAZARD_CATEGORY_INDISCRIMINATE_WEAPONS: HazardCategory
HAZARD_CATEGORY_HATE: HazardCategory
HAZARD_CATEGORY_SUICIDE_SELF_HARM: HazardCategory
HAZARD_CATEGORY_SEXUAL_CONTENT: HazardCategory
RELEASE_UNSPECIFIED: Release
RELEASE_CHECKED: Release
RELEASE_IMMEDIATELY: Release
PROMPT_CHECK_UNSPECIFIED: PromptCheck
PROMPT_CHECK_FIRST: PromptCheck
PROMPT_CHECK_PARALLEL: PromptCheck

class Message(_message.Message):
    __slots__ = ("role", "content")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    role: Role
    content: str
    def __init__(self, role: _Optional[_Union[Role, str]] = ..., content: _Optional[str] = ...) -> None: ...

class Span(_message.Message):
    __slots__ = ("start", "end")
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    start: int
    end: int
    def __init__(self, start: _Optional[int] = ..., end: _Optional[int] = ...) -> None: ...

class Finding(_message.Message):
    __slots__ = ("rule_id", "cwe", "severity", "span", "line", "column", "language", "message", "confidence", "fix")
    RULE_ID_FIELD_NUMBER: _ClassVar[int]
    CWE_FIELD_NUMBER: _ClassVar[int]
    SEVERITY_FIELD_NUMBER: _ClassVar[int]
    SPAN_FIELD_NUMBER: _ClassVar[int]
    LINE_FIELD_NUMBER: _ClassVar[int]
    COLUMN_FIELD_NUMBER: _ClassVar[int]
    LANGUAGE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    FIX_FIELD_NUMBER: _ClassVar[int]
    rule_id: str
    cwe: str
    severity: Severity
    span: Span
    line: int
    column: int
    language: str
    message: str
    confidence: Confidence
    fix: str
    def __init__(self, rule_id: _Optional[str] = ..., cwe: _Optional[str] = ..., severity: _Optional[_Union[Severity, str]] = ..., span: _Optional[_Union[Span, _Mapping]] = ..., line: _Optional[int] = ..., column: _Optional[int] = ..., language: _Optional[str] = ..., message: _Optional[str] = ..., confidence: _Optional[_Union[Confidence, str]] = ..., fix: _Optional[str] = ...) -> None: ...

class Source(_message.Message):
    __slots__ = ("model", "revision", "template_hash")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    TEMPLATE_HASH_FIELD_NUMBER: _ClassVar[int]
    model: str
    revision: str
    template_hash: str
    def __init__(self, model: _Optional[str] = ..., revision: _Optional[str] = ..., template_hash: _Optional[str] = ...) -> None: ...

class Timing(_message.Message):
    __slots__ = ("queue_ms", "compute_ms")
    QUEUE_MS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_MS_FIELD_NUMBER: _ClassVar[int]
    queue_ms: float
    compute_ms: float
    def __init__(self, queue_ms: _Optional[float] = ..., compute_ms: _Optional[float] = ...) -> None: ...

class CategoryScore(_message.Message):
    __slots__ = ("category", "score")
    CATEGORY_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    category: HazardCategory
    score: float
    def __init__(self, category: _Optional[_Union[HazardCategory, str]] = ..., score: _Optional[float] = ...) -> None: ...

class Verdict(_message.Message):
    __slots__ = ("outcome", "source", "scores", "categories", "unsafe_probability", "findings", "detail", "timing", "unscanned")
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    CATEGORIES_FIELD_NUMBER: _ClassVar[int]
    UNSAFE_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    FINDINGS_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    UNSCANNED_FIELD_NUMBER: _ClassVar[int]
    outcome: Outcome
    source: Source
    scores: _containers.RepeatedCompositeFieldContainer[CategoryScore]
    categories: _containers.RepeatedScalarFieldContainer[HazardCategory]
    unsafe_probability: float
    findings: _containers.RepeatedCompositeFieldContainer[Finding]
    detail: str
    timing: Timing
    unscanned: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, outcome: _Optional[_Union[Outcome, str]] = ..., source: _Optional[_Union[Source, _Mapping]] = ..., scores: _Optional[_Iterable[_Union[CategoryScore, _Mapping]]] = ..., categories: _Optional[_Iterable[_Union[HazardCategory, str]]] = ..., unsafe_probability: _Optional[float] = ..., findings: _Optional[_Iterable[_Union[Finding, _Mapping]]] = ..., detail: _Optional[str] = ..., timing: _Optional[_Union[Timing, _Mapping]] = ..., unscanned: _Optional[_Iterable[str]] = ...) -> None: ...

class Reason(_message.Message):
    __slots__ = ("action", "kind", "subject", "score", "threshold")
    ACTION_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    action: Action
    kind: str
    subject: str
    score: float
    threshold: float
    def __init__(self, action: _Optional[_Union[Action, str]] = ..., kind: _Optional[str] = ..., subject: _Optional[str] = ..., score: _Optional[float] = ..., threshold: _Optional[float] = ...) -> None: ...

class PolicyInfo(_message.Message):
    __slots__ = ("name", "hash")
    NAME_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    name: str
    hash: str
    def __init__(self, name: _Optional[str] = ..., hash: _Optional[str] = ...) -> None: ...

class Decision(_message.Message):
    __slots__ = ("action", "rail", "verdicts", "reasons", "policy", "outcome", "categories")
    ACTION_FIELD_NUMBER: _ClassVar[int]
    RAIL_FIELD_NUMBER: _ClassVar[int]
    VERDICTS_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    CATEGORIES_FIELD_NUMBER: _ClassVar[int]
    action: Action
    rail: Rail
    verdicts: _containers.RepeatedCompositeFieldContainer[Verdict]
    reasons: _containers.RepeatedCompositeFieldContainer[Reason]
    policy: PolicyInfo
    outcome: Outcome
    categories: _containers.RepeatedScalarFieldContainer[HazardCategory]
    def __init__(self, action: _Optional[_Union[Action, str]] = ..., rail: _Optional[_Union[Rail, str]] = ..., verdicts: _Optional[_Iterable[_Union[Verdict, _Mapping]]] = ..., reasons: _Optional[_Iterable[_Union[Reason, _Mapping]]] = ..., policy: _Optional[_Union[PolicyInfo, _Mapping]] = ..., outcome: _Optional[_Union[Outcome, str]] = ..., categories: _Optional[_Iterable[_Union[HazardCategory, str]]] = ...) -> None: ...

class CheckRequest(_message.Message):
    __slots__ = ("request_id", "messages", "path")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    messages: _containers.RepeatedCompositeFieldContainer[Message]
    path: str
    def __init__(self, request_id: _Optional[str] = ..., messages: _Optional[_Iterable[_Union[Message, _Mapping]]] = ..., path: _Optional[str] = ...) -> None: ...

class CheckResponse(_message.Message):
    __slots__ = ("request_id", "decision")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    DECISION_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    decision: Decision
    def __init__(self, request_id: _Optional[str] = ..., decision: _Optional[_Union[Decision, _Mapping]] = ...) -> None: ...

class CheckBatchRequest(_message.Message):
    __slots__ = ("id", "messages", "path", "items")
    ID_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    id: str
    messages: _containers.RepeatedCompositeFieldContainer[Message]
    path: str
    items: _containers.RepeatedCompositeFieldContainer[CheckBatchRequest]
    def __init__(self, id: _Optional[str] = ..., messages: _Optional[_Iterable[_Union[Message, _Mapping]]] = ..., path: _Optional[str] = ..., items: _Optional[_Iterable[_Union[CheckBatchRequest, _Mapping]]] = ...) -> None: ...

class CheckBatchResponse(_message.Message):
    __slots__ = ("id", "decision", "error", "items")
    ID_FIELD_NUMBER: _ClassVar[int]
    DECISION_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    id: str
    decision: Decision
    error: ItemError
    items: _containers.RepeatedCompositeFieldContainer[CheckBatchResponse]
    def __init__(self, id: _Optional[str] = ..., decision: _Optional[_Union[Decision, _Mapping]] = ..., error: _Optional[_Union[ItemError, _Mapping]] = ..., items: _Optional[_Iterable[_Union[CheckBatchResponse, _Mapping]]] = ...) -> None: ...

class ItemError(_message.Message):
    __slots__ = ("code", "message", "reason", "retry_after_s")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_S_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    reason: str
    retry_after_s: float
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ..., reason: _Optional[str] = ..., retry_after_s: _Optional[float] = ...) -> None: ...

class CodeBlock(_message.Message):
    __slots__ = ("code", "language")
    CODE_FIELD_NUMBER: _ClassVar[int]
    LANGUAGE_FIELD_NUMBER: _ClassVar[int]
    code: str
    language: str
    def __init__(self, code: _Optional[str] = ..., language: _Optional[str] = ...) -> None: ...

class ScanCodeRequest(_message.Message):
    __slots__ = ("request_id", "text", "block")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    BLOCK_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    text: str
    block: CodeBlock
    def __init__(self, request_id: _Optional[str] = ..., text: _Optional[str] = ..., block: _Optional[_Union[CodeBlock, _Mapping]] = ...) -> None: ...

class ScanCodeResponse(_message.Message):
    __slots__ = ("request_id", "decision")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    DECISION_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    decision: Decision
    def __init__(self, request_id: _Optional[str] = ..., decision: _Optional[_Union[Decision, _Mapping]] = ...) -> None: ...

class GenerateRequest(_message.Message):
    __slots__ = ("request_id", "messages", "include_rejected_text", "path")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_REJECTED_TEXT_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    messages: _containers.RepeatedCompositeFieldContainer[Message]
    include_rejected_text: bool
    path: str
    def __init__(self, request_id: _Optional[str] = ..., messages: _Optional[_Iterable[_Union[Message, _Mapping]]] = ..., include_rejected_text: _Optional[bool] = ..., path: _Optional[str] = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("request_id", "text", "is_blocked", "decision", "prompt_decision", "attempts")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    IS_BLOCKED_FIELD_NUMBER: _ClassVar[int]
    DECISION_FIELD_NUMBER: _ClassVar[int]
    PROMPT_DECISION_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    text: str
    is_blocked: bool
    decision: Decision
    prompt_decision: Decision
    attempts: _containers.RepeatedCompositeFieldContainer[Attempt]
    def __init__(self, request_id: _Optional[str] = ..., text: _Optional[str] = ..., is_blocked: _Optional[bool] = ..., decision: _Optional[_Union[Decision, _Mapping]] = ..., prompt_decision: _Optional[_Union[Decision, _Mapping]] = ..., attempts: _Optional[_Iterable[_Union[Attempt, _Mapping]]] = ...) -> None: ...

class ModerateConfig(_message.Message):
    __slots__ = ("request_id", "messages", "path", "release", "stop_early")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    STOP_EARLY_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    messages: _containers.RepeatedCompositeFieldContainer[Message]
    path: str
    release: Release
    stop_early: bool
    def __init__(self, request_id: _Optional[str] = ..., messages: _Optional[_Iterable[_Union[Message, _Mapping]]] = ..., path: _Optional[str] = ..., release: _Optional[_Union[Release, str]] = ..., stop_early: _Optional[bool] = ...) -> None: ...

class ModerateRequest(_message.Message):
    __slots__ = ("config", "delta")
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    config: ModerateConfig
    delta: str
    def __init__(self, config: _Optional[_Union[ModerateConfig, _Mapping]] = ..., delta: _Optional[str] = ...) -> None: ...

class ModerateResponse(_message.Message):
    __slots__ = ("request_id", "release", "checked_through", "released_through", "findings", "is_halted", "decision", "decided_through")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    CHECKED_THROUGH_FIELD_NUMBER: _ClassVar[int]
    RELEASED_THROUGH_FIELD_NUMBER: _ClassVar[int]
    FINDINGS_FIELD_NUMBER: _ClassVar[int]
    IS_HALTED_FIELD_NUMBER: _ClassVar[int]
    DECISION_FIELD_NUMBER: _ClassVar[int]
    DECIDED_THROUGH_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    release: Release
    checked_through: int
    released_through: int
    findings: _containers.RepeatedCompositeFieldContainer[Finding]
    is_halted: bool
    decision: Decision
    decided_through: int
    def __init__(self, request_id: _Optional[str] = ..., release: _Optional[_Union[Release, str]] = ..., checked_through: _Optional[int] = ..., released_through: _Optional[int] = ..., findings: _Optional[_Iterable[_Union[Finding, _Mapping]]] = ..., is_halted: _Optional[bool] = ..., decision: _Optional[_Union[Decision, _Mapping]] = ..., decided_through: _Optional[int] = ...) -> None: ...

class GenerateStreamRequest(_message.Message):
    __slots__ = ("request_id", "messages", "include_rejected_text", "path", "prompt_check")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_REJECTED_TEXT_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    PROMPT_CHECK_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    messages: _containers.RepeatedCompositeFieldContainer[Message]
    include_rejected_text: bool
    path: str
    prompt_check: PromptCheck
    def __init__(self, request_id: _Optional[str] = ..., messages: _Optional[_Iterable[_Union[Message, _Mapping]]] = ..., include_rejected_text: _Optional[bool] = ..., path: _Optional[str] = ..., prompt_check: _Optional[_Union[PromptCheck, str]] = ...) -> None: ...

class GenerateStreamResponse(_message.Message):
    __slots__ = ("request_id", "text", "exchange")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    EXCHANGE_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    text: str
    exchange: GenerateResponse
    def __init__(self, request_id: _Optional[str] = ..., text: _Optional[str] = ..., exchange: _Optional[_Union[GenerateResponse, _Mapping]] = ...) -> None: ...

class Attempt(_message.Message):
    __slots__ = ("number", "text", "decision", "feedback")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    DECISION_FIELD_NUMBER: _ClassVar[int]
    FEEDBACK_FIELD_NUMBER: _ClassVar[int]
    number: int
    text: str
    decision: Decision
    feedback: str
    def __init__(self, number: _Optional[int] = ..., text: _Optional[str] = ..., decision: _Optional[_Union[Decision, _Mapping]] = ..., feedback: _Optional[str] = ...) -> None: ...

class GetServerInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetServerInfoResponse(_message.Message):
    __slots__ = ("version", "source", "policy", "categories", "ready", "scans_code", "generates")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    CATEGORIES_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    SCANS_CODE_FIELD_NUMBER: _ClassVar[int]
    GENERATES_FIELD_NUMBER: _ClassVar[int]
    version: str
    source: Source
    policy: PolicyInfo
    categories: _containers.RepeatedCompositeFieldContainer[CategoryInfo]
    ready: bool
    scans_code: bool
    generates: bool
    def __init__(self, version: _Optional[str] = ..., source: _Optional[_Union[Source, _Mapping]] = ..., policy: _Optional[_Union[PolicyInfo, _Mapping]] = ..., categories: _Optional[_Iterable[_Union[CategoryInfo, _Mapping]]] = ..., ready: _Optional[bool] = ..., scans_code: _Optional[bool] = ..., generates: _Optional[bool] = ...) -> None: ...

class CategoryInfo(_message.Message):
    __slots__ = ("category", "name", "title", "description")
    CATEGORY_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    category: HazardCategory
    name: str
    title: str
    description: str
    def __init__(self, category: _Optional[_Union[HazardCategory, str]] = ..., name: _Optional[str] = ..., title: _Optional[str] = ..., description: _Optional[str] = ...) -> None: ...

"""The wire: values there and back, strict reading, and the one table of errors."""

from __future__ import annotations

import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrail import wire
from guardrail._pb import guard_pb2 as pb
from guardrail.errors import (
    Blocked,
    ClassificationError,
    ConfigurationError,
    DeadlineExceeded,
    GenerationError,
    GuardrailError,
    InternalError,
    InvalidInput,
    Overloaded,
    Unauthenticated,
    Unavailable,
)
from guardrail.policy import Policy
from guardrail.progress import Progress, Release
from guardrail.taxonomy import HazardCategory
from guardrail.verdict import (
    Action,
    Attempt,
    Confidence,
    Conversation,
    Decision,
    Exchange,
    Finding,
    Message,
    Outcome,
    Rail,
    Reason,
    ReasonKind,
    Role,
    Severity,
    Source,
    Span,
    Timing,
    Verdict,
)

ROOT = Path(__file__).parents[2]

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
risks = st.floats(0, 1)
offsets = st.integers(0, 2**32 - 1)
findings = st.builds(
    lambda a, b, **rest: Finding(span=Span(min(a, b), max(a, b)), **rest),
    offsets,
    offsets,
    rule_id=texts,
    cwe=texts,
    severity=st.sampled_from(Severity),
    confidence=st.sampled_from(Confidence),
    fix=texts,
    line=offsets,
    column=offsets,
    language=texts,
    message=texts,
)
verdicts = st.builds(
    Verdict,
    st.sampled_from(Outcome),
    st.builds(Source, texts, texts, texts),
    st.dictionaries(st.sampled_from(HazardCategory), risks),
    st.lists(st.sampled_from(HazardCategory), unique=True).map(tuple),
    unsafe_probability=st.none() | risks,
    findings=st.lists(findings, max_size=3).map(tuple),
    unscanned=st.lists(texts, max_size=3).map(tuple),
    detail=texts,
    timing=st.builds(Timing, st.floats(0, 1e6), st.floats(0, 1e6)),
)
reasons = st.builds(
    Reason, st.sampled_from(Action), st.sampled_from(ReasonKind), texts, st.none() | risks, st.none() | risks
)
decisions = st.builds(
    Decision,
    st.sampled_from(Action),
    st.sampled_from(Rail),
    st.lists(verdicts, max_size=3).map(tuple),
    st.lists(reasons, max_size=3).map(tuple),
    texts,
    texts,
)
attempts = st.builds(Attempt, st.integers(1, 20), texts, decisions, st.none() | texts)
exchanges = st.builds(Exchange, texts, decisions, decisions, st.lists(attempts, max_size=2).map(tuple))
progresses = st.builds(
    lambda release, checked, more, **rest: Progress(
        release, checked, checked + more if release is Release.IMMEDIATELY else checked, **rest
    ),
    st.sampled_from(Release),
    st.integers(0, 2**31),
    st.integers(0, 9),
    findings=st.lists(findings, max_size=2).map(tuple),
    is_halted=st.booleans(),
    decision=st.none() | decisions,
    decided_through=offsets,
)
conversations = st.builds(
    lambda before, last: Conversation((*before, last)),
    st.lists(st.builds(Message, st.sampled_from(Role), texts), max_size=3),
    st.builds(Message, st.sampled_from([Role.USER, Role.ASSISTANT]), texts),
)


class TestValues:
    @given(decisions)
    def test_a_decision_comes_back_whole(self, decision: Decision) -> None:
        """Through bytes and back: equal, with the same order and times, hence the same JSON."""
        data = wire.decision_to_wire(decision).SerializeToString()
        back = wire.decision_from_wire(pb.Decision.FromString(data))
        assert back == decision
        assert repr(back) == repr(decision)
        assert [verdict.timing for verdict in back.verdicts] == [verdict.timing for verdict in decision.verdicts]

    @given(decisions)
    def test_what_other_languages_read_agrees(self, decision: Decision) -> None:
        """The outcome and the categories that are written beside the verdicts are those that follow from them."""
        message = wire.decision_to_wire(decision)
        assert pb.Outcome.Name(message.outcome) == f"OUTCOME_{decision.outcome.name}"
        names = [pb.HazardCategory.Name(number) for number in message.categories]
        assert names == [f"HAZARD_CATEGORY_{category.name}" for category in decision.categories]

    @given(exchanges)
    def test_an_exchange_comes_back_whole(self, exchange: Exchange) -> None:
        """With the rejected text, where it was asked for."""
        message = wire.exchange_to_wire(exchange, request_id="r", with_rejected_text=True)
        assert wire.exchange_from_wire(pb.GenerateResponse.FromString(message.SerializeToString())) == exchange

    @given(exchanges)
    def test_rejected_text_stays_behind(self, exchange: Exchange) -> None:
        """Unless it was asked for, an attempt that may not be shown goes without its text."""
        message = wire.exchange_to_wire(exchange, request_id="r", with_rejected_text=False)
        for sent, attempt in zip(message.attempts, exchange.attempts, strict=True):
            assert sent.HasField("text") == attempt.decision.action.releases

    @given(conversations)
    def test_a_conversation_comes_back_whole(self, conversation: Conversation) -> None:
        """Roles and contents, in order."""
        assert wire.conversation_from_wire(wire.conversation_to_wire(conversation)) == conversation

    @given(progresses)
    def test_progress_comes_back_whole(self, progress: Progress) -> None:
        """With the mode of its stream, its findings, and a decision where it has one."""
        message = wire.progress_to_wire(progress, request_id="r")
        assert message.request_id == "r"
        assert wire.progress_from_wire(pb.ModerateResponse.FromString(message.SerializeToString())) == progress


class TestStrictReading:
    @pytest.mark.parametrize("number", [0, 99])
    def test_a_stream_of_an_unknown_mode_holds_text_back(self, number: int) -> None:
        """What may be shown ends at what was checked, whatever else the message says."""
        message = pb.ModerateResponse(release=number, checked_through=3, released_through=9)  # type: ignore[arg-type]
        progress = wire.progress_from_wire(message)
        assert (progress.release, progress.released_through) == (Release.CHECKED, 3)

    def test_an_empty_message_is_a_block(self) -> None:
        """What says nothing allows nothing."""
        decision = wire.decision_from_wire(pb.Decision())
        assert decision.action is Action.BLOCK
        assert decision.outcome is Outcome.UNVERIFIED

    @pytest.mark.parametrize("number", [0, 99])
    def test_unknown_numbers_are_read_as_the_strictest(self, number: int) -> None:
        """UNSPECIFIED, and values of a newer server, are never read as allowed or safe."""
        message = pb.Decision(
            action=number,  # type: ignore[arg-type]
            verdicts=[pb.Verdict(outcome=number, findings=[pb.Finding(severity=number)], categories=[number])],  # type: ignore[arg-type,list-item]
        )
        decision = wire.decision_from_wire(message)
        assert decision.action is Action.BLOCK
        assert decision.verdicts[0].outcome is Outcome.UNVERIFIED
        assert decision.verdicts[0].findings[0].severity is Severity.ERROR
        assert decision.verdicts[0].categories == ()

    def test_text_under_an_unknown_decision_is_not_given(self) -> None:
        """Nobody said that it may be shown."""
        exchange = wire.exchange_from_wire(pb.GenerateResponse(text="unsafe text"))
        assert exchange.is_blocked
        assert exchange.text == ""

    def test_a_block_message_is_given(self) -> None:
        """It is text to show."""
        message = pb.GenerateResponse(text="no", is_blocked=True, decision=pb.Decision(action=pb.ACTION_BLOCK))
        assert wire.exchange_from_wire(message).text == "no"


class TestRequests:
    @pytest.mark.parametrize(
        ("messages", "expected"),
        [
            ([], "at least one message"),
            ([pb.Message(content="private")], "message 0 has no known role.*ROLE_USER"),
            ([pb.Message(role=77, content="private")], "number 77"),  # type: ignore[arg-type]
            ([pb.Message(role=pb.ROLE_SYSTEM, content="private")], "must be from user or assistant"),
        ],
    )
    def test_a_bad_request_is_told_what_to_do(self, messages: list[pb.Message], expected: str) -> None:
        """In words about roles and places, without the text."""
        with pytest.raises(InvalidInput, match=expected) as caught:
            wire.conversation_from_wire(messages)
        assert "private" not in str(caught.value)

    def test_half_a_surrogate_pair_is_refused(self) -> None:
        """It cannot be written as UTF-8; the error says where it stands and keeps the text."""
        with pytest.raises(InvalidInput, match="lone surrogate at offset 7") as caught:
            wire.conversation_to_wire(Conversation.of("private\ud800"))
        assert "private" not in str(caught.value)
        assert caught.value.__cause__ is None

    @pytest.mark.parametrize("value", ["x" * 129, "a\nb", "ä"])
    def test_an_id_that_could_break_a_log_line_is_refused(self, value: str) -> None:
        """Ids are printable ASCII, at most 128."""
        with pytest.raises(InvalidInput, match="printable ASCII"):
            wire.require_id(value)


class _Call:
    """A finished call, as grpc's clients give it."""

    def __init__(self, code: grpc.StatusCode, details: str, metadata: object = ()) -> None:
        self.code = lambda: code
        self.details = lambda: details
        self.trailing_metadata = lambda: metadata


ERRORS = [
    (InvalidInput("i"), grpc.StatusCode.INVALID_ARGUMENT),
    (Overloaded("o", retry_after_s=2.5), grpc.StatusCode.RESOURCE_EXHAUSTED),
    (DeadlineExceeded("d"), grpc.StatusCode.DEADLINE_EXCEEDED),
    (Unavailable("u"), grpc.StatusCode.UNAVAILABLE),
    (GenerationError("g"), grpc.StatusCode.UNAVAILABLE),
    (Unauthenticated("a"), grpc.StatusCode.UNAUTHENTICATED),
    (ConfigurationError("c"), grpc.StatusCode.UNIMPLEMENTED),
    (InternalError("id"), grpc.StatusCode.INTERNAL),
]


class TestErrors:
    @pytest.mark.parametrize(("error", "code"), ERRORS, ids=lambda value: type(value).__name__)
    def test_an_error_comes_back_as_itself(self, error: GuardrailError, code: grpc.StatusCode) -> None:
        """As a call's status and as an item's error, with its words and its time to retry."""
        problem = wire.problem_from_error(error)
        assert problem.code is code
        status = problem.to_status()
        call = _Call(status.code, status.details, status.trailing_metadata)
        for back in (wire.problem_from_call(call), wire.problem_from_item(problem.to_item())):
            found = wire.error_from_problem(back)
            assert type(found) is type(error)
            assert str(found) == str(error)
            assert getattr(found, "retry_after_s", None) == getattr(error, "retry_after_s", None)

    @pytest.mark.parametrize("error", [ClassificationError("x"), Blocked(Policy().decide(Rail.PROMPT, []))])
    def test_what_should_not_leave_the_engine_has_no_status(self, error: GuardrailError) -> None:
        """A block is a decision and a failed judge a verdict; on the wire they would be a defect."""
        assert not isinstance(error, wire.SENDABLE)
        with pytest.raises(TypeError):
            wire.problem_from_error(error)

    @pytest.mark.parametrize("code", grpc.StatusCode)
    def test_every_status_of_a_foreign_peer_is_one_of_our_errors(self, code: grpc.StatusCode) -> None:
        """A proxy's or grpc's own status, without details, is still in the tree."""
        error = wire.error_from_problem(wire.problem_from_call(_Call(code, "details")))
        assert isinstance(error, GuardrailError)
        assert code.name in str(error)

    def test_a_message_above_the_size_limit_is_not_an_overload(self) -> None:
        """grpc gives it the same status; waiting does not help."""
        problem = wire.Problem(grpc.StatusCode.RESOURCE_EXHAUSTED, "SERVER: Received message larger than max (9 vs. 8)")
        assert type(wire.error_from_problem(problem)) is InvalidInput

    def test_details_that_cannot_be_read_are_left_out(self) -> None:
        """The status stands by itself."""
        call = _Call(grpc.StatusCode.UNAVAILABLE, "gone", (("grpc-status-details-bin", b"\xff\xff"),))
        assert type(wire.error_from_problem(wire.problem_from_call(call))) is Unavailable


class TestProtoFile:
    def test_the_generated_code_is_current(self) -> None:
        """guardrail/_pb is what the script makes of proto/guard.proto."""
        script = ROOT / "scripts" / "generate_proto.py"
        done = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def test_every_field_message_and_value_has_a_comment(self) -> None:
        """The proto file explains itself."""
        declares = re.compile(r"message |enum |service |rpc |(?!syntax|package|option).* = \d+;$")
        lines = [line.strip() for line in (ROOT / "proto" / "guard.proto").read_text("utf-8").splitlines()]
        declared = [(before, line) for before, line in pairwise(lines) if declares.match(line)]
        assert len(declared) > 100
        assert [line for before, line in declared if not before.startswith("//")] == []

    @pytest.mark.parametrize("wire_enum", pb.DESCRIPTOR.enum_types_by_name.values(), ids=lambda e: e.name)
    def test_every_enum_starts_unspecified(self, wire_enum: object) -> None:
        """0, which a missing field reads as, means nothing."""
        assert wire_enum.values_by_number[0].name.endswith("_UNSPECIFIED")  # type: ignore[attr-defined]


def test_the_client_loads_grpc_and_protobuf_alone() -> None:
    """``import guardrail.client`` in a fresh interpreter loads no model library and no engine."""
    program = "import sys, guardrail.client; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    heavy = {"torch", "transformers", "semgrep", "ray", "onnxruntime", "pydantic", "yaml", "numpy"}
    assert not loaded & (heavy | {"guardrail.policy", "guardrail.pipeline", "guardrail.assembly"})


def test_without_grpc_the_client_says_what_to_install() -> None:
    """A missing extra is named."""
    program = "import sys; sys.modules['grpc'] = None\nimport guardrail.client"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "MissingExtra" in done.stderr.splitlines()[-1]
    assert "pip install 'guardrail[client]'" in done.stderr

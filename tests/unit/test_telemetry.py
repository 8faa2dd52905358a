"""Telemetry: what metrics, traces and log lines say of decisions, stages and requests, and what they leave out."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from guardrail import instruments
from guardrail.batching import Batcher
from guardrail.code_shield import CodeShield
from guardrail.errors import ClassificationError, GenerationError
from guardrail.instruments import BatchRan, BlocksScanned
from guardrail.pipeline import Guard
from guardrail.policy import Policy, RailPolicy, Rule, load_policy
from guardrail.protocols import Stage
from guardrail.streaming import astream_exchange, begin_with
from guardrail.taxonomy import HazardCategory
from guardrail.telemetry import RequestRecord, Telemetry
from guardrail.telemetry.logs import (
    JsonFormatter,
    LogFormat,
    TextFormatter,
    bound_request_id,
    configure_logging,
    keep_words_out,
)
from guardrail.telemetry.metrics import Metrics
from guardrail.telemetry.tracing import Tracing
from guardrail.testing import FailingClassifier, FailingScanner, KeywordClassifier, ScriptedGenerator
from guardrail.verdict import Action, Conversation, Rail, Role

KEYWORDS = KeywordClassifier({"grumble": HazardCategory.HATE})
OPEN = Policy(on_unverified=Action.FLAG, on_unscanned_code=Action.ALLOW)
QUESTION = Conversation.of("How do I bake bread?")
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE_ID}-b7ad6b7169203331-01"


@pytest.fixture
def metrics() -> Iterator[Metrics]:
    made = Metrics()
    yield made
    made.close()


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


class Traces:
    """A tracing whose spans stay here."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracing = Tracing(provider)

    def spans(self) -> list[ReadableSpan]:
        return list(self._exporter.get_finished_spans())


class TestMetrics:
    async def test_decisions_are_counted_by_rail_action_and_category(self, metrics: Metrics) -> None:
        """A category counts where the policy minds it."""
        guard = Guard(KEYWORDS, policy=load_policy("default"), observers=[metrics])
        await guard.acheck_many([QUESTION, Conversation.of("grumble"), Conversation.of("grumble")])
        assert value(metrics, "guardrail_decisions_total", rail="prompt", action="allow") == 1
        assert value(metrics, "guardrail_decisions_total", rail="prompt", action="block") == 2
        assert value(metrics, "guardrail_categories_total", rail="prompt", action="block", category="hate") == 2
        assert value(metrics, "guardrail_classifier_seconds_count", classifier="keyword-classifier") == 3

    @pytest.mark.parametrize(("policy", "fail_open"), [(load_policy("default"), 0), (OPEN, 1)])
    async def test_unverified_and_fail_open_are_counted_apart(
        self, metrics: Metrics, policy: Policy, fail_open: int
    ) -> None:
        """Fail-open is what was released although it could not be checked; both are there from the start, as zero."""
        assert value(metrics, "guardrail_unverified_total", rail="prompt", kind="unverified") == 0
        assert value(metrics, "guardrail_fail_open_total", rail="prompt") == 0
        guard = Guard(FailingClassifier(ClassificationError("told to")), policy=policy, observers=[metrics])
        await guard.acheck(QUESTION)
        assert value(metrics, "guardrail_unverified_total", rail="prompt", kind="unverified") == 1
        assert value(metrics, "guardrail_unverified_total", rail="prompt", kind="unscanned") == 0
        assert value(metrics, "guardrail_fail_open_total", rail="prompt") == fail_open

    async def test_attempts_and_stages_are_timed(self, metrics: Metrics) -> None:
        """Each stage by its name, each generation by its number, whole and streamed; what fails is an error."""
        policy = Policy(rails={Rail.PROMPT: RailPolicy(), Rail.RESPONSE: RailPolicy(Rule(Action.RETRY))})
        guard = Guard(KEYWORDS, policy=policy, observers=[metrics])
        await guard.arun(QUESTION, ScriptedGenerator(["grumble", "flour"]))
        begin = begin_with(ScriptedGenerator(["grumble", "flour"]), QUESTION)
        async for _ in astream_exchange(guard, QUESTION, begin):
            pass

        def fail() -> str:
            raise GenerationError("told to")

        with pytest.raises(GenerationError):
            await guard.arun(QUESTION, ScriptedGenerator([fail]))
        count = "guardrail_stage_seconds_count"
        assert value(metrics, count, stage="prompt_check", result="ok") == 3
        assert value(metrics, count, stage="response_check", result="ok") == 4
        assert value(metrics, count, stage="generation", result="ok") == 4
        assert value(metrics, count, stage="generation", result="error") == 1
        assert value(metrics, "guardrail_generation_attempts_total", attempt="1") == 3
        assert value(metrics, "guardrail_generation_attempts_total", attempt="2") == 2

    async def test_code_scans_are_timed_for_each_block(self, metrics: Metrics) -> None:
        """With how many were not scanned to their end."""
        shield = CodeShield(FailingScanner())
        guard = Guard(KEYWORDS, policy=load_policy("default"), code_shield=shield, observers=[metrics])
        code = "```python\na = 1\n```\n```python\nb = 1\n```\n"
        await guard.acheck(Conversation.of(code, role=Role.ASSISTANT))
        instruments.tell(BlocksScanned(2, 1, 0.5))
        assert value(metrics, "guardrail_stage_seconds_count", stage="code_scan", result="ok") == 1
        assert value(metrics, "guardrail_code_block_seconds_count") == 2
        assert value(metrics, "guardrail_code_block_seconds_sum") == 0.5
        assert value(metrics, "guardrail_code_blocks_total", result="scanned") == 1
        assert value(metrics, "guardrail_code_blocks_total", result="failed") == 1

    def test_queues_and_batches_are_told(self, metrics: Metrics) -> None:
        """What waits is asked when the metrics are; what ran is told by the worker."""
        batcher: Batcher[str, str] = Batcher(list, max_batch_tokens=10)
        before = value(metrics, "guardrail_queue_tokens") or 0
        for cost in (3, 4, 8):
            batcher.submit("item", cost=cost)
        assert (value(metrics, "guardrail_queue_tokens") or 0) - before == 15
        batcher.run_next()
        assert (value(metrics, "guardrail_queue_tokens") or 0) - before == 8
        assert value(metrics, "guardrail_batch_items_sum") == 2
        assert value(metrics, "guardrail_batch_tokens_sum") == 7
        assert value(metrics, "guardrail_batch_seconds_count") == 1

    def test_what_is_closed_listens_no_more(self) -> None:
        """Metrics of a server that is gone are not kept alive by the process."""
        metrics = Metrics()
        metrics.close()
        instruments.tell(BatchRan(1, 1, 1.0))
        assert value(metrics, "guardrail_batch_items_count") == 0


class TestStages:
    async def test_an_observer_that_fails_does_not_fail_the_check(self) -> None:
        """A check is never an exception, whatever watches it, before or after."""

        class Broken:
            def decided(self, _decision: object) -> None:
                raise ValueError

            def stage(self, _stage: Stage, _attributes: object) -> Any:
                class Surrounding:
                    def __enter__(self) -> None:
                        pass

                    def __exit__(self, *_: object) -> None:
                        raise ValueError

                if _stage is Stage.CODE_SCAN:
                    raise ValueError
                return Surrounding()

        shield = CodeShield(FailingScanner())
        guard = Guard(KEYWORDS, policy=load_policy("default"), code_shield=shield, observers=[Broken()])
        decision = await guard.acheck(Conversation.of("flour", role=Role.ASSISTANT))
        assert decision.action is Action.ALLOW

    async def test_a_cancelled_stage_is_no_error(self, metrics: Metrics) -> None:
        """A client that goes is not the server's failure."""
        traces = Traces()
        guard = Guard(KEYWORDS, policy=load_policy("default"), observers=[metrics, traces.tracing])
        with pytest.raises(asyncio.CancelledError), guard.stage(Stage.GENERATION, attempt=1):
            raise asyncio.CancelledError
        count = "guardrail_stage_seconds_count"
        assert value(metrics, count, stage="generation", result="cancelled") == 1
        assert traces.spans()[0].status.status_code is StatusCode.UNSET


class TestTracing:
    async def test_stages_are_spans_below_the_request_of_the_callers_trace(self) -> None:
        """One trace from the caller's span down, with what was decided."""
        traces = Traces()
        guard = Guard(
            KEYWORDS,
            policy=load_policy("default"),
            code_shield=CodeShield(FailingScanner()),
            observers=[traces.tracing],
        )
        record = RequestRecord("http", "/v1/chat/completions", "the-id", "200")
        with Telemetry(tracing=traces.tracing).request(record, {"traceparent": PARENT}):
            await guard.arun(QUESTION, ScriptedGenerator(["flour"]))
        spans = {span.name: span for span in traces.spans()}
        request = spans["http /v1/chat/completions"]
        assert format(request.parent.span_id, "016x") == "b7ad6b7169203331"  # type: ignore[union-attr]
        assert request.attributes["guardrail.request_id"] == "the-id"  # type: ignore[index]
        for name in ("prompt_check", "generation", "response_check"):
            assert spans[name].parent.span_id == request.context.span_id  # type: ignore[union-attr]
        assert spans["code_scan"].parent.span_id == spans["response_check"].context.span_id  # type: ignore[union-attr]
        assert {format(span.context.trace_id, "032x") for span in traces.spans()} == {TRACE_ID}
        decided = spans["response_check"].events[0].attributes
        assert decided["guardrail.action"] == "allow"  # type: ignore[index]

    async def test_a_stream_has_the_same_spans(self) -> None:
        """The generation is read in a task of its own, and belongs to the request all the same."""
        traces = Traces()
        guard = Guard(KEYWORDS, policy=load_policy("default"), observers=[traces.tracing])
        record = RequestRecord("grpc", "GenerateStream", status="OK")
        with Telemetry(tracing=traces.tracing).request(record, {}):
            async for _ in astream_exchange(guard, QUESTION, begin_with(ScriptedGenerator(["flour"]), QUESTION)):
                pass
        spans = {span.name: span for span in traces.spans()}
        request = spans["grpc GenerateStream"].context.span_id
        for name in ("prompt_check", "generation", "response_check"):
            assert spans[name].parent.span_id == request  # type: ignore[union-attr]

    async def test_an_exception_leaves_its_types_name_alone(self) -> None:
        """Its words may hold a user's text."""
        traces = Traces()
        guard = Guard(KEYWORDS, policy=load_policy("default"), observers=[traces.tracing])

        def fail() -> str:
            raise GenerationError("about ZEBRA")

        with pytest.raises(GenerationError):
            await guard.arun(QUESTION, ScriptedGenerator([fail]))
        (span,) = (span for span in traces.spans() if span.name == "generation")
        assert span.status.status_code is StatusCode.ERROR
        assert span.attributes["error.type"] == "GenerationError"  # type: ignore[index]
        assert "ZEBRA" not in span.to_json()

    @pytest.mark.parametrize(
        ("door", "status", "is_error"),
        [
            ("http", "200", False),
            ("http", "429", False),
            ("http", "503", True),
            ("grpc", "OK", False),
            ("grpc", "INVALID_ARGUMENT", False),
            ("grpc", "INTERNAL", True),
        ],
    )
    def test_a_request_that_the_server_failed_is_an_error(self, door: str, status: str, is_error: bool) -> None:
        """And no other, as OpenTelemetry's conventions for servers have it."""
        traces = Traces()
        with Telemetry(tracing=traces.tracing).request(RequestRecord(door, "m", status=status), {}):
            pass
        assert (traces.spans()[0].status.status_code is StatusCode.ERROR) is is_error


class TestLogs:
    @pytest.fixture
    def stream(self) -> Iterator[io.StringIO]:
        stream = io.StringIO()
        handler = logging.StreamHandler(stream)
        handler.setFormatter(JsonFormatter())
        logger = logging.getLogger("test.telemetry")
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        yield stream
        logger.removeHandler(handler)

    def test_a_line_is_json_with_the_requests_id(self, stream: io.StringIO) -> None:
        """Whatever is in the message."""
        logger = logging.getLogger("test.telemetry")
        with bound_request_id("the-id"):
            logger.info("two\nlines and \u2028 %s", "more", extra={"fields": {"status": "200"}})
        logger.info("after")
        lines = stream.getvalue().splitlines()
        first, second = (json.loads(line) for line in lines)
        assert first["message"] == "two\nlines and \u2028 more"
        assert (first["level"], first["request_id"], first["status"]) == ("info", "the-id", "200")
        assert "request_id" not in second

    def test_an_exceptions_own_words_are_left_out(self, stream: io.StringIO) -> None:
        """Its type and place are there, in both formats; source lines and messages are not."""
        handler = logging.StreamHandler(text := io.StringIO())
        handler.setFormatter(TextFormatter())
        logger = logging.getLogger("test.telemetry")
        logger.addHandler(handler)
        try:
            raise ValueError("about ZEBRA")
        except ValueError:
            logger.exception("failed")
        finally:
            logger.removeHandler(handler)
        for written in (stream.getvalue(), text.getvalue()):
            assert "ValueError at" in written
            assert "test_telemetry.py" in written
            assert "ZEBRA" not in written

    async def test_an_error_that_nobody_took_is_logged_without_its_words(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """An event loop writes an exception's words when its task is dropped; a server's does not."""
        loop = asyncio.get_running_loop()
        keep_words_out(loop)

        async def fail() -> None:
            raise ValueError("about ZEBRA")

        task = asyncio.create_task(fail())
        await asyncio.wait({task})
        del task
        gc.collect()
        loop.set_exception_handler(None)
        assert "ValueError at" in caplog.text
        assert "ZEBRA" not in caplog.text

    def test_a_request_is_a_line(self, caplog: pytest.LogCaptureFixture) -> None:
        """Door, method, status and time; a probe is none, since it comes every second."""
        caplog.set_level(logging.INFO, "guardrail.access")
        for record in (RequestRecord("http", "/v1/x", "the-id", "200"), RequestRecord("http", "/", is_probe=True)):
            with Telemetry().request(record, {}):
                pass
        (record,) = caplog.records
        fields: dict[str, Any] = record.fields  # type: ignore[attr-defined]
        assert (fields["door"], fields["method"], fields["status"]) == ("http", "/v1/x", "200")

    def test_logging_is_configured_once_for_all(self, capsys: pytest.CaptureFixture[str]) -> None:
        """What was there before is replaced, so no line is written twice."""
        root = logging.getLogger()
        before = (root.handlers[:], root.level)
        try:
            configure_logging(LogFormat.TEXT)
            configure_logging(LogFormat.JSON)
            logging.getLogger("anything").warning("hello")
            (line,) = capsys.readouterr().err.splitlines()
        finally:
            root.handlers[:], _ = before
            root.setLevel(before[1])
        assert json.loads(line)["message"] == "hello"

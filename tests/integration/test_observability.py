"""What an operator sees of a running sidecar: metrics, traces and logs through both doors, and no text of users."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from fake_upstream import Reply, fake_upstream
from http_door import Door, door
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families
from sidecar import KEYWORDS, EvalShield

from guardrail._pb import guard_pb2 as pb
from guardrail._pb import guard_pb2_grpc
from guardrail.generators.openai_compatible import OpenAIGenerator
from guardrail.policy import Policy, RailPolicy, Rule
from guardrail.telemetry import Telemetry
from guardrail.telemetry.logs import JsonFormatter, TextFormatter
from guardrail.telemetry.metrics import Metrics
from guardrail.telemetry.tracing import Tracing
from guardrail.verdict import Action, Conversation, Rail, Severity, Verdict

ROOT = Path(__file__).parents[2]
MARK = "ZEBRACROSSING"
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE_ID}-b7ad6b7169203331-01"
RETRIES = Policy(
    rails={
        Rail.PROMPT: RailPolicy(),
        Rail.RESPONSE: RailPolicy(Rule(Action.RETRY), findings={Severity.ERROR: Action.RETRY}),
    },
    max_attempts=2,
)
SAFE = f"First you mix flour, water and {MARK}, then you wait for an hour. "
UNSAFE = f"You should grumble at {MARK}, and then once more. "


class Clumsy:
    """Raises an error that quotes the message where it says "fail", as careless libraries do."""

    source = KEYWORDS.source

    async def classify(self, conversations: Sequence[Conversation]) -> list[Verdict]:
        for conversation in conversations:
            if "fail" in conversation.last.content:
                raise ValueError(f"cannot judge {conversation.last.content}")
        return await KEYWORDS.classify(conversations)


@dataclass
class Seen:
    """What was told.

    Attributes:
        door: The sidecar.
        metrics: Its own.
        json_log: All log lines as JSON.
        text_log: The same for people.
    """

    door: Door
    metrics: Metrics
    json_log: io.StringIO
    text_log: io.StringIO
    exporter: InMemorySpanExporter

    def spans(self) -> list[str]:
        return [span.to_json() for span in self.exporter.get_finished_spans()]

    def access(self) -> list[dict[str, Any]]:
        lines = (json.loads(line) for line in self.json_log.getvalue().splitlines())
        return [line for line in lines if line["logger"] == "guardrail.access"]

    def everything(self) -> str:
        parts = [self.json_log.getvalue(), self.text_log.getvalue(), *self.spans(), self.metrics.render()[0].decode()]
        return "\n".join(parts)


@pytest.fixture
def logs() -> Iterator[tuple[io.StringIO, io.StringIO]]:
    """All that is logged in this process, down to our own debug lines; the test's clients log for themselves."""
    streams = (io.StringIO(), io.StringIO())
    root, own = logging.getLogger(), logging.getLogger("guardrail")
    before = (root.level, own.level)
    handlers = []
    for stream, formatter in zip(streams, (JsonFormatter(), TextFormatter()), strict=True):
        handler = logging.StreamHandler(stream)
        handler.setFormatter(formatter)
        root.addHandler(handler)
        handlers.append(handler)
    root.setLevel(logging.INFO)
    httpx_level = logging.getLogger("httpx").level
    logging.getLogger("httpx").setLevel(logging.WARNING)  # as `guardrail serve` does; here it is the test's client, too
    own.setLevel(logging.DEBUG)
    yield streams
    for handler in handlers:
        root.removeHandler(handler)
    root.setLevel(before[0])
    logging.getLogger("httpx").setLevel(httpx_level)
    own.setLevel(before[1])


@asynccontextmanager
async def observed(
    logs: tuple[io.StringIO, io.StringIO], *replies: Reply | str, policy: Policy = RETRIES
) -> AsyncIterator[Seen]:
    """A sidecar with all telemetry on, which stays here."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    metrics = Metrics()
    telemetry = Telemetry(metrics=metrics, tracing=Tracing(provider))
    try:
        async with (
            fake_upstream(*replies) as upstream,
            door(
                upstream,
                Clumsy(),
                policy=policy,
                code_shield=EvalShield(),
                generator=OpenAIGenerator(upstream.url, "the-model", retries=0),
                telemetry=telemetry,
            ) as door_,
        ):
            exporter.clear()  # what the canaries left
            yield Seen(door_, metrics, *logs, exporter)
    finally:
        telemetry.close()


async def through_grpc(server_port: int, text: str, metadata: Any = None) -> list[str]:
    """Sends a text through every method; returns the statuses."""
    message = pb.Message(role=pb.ROLE_USER, content=text)
    statuses = []
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server_port}") as channel:
        stub = guard_pb2_grpc.GuardServiceStub(channel)  # type: ignore[no-untyped-call]  # generated without types
        config = pb.ModerateConfig(messages=[message])
        calls = (
            stub.Check(pb.CheckRequest(messages=[message], request_id="the-id"), metadata=metadata),
            stub.Check(pb.CheckRequest(messages=[message], request_id=f"{MARK}\n"), metadata=metadata),
            stub.ScanCode(pb.ScanCodeRequest(text=f"```python\neval({text!r})\n```\n"), metadata=metadata),
            stub.CheckBatch(iter([pb.CheckBatchRequest(id="1", messages=[message])]), metadata=metadata),
            stub.Moderate(iter([pb.ModerateRequest(config=config), pb.ModerateRequest(delta=text)]), metadata=metadata),
            stub.Generate(pb.GenerateRequest(messages=[message]), metadata=metadata),
            stub.GenerateStream(pb.GenerateStreamRequest(messages=[message]), metadata=metadata),
        )
        for call in calls:
            try:
                if hasattr(call, "__await__"):
                    await call
                else:
                    async for _ in call:
                        pass
            except grpc.aio.AioRpcError:
                pass
            assert MARK not in str(await call.details())
            statuses.append((await call.code()).name)
    return statuses


async def through_http(door_: Door, text: str, headers: Any = None) -> list[int]:
    """Sends a text through every method, and once in each place where text is not expected; returns the statuses."""
    messages = [{"role": "user", "content": text}]
    bodies = [
        {"messages": messages},
        {"messages": messages, "stream": True},
        {"messages": messages, text: text},
        {"messages": [{"role": text, "content": text}]},
        [text],
    ]
    statuses = []
    for body in bodies:
        response = await door_.http.post("/v1/chat/completions", json=body, headers=headers)
        statuses.append(response.status_code)
        assert response.status_code == 200 or MARK not in response.text
    for path, body in (("/v1/moderations", {"input": text}), (f"/v1/{MARK}?{MARK}={MARK}", {"input": text})):
        response = await door_.http.post(path, json=body, headers={**(headers or {}), f"x-{MARK}": MARK})
        statuses.append(response.status_code)
    return statuses


class TestNoTextOfUsers:
    @pytest.mark.parametrize("text", ["What is {}?", "Please grumble at {}.", "Please fail at {}."])
    async def test_no_door_tells_a_text(self, logs: tuple[io.StringIO, io.StringIO], text: str) -> None:
        """Allowed, blocked or failing, through each method of both doors: it is in no log, metric, span or error."""
        text = text.format(MARK)
        replies = [SAFE, UNSAFE, SAFE, Reply(UNSAFE), Reply(f"fail {MARK}"), Reply(status=500)] * 3
        async with observed(logs, *replies) as seen:
            grpc_statuses = await through_grpc(seen.door.server.port, text)
            http_statuses = await through_http(seen.door, text)
            told = seen.everything()
        assert grpc_statuses[:2] == ["OK", "INVALID_ARGUMENT"]
        assert http_statuses[2:5] == [400, 400, 400]
        assert http_statuses[-2:] == [200, 404]
        for kind in ("guardrail.access", "prompt_check", "guardrail_decisions_total", "guardrail_request_seconds"):
            assert kind in told
        assert MARK not in told
        assert MARK.lower() not in told.lower()

    @pytest.mark.parametrize("reply", [SAFE, UNSAFE, f"fail {MARK}. ", Reply(status=500), Reply(SAFE, None)])
    async def test_no_answer_is_told(self, logs: tuple[io.StringIO, io.StringIO], reply: Reply | str) -> None:
        """Whatever the upstream says, whole and streamed, retried, blocked or broken off."""
        async with observed(logs, *[reply] * 4) as seen:
            responses = [await seen.door.post(stream=stream) for stream in (False, True)]
            told = seen.everything()
        assert MARK not in told
        assert "generation" in told
        may_be_shown = reply == SAFE or (isinstance(reply, Reply) and reply.text == SAFE)
        assert may_be_shown or not any(MARK in response.text for response in responses)


class TestRequests:
    async def test_requests_are_timed_by_door_method_and_status(self, logs: tuple[io.StringIO, io.StringIO]) -> None:
        """Through ``/metrics``, for both doors; paths that a caller made up share a label."""
        async with observed(logs, *[SAFE] * 4) as seen:
            await through_grpc(seen.door.server.port, "What is bread?")
            await through_http(seen.door, "What is bread?")
            response = await seen.door.http.get("/metrics")
        counts = {
            (sample.labels["door"], sample.labels["method"], sample.labels["status"]): sample.value
            for family in text_string_to_metric_families(response.text)
            for sample in family.samples
            if sample.name == "guardrail_request_seconds_count"
        }
        assert counts == {
            ("grpc", "Check", "OK"): 1,
            ("grpc", "Check", "INVALID_ARGUMENT"): 1,
            ("grpc", "ScanCode", "OK"): 1,
            ("grpc", "CheckBatch", "OK"): 1,
            ("grpc", "Moderate", "OK"): 1,
            ("grpc", "Generate", "OK"): 1,
            ("grpc", "GenerateStream", "OK"): 1,
            ("http", "/v1/chat/completions", "200"): 2,
            ("http", "/v1/chat/completions", "400"): 3,
            ("http", "/v1/moderations", "200"): 1,
            ("http", "other", "404"): 1,
        }

    async def test_the_server_tells_how_it_is(self, logs: tuple[io.StringIO, io.StringIO]) -> None:
        """Ready, what is in work, and what serves; not ready once it stops."""
        async with observed(logs) as seen:
            text = (await seen.door.http.get("/metrics")).text
            seen.door.server._gate.close()
            after = (await seen.door.http.get("/metrics")).text
        assert "\nguardrail_ready 1.0\n" in text
        assert "\nguardrail_places 256.0\n" in text
        assert "\nguardrail_places_taken 0.0\n" in text
        assert f'policy="{RETRIES.name}",policy_hash="{RETRIES.hash}"' in text
        assert "\nguardrail_ready 0.0\n" in after

    async def test_a_trace_goes_on_from_the_caller(self, logs: tuple[io.StringIO, io.StringIO]) -> None:
        """Through ``traceparent``, in headers and in metadata, down to each stage of a retried exchange."""
        async with observed(logs, UNSAFE, SAFE, SAFE, SAFE) as seen:
            await seen.door.http.post(
                "/v1/chat/completions",
                json={"messages": [{"role": "user", "content": "What is bread?"}]},
                headers={"traceparent": PARENT},
            )
            spans = seen.exporter.get_finished_spans()
            names = [span.name for span in spans]
            assert names.count("generation") == 2
            # The guard's spans end in the order of the exchange; those within a check end before it.
            checks = [name for name in names if name.endswith("_check") or name == "generation"]
            assert checks == ["prompt_check", "generation", "response_check", "generation", "response_check"]
            assert {format(span.context.trace_id, "032x") for span in spans} == {TRACE_ID}
            seen.exporter.clear()
            await through_grpc(seen.door.server.port, "What is bread?", (("traceparent", PARENT),))
            spans = seen.exporter.get_finished_spans()
        assert {format(span.context.trace_id, "032x") for span in spans} == {TRACE_ID}
        assert {"grpc Check", "grpc Moderate", "grpc CheckBatch", "prompt_check"} <= {span.name for span in spans}

    async def test_access_lines_have_the_requests_id(self, logs: tuple[io.StringIO, io.StringIO]) -> None:
        """The caller's, through both doors; so have the lines that its work left."""
        async with observed(logs) as seen:
            await through_grpc(seen.door.server.port, "fail")
            await seen.door.http.post("/v1/moderations", json={"input": "fail"}, headers={"x-request-id": "http-id"})
            access = {line.get("request_id"): line for line in seen.access()}
            lines = [json.loads(line) for line in seen.json_log.getvalue().splitlines()]
        assert access["the-id"]["method"] == "Check"
        assert access["http-id"]["method"] == "/v1/moderations"
        assert access["http-id"]["action"] == "block"
        warned = {line.get("request_id") for line in lines if "gave no answer" in line["message"]}
        assert {"the-id", "http-id"} <= warned


def known_metrics() -> set[str]:
    """The names of all samples that a server's metrics can have."""
    metrics = Metrics()
    metrics.watch(
        is_ready=lambda: True,
        calls=lambda: 0,
        places_taken=lambda: 0,
        places=1,
        waiting=lambda: 0,
        about=lambda: {"version": "0"},
    )
    try:
        names = set()
        for family in metrics.registry.collect():
            suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
            names |= {family.name + suffix for suffix in suffixes}
        return names
    finally:
        metrics.close()


def named_in(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:guardrail|process)_\w+", expression))


class TestWhatIsShipped:
    def test_the_dashboard_shows_metrics_that_exist(self) -> None:
        """Each query of ``deploy/grafana-dashboard.json``; and each metric of ours is on it."""
        dashboard = json.loads((ROOT / "deploy" / "grafana-dashboard.json").read_text("utf-8"))
        panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
        expressions = [target["expr"] for panel in panels for target in panel["targets"]]
        assert all(panel["title"] and panel["targets"] for panel in panels)
        assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
        shown = set().union(*map(named_in, expressions))
        assert shown <= known_metrics()
        stems = {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in shown}
        ours = {re.sub(r"_(total|bucket|sum|count)$", "", n) for n in known_metrics() if n.startswith("guardrail_")}
        assert ours <= stems

    def test_the_alerts_watch_metrics_that_exist(self) -> None:
        """Each rule of ``deploy/alert-rules.yaml``, with a severity, a summary and what to do."""
        rules = yaml.safe_load((ROOT / "deploy" / "alert-rules.yaml").read_text("utf-8"))
        alerts = [rule for group in rules["groups"] for rule in group["rules"]]
        for alert in alerts:
            named = named_in(alert["expr"])
            assert named, alert["alert"]
            assert named <= known_metrics(), alert["alert"]
            assert alert["labels"]["severity"] in ("page", "ticket")
            assert alert["annotations"].keys() == {"summary", "description"}
        watched = {alert["alert"] for alert in alerts}
        assert watched == {
            "GuardrailFailOpen",
            "GuardrailUnverified",
            "GuardrailOverloaded",
            "GuardrailNotReady",
            "GuardrailSlow",
            "GuardrailErrors",
        }

    def test_the_guide_lists_every_metric(self) -> None:
        """``docs/observability.md`` names what is registered, and nothing else."""
        text = (ROOT / "docs" / "observability.md").read_text("utf-8")
        listed = set(re.findall(r"^\| `(guardrail_\w+)`", text, re.MULTILINE))
        ours = {re.sub(r"_(bucket|sum|count)$", "", n) for n in known_metrics() if n.startswith("guardrail_")}
        assert listed == ours

"""OpenTelemetry traces: a span for each request, with one for each of its stages below it.

A trace goes on from the caller's ``traceparent`` (W3C Trace Context), as an HTTP header or in gRPC's metadata. Spans
hold names, numbers and ids; an exception leaves its type's name alone, since its words may hold a user's text.

Where spans go is told by OpenTelemetry's own variables, ``OTEL_EXPORTER_OTLP_ENDPOINT`` first of all; OTLP over HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from guardrail import __version__
from guardrail.errors import MissingExtra
from guardrail.protocols import Stage
from guardrail.telemetry.logs import current_request_id
from guardrail.verdict import Decision

try:
    from opentelemetry import trace
    from opentelemetry.context import Context
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.trace import Span, SpanKind, Status, StatusCode
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError as exc:
    raise MissingExtra("traces need opentelemetry: pip install 'guardrail[tracing]'") from exc

if TYPE_CHECKING:
    from guardrail.telemetry import RequestRecord

__all__ = ["Tracing"]

# What says that the server failed, in gRPC's words; of HTTP's statuses, those from 500 on.
_FAILURES = ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")


class Tracing:
    """Makes spans; an observer of guards.

    Args:
        provider: Where they go; closed with this.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("guardrail", __version__)
        self._propagator = TraceContextTextMapPropagator()

    @classmethod
    def from_environment(cls) -> Tracing:
        """Makes one that exports as OpenTelemetry's variables say; to localhost:4318 where they say nothing."""
        resource = Resource.create()
        if str(resource.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: "guardrail"}))
        provider = TracerProvider(resource=resource)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        return cls(provider)

    @contextlib.contextmanager
    def request(self, record: RequestRecord, headers: Mapping[str, str]) -> Iterator[None]:
        """Surrounds a request with a span that belongs to the caller's trace."""
        parent = self._propagator.extract(carrier=headers)
        with self._span(f"{record.door} {record.method}", SpanKind.SERVER, parent) as span:
            try:
                yield
            finally:
                span.set_attribute("guardrail.request_id", current_request_id())
                span.set_attribute("guardrail.status", record.status)
                if record.door == "grpc":
                    span.set_attribute("rpc.system", "grpc")
                    span.set_attribute("rpc.method", record.method)
                else:
                    span.set_attribute("http.route", record.method)
                if record.status in _FAILURES or (record.status.isdigit() and int(record.status) >= 500):
                    span.set_status(Status(StatusCode.ERROR))

    @contextlib.contextmanager
    def stage(self, stage: Stage, attributes: Mapping[str, int]) -> Iterator[None]:
        """Surrounds a stage with a span."""
        with self._span(stage.value, SpanKind.INTERNAL) as span:
            for name, value in attributes.items():
                span.set_attribute(f"guardrail.{name}", value)
            yield

    def decided(self, decision: Decision) -> None:
        """Adds a decision to the stage that it ends."""
        trace.get_current_span().add_event(
            "decided",
            {
                "guardrail.rail": decision.rail.value,
                "guardrail.action": decision.action.value,
                "guardrail.outcome": decision.outcome.value,
                "guardrail.categories": [category.value for category in decision.categories],
                "guardrail.weaknesses": sorted({finding.cwe for finding in decision.findings}),
                "guardrail.policy_hash": decision.policy_hash,
            },
        )

    def close(self) -> None:
        """Sends what is left, and stops."""
        self._provider.shutdown()

    @contextlib.contextmanager
    def _span(self, name: str, kind: SpanKind, parent: Context | None = None) -> Iterator[Span]:
        with self._tracer.start_as_current_span(
            name, context=parent, kind=kind, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield span
            except BaseException as exc:
                span.set_attribute("error.type", type(exc).__name__)
                if not isinstance(exc, asyncio.CancelledError):
                    span.set_status(Status(StatusCode.ERROR))
                raise

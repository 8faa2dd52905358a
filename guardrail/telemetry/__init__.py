"""What a server tells of itself: metrics, traces and logs. Ids, names, numbers and times; never a text of users.

::

    Guard ── decided, stage ──▶ Observers: metrics (Prometheus), tracing (OpenTelemetry)
    doors ── request ─────────▶ Telemetry ─▶ the same two, and one line in the access log

Importing this package loads neither prometheus_client nor opentelemetry; ``metrics`` and ``tracing`` do.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from guardrail.protocols import Observer
from guardrail.telemetry.logs import bound_request_id

if TYPE_CHECKING:
    from guardrail.telemetry.metrics import Metrics
    from guardrail.telemetry.tracing import Tracing

__all__ = ["RequestRecord", "Telemetry"]

access_logger = logging.getLogger("guardrail.access")


@dataclass(slots=True)
class RequestRecord:
    """What is known of one request; a door fills in what comes out.

    Attributes:
        door: ``grpc`` or ``http``.
        method: The method's or the route's name; never what a caller made up.
        request_id: The caller's, or the door's.
        status: The gRPC status' name or the HTTP status' number.
        action: What was decided, where the request was about one decision; the strictest of many.
        is_probe: Whether it asks about the server alone, again and again: its line in the log is for debugging.
    """

    door: str
    method: str
    request_id: str = ""
    status: str = ""
    action: str = ""
    is_probe: bool = False


class Telemetry:
    """Metrics, traces and the access log of a server; each may be missing.

    Args:
        metrics: Counts and times.
        tracing: Spans.
    """

    def __init__(self, *, metrics: Metrics | None = None, tracing: Tracing | None = None) -> None:
        self.metrics = metrics
        self.tracing = tracing

    @property
    def observers(self) -> list[Observer]:
        """What a guard shall tell."""
        return [observer for observer in (self.metrics, self.tracing) if observer is not None]

    @contextlib.contextmanager
    def request(self, record: RequestRecord, headers: Mapping[str, str]) -> Iterator[None]:
        """Surrounds the work on a request.

        Args:
            record: Is read at the end.
            headers: The request's headers or metadata, names in lower case; a trace goes on from ``traceparent``.
        """
        started = time.perf_counter()
        span = self.tracing.request(record, headers) if self.tracing is not None else contextlib.nullcontext()
        with bound_request_id(record.request_id), span:
            try:
                yield
            finally:
                seconds = time.perf_counter() - started
                if self.metrics is not None:
                    self.metrics.request_ended(record, seconds)
                level = logging.DEBUG if record.is_probe else logging.INFO
                if access_logger.isEnabledFor(level):
                    _log(level, record, seconds)

    def close(self) -> None:
        """Sends what is left, and stops."""
        if self.metrics is not None:
            self.metrics.close()
        if self.tracing is not None:
            self.tracing.close()


def _log(level: int, record: RequestRecord, seconds: float) -> None:
    access_logger.log(
        level,
        "%s %s %s in %.1f ms",
        record.door,
        record.method,
        record.status,
        seconds * 1000,
        extra={
            "fields": {
                "door": record.door,
                "method": record.method,
                "status": record.status,
                "action": record.action,
                "duration_ms": round(seconds * 1000, 3),
            }
        },
    )

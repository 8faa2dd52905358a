"""Prometheus metrics: what was decided, how long things took, what waits. Each label has few values, none a caller's.

``docs/observability.md`` lists them; a test holds it, the dashboard and the alert rules to what is registered here.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from guardrail import instruments
from guardrail.errors import MissingExtra
from guardrail.instruments import BatchRan, Figures
from guardrail.protocols import Stage
from guardrail.verdict import Action, Decision, Outcome, ReasonKind

try:
    from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
    from prometheus_client.core import GaugeMetricFamily, Metric
    from prometheus_client.exposition import CONTENT_TYPE_LATEST
    from prometheus_client.registry import Collector
except ImportError as exc:
    raise MissingExtra("metrics need prometheus-client: pip install 'guardrail[metrics]'") from exc

if TYPE_CHECKING:
    from guardrail.telemetry import RequestRecord

__all__ = ["Metrics"]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_ITEMS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_TOKENS = (64, 256, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
# Attempts beyond this one share a label.
_MAX_ATTEMPT = 5


class Metrics:
    """Counts and times in a registry of its own; an observer of guards. Safe to use from any thread.

    Attributes:
        registry: For those who serve it themselves.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._decisions = Counter(
            "guardrail_decisions", "Decisions by rail and action.", ("rail", "action"), registry=registry
        )
        self._categories = Counter(
            "guardrail_categories",
            "Decisions that mind a hazard category, by what the policy asks for because of it.",
            ("rail", "action", "category"),
            registry=registry,
        )
        self._findings = Counter(
            "guardrail_findings", "Code findings by weakness and severity.", ("cwe", "severity"), registry=registry
        )
        self._unverified = Counter(
            "guardrail_unverified",
            "Decisions about what could not be checked: no answer, or code in a language without rules.",
            ("rail", "kind"),
            registry=registry,
        )
        self._fail_open = Counter(
            "guardrail_fail_open",
            "Texts that were released although they could not be checked, as the policy says.",
            ("rail",),
            registry=registry,
        )
        self._queue_wait = Histogram(
            "guardrail_queue_wait_seconds",
            "How long a message waited for its turn at the guard model.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._classifier = Histogram(
            "guardrail_classifier_seconds",
            "How long a classifier computed a verdict.",
            ("classifier",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._stages = Histogram(
            "guardrail_stage_seconds",
            "How long a stage of a request took: prompt_check, generation, response_check, code_scan.",
            ("stage", "result"),
            buckets=_SECONDS,
            registry=registry,
        )
        self._attempts = Counter(
            "guardrail_generation_attempts",
            "Answers that were generated, by the number of the attempt.",
            ("attempt",),
            registry=registry,
        )
        self._requests = Histogram(
            "guardrail_request_seconds",
            "How long a request took, by door, method and status.",
            ("door", "method", "status"),
            buckets=_SECONDS,
            registry=registry,
        )
        self._batch_items = Histogram(
            "guardrail_batch_items", "Prompts in a batch of the guard model.", buckets=_ITEMS, registry=registry
        )
        self._batch_tokens = Histogram(
            "guardrail_batch_tokens", "Tokens in a batch of the guard model.", buckets=_TOKENS, registry=registry
        )
        self._batch_seconds = Histogram(
            "guardrail_batch_seconds", "How long the guard model ran a batch.", buckets=_SECONDS, registry=registry
        )
        self._block_seconds = Histogram(
            "guardrail_code_block_seconds",
            "Scan time of a code block: that of its call, shared among the call's blocks.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._blocks = Counter(
            "guardrail_code_blocks",
            "Code blocks by whether they were scanned to their end.",
            ("result",),
            registry=registry,
        )
        for rail in ("prompt", "response"):
            # An alert on a counter that nobody has seen would stay silent.
            self._fail_open.labels(rail)
            for kind in ("unverified", "unscanned"):
                self._unverified.labels(rail, kind)
        self._gauges = _Gauges()
        registry.register(self._gauges)
        ProcessCollector(registry=registry)
        self._stop_listening = instruments.listen(self._take_note)

    def decided(self, decision: Decision) -> None:
        """Takes note of a decision."""
        rail = decision.rail.value
        self._decisions.labels(rail, decision.action.value).inc()
        for reason in decision.reasons:
            if reason.kind is ReasonKind.HAZARD and reason.action is not Action.ALLOW:
                self._categories.labels(rail, reason.action.value, reason.subject).inc()
        for finding in decision.findings:
            self._findings.labels(finding.cwe, finding.severity.value).inc()
        unverified = [verdict for verdict in decision.verdicts if verdict.outcome is Outcome.UNVERIFIED]
        if unverified or not decision.verdicts:
            kind = "unscanned" if unverified and all(verdict.unscanned for verdict in unverified) else "unverified"
            self._unverified.labels(rail, kind).inc()
            if decision.action.releases:
                self._fail_open.labels(rail).inc()
        for verdict in decision.verdicts:
            self._classifier.labels(verdict.source.model).observe(verdict.timing.compute_ms / 1000)
            if verdict.timing.queue_ms:
                self._queue_wait.observe(verdict.timing.queue_ms / 1000)

    @contextlib.contextmanager
    def stage(self, stage: Stage, attributes: Mapping[str, int]) -> Iterator[None]:
        """Times a stage."""
        if stage is Stage.GENERATION:
            attempt = attributes["attempt"]
            self._attempts.labels(str(attempt) if attempt < _MAX_ATTEMPT else f"{_MAX_ATTEMPT}+").inc()
        started = time.perf_counter()
        result = "error"
        try:
            yield
            result = "ok"
        except asyncio.CancelledError:
            result = "cancelled"
            raise
        finally:
            self._stages.labels(stage.value, result).observe(time.perf_counter() - started)

    def request_ended(self, record: RequestRecord, seconds: float) -> None:
        """Takes note of a request that was answered."""
        self._requests.labels(record.door, record.method, record.status or "none").observe(seconds)

    def watch(
        self,
        *,
        is_ready: Callable[[], bool],
        calls: Callable[[], int],
        places_taken: Callable[[], int],
        places: int,
        waiting: Callable[[], int],
        about: Callable[[], Mapping[str, str]],
    ) -> None:
        """Lets a server be asked how it is, whenever the metrics are.

        Args:
            is_ready: Whether it takes requests.
            calls: Requests that it has not answered yet.
            places_taken: Checks and exchanges in work.
            places: How many there may be.
            waiting: Calls that wait for a place.
            about: What serves: version, model, policy and its hash.
        """
        self._gauges.sources = {
            "guardrail_ready": ("Whether the server takes requests.", lambda: int(is_ready())),
            "guardrail_requests_in_progress": ("Requests that have no answer yet.", calls),
            "guardrail_places_taken": ("Checks and exchanges in work.", places_taken),
            "guardrail_calls_waiting": ("Calls that wait for a place.", waiting),
            "guardrail_places": ("Checks and exchanges that may be in work at one time.", lambda: places),
        }
        self._gauges.about = about

    def render(self) -> tuple[bytes, str]:
        """Returns all metrics in Prometheus' text format, and its media type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST

    def close(self) -> None:
        """Listens no more."""
        self._stop_listening()

    def _take_note(self, figures: Figures) -> None:
        if isinstance(figures, BatchRan):
            self._batch_items.observe(figures.items)
            self._batch_tokens.observe(figures.tokens)
            self._batch_seconds.observe(figures.seconds)
            return
        for _ in range(figures.blocks):
            self._block_seconds.observe(figures.seconds / figures.blocks)
        self._blocks.labels("scanned").inc(figures.blocks - figures.failed)
        self._blocks.labels("failed").inc(figures.failed)


class _Gauges(Collector):
    """What is asked for when the metrics are, since it would be old else."""

    def __init__(self) -> None:
        self.sources: dict[str, tuple[str, Callable[[], float]]] = {}
        self.about: Callable[[], Mapping[str, str]] | None = None

    def collect(self) -> Iterable[Metric]:
        """Yields the gauges."""
        queues = instruments.queues()
        yield _gauge(
            "guardrail_queue_requests",
            "Requests that wait for the guard model.",
            sum(queue.queued_requests for queue in queues),
        )
        yield _gauge(
            "guardrail_queue_tokens", "Tokens that wait for the guard model.", sum(q.queued_tokens for q in queues)
        )
        for name, (help_text, ask) in self.sources.items():
            yield _gauge(name, help_text, ask())
        if self.about is not None:
            labels = self.about()
            info = GaugeMetricFamily("guardrail_info", "What serves; always 1.", labels=list(labels))
            info.add_metric(list(labels.values()), 1)
            yield info


def _gauge(name: str, help_text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, help_text, value=value)

"""What ``guardrail scan`` says while it runs, where there is no terminal for a bar."""

from __future__ import annotations

import pytest

from guardrail.cli import scan_view
from guardrail.logscan import Summary
from guardrail.logscan.inputs import Input
from guardrail.logscan.run import Chunk
from guardrail.verdict import Action


def lines_of(*inputs: Input, chunks: list[tuple[float, Chunk]], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines that are said of chunks, each done at its second."""
    said: list[str] = []
    now = [0.0]
    monkeypatch.setattr(scan_view, "say", said.append)
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    summary = Summary()
    with scan_view._Lines(inputs, already=0, every_s=5.0) as lines:
        for now[0], chunk in chunks:
            summary.rows += 100
            summary.decisions[Action.FLAG] += 2
            lines.advance(chunk, summary)
    return said


class TestLines:
    def test_they_say_what_was_found_and_how_long_it_takes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Rows, speed, blocked and flagged, and the time left at the speed so far, over all inputs."""
        logs = Input("a", "a", 1_000, "1"), Input("b", "b", 9_000, "1")
        chunks = [(2.0, Chunk([], 0, 1, 1_000)), (10.0, Chunk([], 1, 1, 1_000)), (12.0, Chunk([], 1, 2, 2_000))]
        (said,) = lines_of(*logs, chunks=chunks, monkeypatch=monkeypatch)
        assert said == "200 rows, 20/s, 0 blocked, 4 flagged, 20%, 1:04 left"

    def test_of_a_stream_nobody_knows_what_is_left(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Standard input has no size: no share, no time."""
        (said,) = lines_of(Input("-", "-"), chunks=[(10.0, Chunk([], 0, 1, 50))], monkeypatch=monkeypatch)
        assert said == "100 rows, 10/s, 0 blocked, 2 flagged"

    def test_hours_are_hours(self) -> None:
        """As a clock has them."""
        assert [scan_view._clock(seconds) for seconds in (0.4, 61, 3600, 100_000)] == [
            "0:00",
            "1:01",
            "1:00:00",
            "27:46:40",
        ]

"""Judges chat logs: inputs, readers, the scan itself, results with what it takes to go on, and their summary.

::

    for result in scan(read_rows("chat.jsonl"), guard):
        print(result.to_dict())
"""

from __future__ import annotations

from guardrail.logscan.engine import ScanResult, scan
from guardrail.logscan.readers import read_rows
from guardrail.logscan.rows import BadRow, EmptyRow, Layout, Row, Turns, conversation_of
from guardrail.logscan.summary import Summary
from guardrail.logscan.writer import ResultWriter

__all__ = [
    "BadRow",
    "EmptyRow",
    "Layout",
    "ResultWriter",
    "Row",
    "ScanResult",
    "Summary",
    "Turns",
    "conversation_of",
    "read_rows",
    "scan",
]

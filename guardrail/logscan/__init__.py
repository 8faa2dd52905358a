"""Judges chat logs: readers, the scan itself, results and their summary.

::

    for result in scan(read_rows("chat.jsonl"), guard):
        print(result.to_dict())
"""

from __future__ import annotations

from guardrail.logscan.engine import ScanResult, scan
from guardrail.logscan.readers import read_rows
from guardrail.logscan.rows import BadRow, Row, conversation_of
from guardrail.logscan.summary import Summary
from guardrail.logscan.writer import ResultWriter

__all__ = ["BadRow", "ResultWriter", "Row", "ScanResult", "Summary", "conversation_of", "read_rows", "scan"]

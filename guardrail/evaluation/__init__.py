"""Measures a classifier on labelled rows: figures, curves, comparisons; behind ``guardrail eval``.

::

    rows.py ─▶ run.py ─▶ report.py ─▶ page.py (one HTML page)
              metrics.py     └──────▶ compare.py (two reports side by side, thresholds of a cascade)
"""

from __future__ import annotations

from guardrail.evaluation.compare import CascadeChoice, Comparison, SetComparison, choose_cascade, compare
from guardrail.evaluation.page import render_page
from guardrail.evaluation.report import Report, RowResult, SavedRun, SetResult, load_run
from guardrail.evaluation.rows import BadRow, LabelledRow, LabelledSet, read_sets
from guardrail.evaluation.run import evaluate

__all__ = [
    "BadRow",
    "CascadeChoice",
    "Comparison",
    "LabelledRow",
    "LabelledSet",
    "Report",
    "RowResult",
    "SavedRun",
    "SetComparison",
    "SetResult",
    "choose_cascade",
    "compare",
    "evaluate",
    "load_run",
    "read_sets",
    "render_page",
]

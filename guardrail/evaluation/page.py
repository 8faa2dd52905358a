"""A report as one HTML page that needs nothing else: no network, no script, inline styles and SVG.

The page holds no text of a row. Whatever comes from outside (names of sets, models, languages) is escaped, and the
content-security policy forbids everything but the page's own styles. Light and dark follow the reader's setting; on a
narrow screen each row of a table becomes a card.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from guardrail.evaluation.metrics import (
    CALIBRATION_BINS,
    Figures,
    precision_recall_points,
    reliability,
    roc_points,
)
from guardrail.evaluation.report import Report, SetResult
from guardrail.page import counted, document, table, tiles
from guardrail.taxonomy import HazardCategory

__all__ = ["render_page"]

_SIZE, _PAD = 200.0, 36.0
# A curve of ten thousand points looks as one of these and weighs a hundred times as much.
_MOST_POINTS = 200

Points = Sequence[tuple[float, float]]


def render_page(report: Report) -> str:
    """Returns the page, in HTML 5."""
    title = f"Evaluation of {report.classifier}"
    body = "\n".join(
        [
            _header(report, title),
            _tiles(report),
            f"<h2>Curves over all rows</h2>{_plots(report.overall)}",
            f"<h2>Sets</h2>{_sets_table(report)}",
            _operating(report),
            _categories(report.overall),
            _slices(report),
            _set_details(report),
            "<h2>What the figures mean</h2>" + "".join(f"<p class=dim>{line}</p>" for line in _NOTES),
        ]
    )
    return document(title, body)


_NOTES = (
    "Recall is the share of unsafe rows that were flagged, FPR that of safe rows; ranges are 95 % Wilson intervals. "
    "Flagged is what the classifier itself calls unsafe; a policy may set other thresholds.",
    "AUPRC is average precision by steps; AUROC counts ties half; both, precision and F1 need rows of both classes.",
    f"ECE is the expected calibration error over {CALIBRATION_BINS} bins of equal width; Brier is the mean squared "
    "error of the score.",
    "First category right: of the flagged rows that name a category and are labelled with one, the share whose first "
    "category is one of the row's own.",
    "Unverified rows got no verdict. They are counted apart, are in no figure, and never count as safe.",
)


def _header(report: Report, title: str) -> str:
    source = report.source
    template = f", template {source.template_hash}" if source.template_hash else ""
    lines = [
        f"<h1>{escape(title)}</h1>",
        f"<p class=dim><code>{escape(str(source))}{escape(template)}</code><br>"
        f"guardrail {escape(report.guardrail_version)}, {escape(report.created)}</p>",
    ]
    overall = report.overall
    if overall.unverified_rows:
        lines.append(
            f"<p class=warn>{overall.unverified_rows:,} of {len(overall.rows):,} rows could not be judged "
            f"({overall.unverified(True):,} labelled unsafe, {overall.unverified(False):,} safe). "
            "The figures do not cover them.</p>"
        )
    if overall.bad_rows:
        lines.append(f"<p class=warn>{counted(overall.bad_rows, 'row')} could not be read and so left out.</p>")
    if len(report.decided_by) > 1:
        shares = "; ".join(f"{escape(name)} decided {count:,}" for name, count in report.decided_by.items())
        lines.append(f"<p>{shares}.</p>")
    return "\n".join(lines)


def _tiles(report: Report) -> str:
    found, speed = report.overall.figures, report.speed
    figures = [
        (
            "rows",
            f"{len(report.overall.rows):,}",
            f"{found.unsafe:,} unsafe, {found.rows - found.unsafe:,} safe judged",
        ),
        ("recall", _number(found.recall), _range(found.recall_low, found.recall_high)),
        ("false-positive rate", _number(found.fpr), _range(found.fpr_low, found.fpr_high)),
        ("F1", _number(found.f1), ""),
        ("AUPRC", _number(found.auprc), f"AUROC {_number(found.auroc)}"),
        ("calibration error", _number(found.ece), f"Brier {_number(found.brier)}"),
    ]
    if speed.latency is not None:
        note = f"p99 {speed.latency.p99_ms:,.1f} ms, {speed.latency.messages:,} asked one by one"
        figures.append(("latency p50", f"{speed.latency.p50_ms:,.1f} ms", note))
    if speed.texts_per_s is not None:
        figures.append(("texts per second", f"{speed.texts_per_s:,.0f}", f"in batches of {speed.batch_size}"))
    return tiles(figures)


_SET_HEAD = (
    "set", "rows", "unsafe", "recall", "FPR", "F1", "AUPRC", "AUROC", "ECE", "Brier",
    "first category right", "unverified",
)  # fmt: skip


def _sets_table(report: Report) -> str:
    rows = [_set_cells(one) for one in report.sets]
    rows.append(_set_cells(report.overall))
    means = report.macro
    names = ("recall", "fpr", "f1", "auprc", "auroc", "ece", "brier")
    rows.append(["mean of the sets", "", "", *(_number(means[name]) for name in names), "", ""])
    return table(_SET_HEAD, rows, sums=2)


def _set_cells(one: SetResult) -> list[str]:
    return [*_cells(one.name, one.figures), _number(one.top1), f"{one.unverified_rows:,}"]


def _cells(name: str, found: Figures) -> list[str]:
    numbers = (found.recall, found.fpr, found.f1, found.auprc, found.auroc, found.ece, found.brier)
    return [name, f"{found.rows:,}", f"{found.unsafe:,}", *map(_number, numbers)]


def _operating(report: Report) -> str:
    if report.operating is None:
        return ""
    head = f"<h2>At a false-positive rate of {report.operating.target_fpr:g}</h2>"
    threshold = report.operating.threshold
    if threshold is None:
        return f"{head}<p>No threshold of these rows keeps it.</p>"
    rows = [_cells(one.name, one.figures_at(threshold))[:6] for one in (*report.sets, report.overall)]
    return (
        f"{head}<p>Threshold {threshold:.6g}, chosen on these very rows, all together: the figures are kinder than "
        f"those on other rows.</p>{table(_SET_HEAD[:6], rows, sums=1)}"
    )


def _categories(one: SetResult) -> str:
    if not one.categories:
        return ""
    rows = [
        [category.title, f"{found.rows:,}", _number(found.recall), f"{found.named:,}", _number(found.top1)]
        for category, found in ((c, one.categories[c]) for c in HazardCategory if c in one.categories)
    ]
    head = ("category", "unsafe rows", "recall", "flagged with a category", "first category right")
    return f"<h2>Categories</h2>{table(head, rows)}"


def _slices(report: Report) -> str:
    titles = {"lang": "Languages", "source": "Sources"}
    parts = []
    for column, values in report.slices.items():
        rows = [_cells(value, found) for value, found in values.items()]
        parts.append(f"<h2>{titles[column]}</h2>{table((titles[column][:-1].lower(), *_SET_HEAD[1:10]), rows)}")
    return "".join(parts)


def _set_details(report: Report) -> str:
    if len(report.sets) < 2:
        return ""
    details = "".join(
        f"<details><summary>{escape(one.name)}</summary>{_plots(one)}</details>" for one in report.sets if one.judged
    )
    return f"<h2>Curves of each set</h2>{details}"


def _plots(one: SetResult) -> str:
    labels = np.asarray([label for label, _, _ in one.judged], bool)
    scores = np.asarray([score for _, score, _ in one.judged], np.float64)
    bins = reliability(labels, scores)
    found = one.figures
    plots = [
        _plot(
            f"ROC, area {_number(found.auroc)}", "false-positive rate", "recall", roc_points(labels, scores),
            guess=((0.0, 0.0), (1.0, 1.0)),
        ),
        _plot(
            f"Precision and recall, area {_number(found.auprc)}", "recall", "precision",
            precision_recall_points(labels, scores) if found.auprc is not None else None,
        ),
        _plot(
            f"Reliability, calibration error {_number(found.ece)}", "mean score", "share unsafe",
            [(one_bin.mean_score, one_bin.unsafe_share) for one_bin in bins],
            guess=((0.0, 0.0), (1.0, 1.0)),
            sizes=[one_bin.rows for one_bin in bins],
        ),
    ]  # fmt: skip
    return f"<div class=plots>{''.join(plots)}</div>"


def _plot(
    caption: str,
    x_name: str,
    y_name: str,
    points: Points | None,
    *,
    guess: Points = (),
    sizes: Sequence[int] = (),
) -> str:
    """One square diagram over 0..1; with ``sizes``, dots whose area is the share of rows."""
    if not points:
        return f"<figure><p class=dim>{escape(caption)}: needs rows of both classes.</p></figure>"
    far = _SIZE + _PAD
    parts = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = _place((tick, tick))
        grid = f"M{x:.1f} {_PAD / 2:.1f}V{_PAD / 2 + _SIZE:.1f}M{_PAD:.1f} {y:.1f}H{far:.1f}"
        parts.append(f'<path class=grid d="{grid}"/>')
        parts.append(f'<text x="{x:.1f}" y="{far:.1f}" text-anchor="middle">{tick:g}</text>')
        parts.append(f'<text x="{_PAD - 4:.1f}" y="{y + 3:.1f}" text-anchor="end">{tick:g}</text>')
    if guess:
        parts.append(f'<path class=guess d="{_path(guess)}"/>')
    parts.append(f'<path class=curve d="{_path(_thinned(points))}"/>')
    for point, rows in zip(points, sizes, strict=False):
        x, y = _place(point)
        radius = 2 + 8 * (rows / sum(sizes)) ** 0.5
        parts.append(
            f'<circle class=dot cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"><title>{rows:,} rows</title></circle>'
        )
    middle = (_PAD + far) / 2
    parts.append(f'<text x="{middle:.1f}" y="{far + 13:.1f}" text-anchor="middle">{escape(x_name)}</text>')
    parts.append(
        f'<text transform="rotate(-90)" x="{-middle + _PAD / 2:.1f}" y="8" text-anchor="middle">{escape(y_name)}</text>'
    )
    return (
        f'<figure><svg viewBox="0 0 {far + 10:.0f} {far + 18:.0f}" role="img" aria-label="{escape(caption)}">'
        f"{''.join(parts)}</svg><figcaption>{escape(caption)}</figcaption></figure>"
    )


def _place(point: tuple[float, float]) -> tuple[float, float]:
    return _PAD + point[0] * _SIZE, _PAD / 2 + (1 - point[1]) * _SIZE


def _path(points: Points) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in map(_place, points))


def _thinned(points: Points) -> Points:
    if len(points) <= _MOST_POINTS:
        return points
    return [points[round(place)] for place in np.linspace(0, len(points) - 1, _MOST_POINTS)]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _range(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{low:.3f} to {high:.3f}"

"""The diagrams of a report, as inline SVG: decisions over time, and scores with the thresholds they are held against.

Colours come from classes of the page's style, numbers are in units of the drawing. Every bar has a title that says its
figure, so that nothing can be read from a colour or a height alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta, timezone

from guardrail.logscan.report import BINS, Report
from guardrail.page import counted, shown, table

__all__ = ["histogram", "timeline"]

_WIDTH, _HEIGHT, _LEFT, _TOP = 640.0, 160.0, 44.0, 10.0
_STACK = ("block", "retry", "flag", "bad_row", "allow")
_NAMES = {"bad_row": "bad row"}
_MOST_BARS = 60
_UNITS_H = (1, 3, 6, 12, 24, 7 * 24, 28 * 24, 91 * 24, 364 * 24)


def timeline(report: Report) -> str:
    """Decisions over time, as stacked bars and as a table; a sentence where no row has a time."""
    if not report.hours:
        return (
            "<p class=dim>The rows carry no time. A scan keeps one with <code>--keep-fields timestamp</code>, "
            "or whatever the log calls it.</p>"
        )
    bars, unit_h = _bars(report)
    top = max(sum(bar.values()) for bar in bars.values())
    step = (_WIDTH - _LEFT) / len(bars)
    parts = [_axis(top)]
    for number, (start, bar) in enumerate(bars.items()):
        y = _TOP + _HEIGHT
        for name in _STACK:
            if rows := bar.get(name, 0):
                height = rows / top * _HEIGHT
                y -= height
                parts.append(
                    f'<rect class=i-{name} x="{_LEFT + number * step:.1f}" y="{y:.1f}" '
                    f'width="{max(step - 1, 1):.1f}" height="{height:.1f}">'
                    f"<title>{_day(start, unit_h)}: {rows:,} {_NAMES.get(name, name)}</title></rect>"
                )
    names = [_day(start, unit_h) for start in bars]
    for place, anchor in ((0, "start"), (len(names) - 1, "end"))[: len(names)]:
        x = _LEFT if anchor == "start" else _WIDTH
        parts.append(f'<text x="{x:.0f}" y="{_TOP + _HEIGHT + 14:.0f}" text-anchor="{anchor}">{names[place]}</text>')
    shown_names = [name for name in _STACK if any(name in bar for bar in bars.values())]
    legend = " ".join(f"<span class=k-{name}>{_NAMES.get(name, name)}</span>" for name in shown_names)
    heads = ("from", *(_NAMES.get(name, name) for name in shown_names))
    rows_of = [
        [name, *(f"{bar.get(column, 0):,}" for column in shown_names)]
        for name, bar in zip(names, bars.values(), strict=True)
    ]
    missing = (
        f" {counted(report.without_time, 'row')} without a time that could be read." if report.without_time else ""
    )
    return (
        f'<figure><svg class=time viewBox="0 0 {_WIDTH:.0f} {_TOP + _HEIGHT + 20:.0f}" role="img" '
        f'aria-label="Decisions over time; the table below has the figures">{"".join(parts)}</svg>'
        f"<figcaption>Rows for each {_unit(unit_h)}, in UTC: <span class=keys>{legend}</span>{missing}</figcaption>"
        f"</figure><details><summary>The same as a table</summary>{table(heads, rows_of)}</details>"
    )


def _bars(report: Report) -> tuple[dict[int, dict[str, int]], int]:
    """Rows by the hour a bar starts at and by action, gaps filled; and the hours of a bar."""
    hours = [hour for hour, _ in report.hours]
    first, last = min(hours), max(hours)
    unit_h = next((unit for unit in _UNITS_H if last // unit - first // unit < _MOST_BARS), _UNITS_H[-1])
    bars: dict[int, dict[str, int]] = {number * unit_h: {} for number in range(first // unit_h, last // unit_h + 1)}
    for (hour, action), rows in report.hours.items():
        bar, name = bars[hour // unit_h * unit_h], action or "bad_row"
        bar[name] = bar.get(name, 0) + rows
    return bars, unit_h


def _day(hour: int, unit_h: int) -> str:
    when = datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(hours=hour)
    return when.strftime("%Y-%m-%d %H:00" if unit_h < 24 else "%Y-%m-%d")


def _unit(unit_h: int) -> str:
    if unit_h < 24:
        return "hour" if unit_h == 1 else f"{unit_h} hours"
    return "day" if unit_h == 24 else f"{unit_h // 24} days"


def _axis(top: int) -> str:
    parts = []
    for share in (0.0, 0.5, 1.0):
        y = _TOP + _HEIGHT * (1 - share)
        parts.append(f'<path class=grid d="M{_LEFT:.0f} {y:.1f}H{_WIDTH:.0f}"/>')
        if top * share % 1 == 0 or top > 100:  # of one row, a half has no name
            parts.append(f'<text x="{_LEFT - 4:.0f}" y="{y + 3:.1f}" text-anchor="end">{top * share:,.0f}</text>')
    return "".join(parts)


def histogram(title: str, bins: Sequence[int], thresholds: Mapping[float, str]) -> str:
    """Scores of one category, on a logarithmic scale of rows, with thresholds as lines.

    Args:
        title: The category, for people.
        bins: Rows in each of ``BINS`` bins of equal width over 0..1.
        thresholds: Threshold -> whose it is, e.g. ``"prompt: block"``.
    """
    width, height, left, top = 200.0, 70.0, 6.0, 8.0
    most = math.log1p(max(bins)) or 1.0
    parts = []
    for number, rows in enumerate(bins):
        if rows:
            tall = max(math.log1p(rows) / most * height, 1.0)
            low, high = number / BINS, (number + 1) / BINS
            parts.append(
                f'<rect class=bar x="{left + low * width:.1f}" y="{top + height - tall:.1f}" '
                f'width="{width / BINS - 1:.1f}" height="{tall:.1f}">'
                f"<title>{low:.2f} to {high:.2f}: {counted(rows, 'row')}</title></rect>"
            )
    parts.append(f'<path class=grid d="M{left} {top + height}H{left + width}"/>')
    for tick, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        x = left + tick * width
        parts.append(f'<text x="{x:.1f}" y="{top + height + 12:.1f}" text-anchor="{anchor}">{tick:g}</text>')
    for threshold, whose in sorted(thresholds.items()):
        x = left + threshold * width
        parts.append(
            f'<path class=limit d="M{x:.1f} {top - 4:.1f}V{top + height:.1f}">'
            f"<title>{shown(whose)} from {threshold:g} on</title></path>"
        )
    lines = "; ".join(f"{whose} from {threshold:g}" for threshold, whose in sorted(thresholds.items()))
    note = f"<br><span class=limits>{shown(lines)}</span>" if lines else ""
    above = f", {counted(sum(bins[BINS // 2 :]), 'row')} from 0.5 on"
    return (
        f'<figure><svg viewBox="0 0 {left + width + 6:.0f} {top + height + 16:.0f}" role="img" '
        f'aria-label="Scores: {shown(title)}{above}">{"".join(parts)}</svg>'
        f"<figcaption>{shown(title)}{above}{note}</figcaption></figure>"
    )

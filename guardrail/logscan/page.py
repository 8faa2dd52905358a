"""A report of a log scan as one HTML page that needs nothing else, for people who were not there.

The page is complete without JavaScript; the one inline script adds filters and sorting to the table of rows. Texts are
in the page only where they were joined (``report_samples.join_texts``), and stay closed until somebody opens them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from itertools import islice

import guardrail
from guardrail.logscan.report import Report, Weakness
from guardrail.logscan.report_charts import histogram, timeline
from guardrail.logscan.report_samples import SORTS, Sample
from guardrail.page import counted, document, shown, table, tiles
from guardrail.policy import Policy
from guardrail.taxonomy import HazardCategory
from guardrail.verdict import Action, Rail

__all__ = ["render_page"]

_STYLE = """
:root{--block:#b3261e;--retry:#7a3fb0;--flag:#8a5a00;--allow:#1a7f4b;--bad_row:#5c636b}
@media (prefers-color-scheme:dark){:root{--block:#ff8a80;--retry:#c79bff;--flag:#f0b45c;--allow:#6fd39d;
--bad_row:#9aa3ac}}
.i-block{fill:var(--block)}.i-retry{fill:var(--retry)}.i-flag{fill:var(--flag)}.i-allow{fill:var(--allow);opacity:.45}
.i-bad_row{fill:var(--bad_row)}.bar{fill:var(--ink)}.limit{stroke:var(--warn);stroke-width:1.5;fill:none}
.limits{color:var(--warn)}
.keys span::before{content:"";display:inline-block;width:.7em;height:.7em;margin:0 .3em 0 .5em;border-radius:.15em;
background:currentColor}
.k-block{color:var(--block)}.k-retry{color:var(--retry)}.k-flag{color:var(--flag)}.k-allow{color:var(--allow)}
.k-bad_row{color:var(--bad_row)}
.note{border-left:.25rem solid var(--warn);padding:.1rem .8rem;margin:.8rem 0}
#filter{display:flex;flex-wrap:wrap;gap:.6rem;align-items:end;margin:.8rem 0}#filter[hidden]{display:none}
#filter label{font-size:.8rem;color:var(--dim)}
#filter select,#filter input{display:block;font:inherit;font-size:.95rem;padding:.35rem .5rem;border-radius:.4rem;
border:1px solid var(--line);background:var(--card);color:var(--fg);max-width:100%}
#rows th,#rows td{text-align:left;vertical-align:top}#rows td:nth-child(1),#rows td:nth-child(5){text-align:right}
#rows td:nth-child(6),#rows td:nth-child(8){white-space:normal;overflow-wrap:anywhere}
#rows td:nth-child(8){min-width:14rem}#rows td:nth-child(6){min-width:9rem}
#rows th:first-child,#rows td:first-child{white-space:nowrap;overflow-wrap:normal}
#rows tr[hidden]{display:none}
.rules th:last-child,.rules td:last-child{text-align:left;white-space:normal;min-width:18rem}
#rows th button{all:unset;cursor:pointer}#rows th button:focus-visible{outline:2px solid var(--ink)}
#rows th[aria-sort=ascending] button::after{content:" ▲"}#rows th[aria-sort=descending] button::after{content:" ▼"}
#rows summary{padding:0;color:var(--ink)}
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:var(--card);border:1px solid var(--line);
border-radius:.4rem;padding:.5rem;margin:.3rem 0;max-width:46rem;max-height:24rem;overflow:auto}
@media (max-width:40rem){svg.time{overflow:visible}svg.time text{font-size:15px}
.rules td:last-child{min-width:0}#rows td:nth-child(n){text-align:right;min-width:0}
#rows td:first-child::before{content:"row"}
#rows td:nth-child(2)::before{content:"decision"}#rows td:nth-child(3)::before{content:"sort"}
#rows td:nth-child(4)::before{content:"rail"}#rows td:nth-child(5)::before{content:"highest score"}
#rows td:nth-child(6)::before{content:"about"}#rows td:nth-child(7)::before{content:"time"}
#rows td:nth-child(8){display:block;text-align:left}#rows td:nth-child(8)::before{content:none}}
"""

# Rows are found by their cells, so nothing of them is said twice.
_SCRIPT = """
(function(){"use strict";
var form=document.getElementById("filter"),body=document.querySelector("#rows tbody"),
rows=Array.from(body.rows),count=document.getElementById("count"),
rank={allow:0,flag:1,retry:2,block:3};
function value(id){return document.getElementById(id).value}
function filter(){var sort=value("f-sort"),rail=value("f-rail"),about=value("f-about"),
words=value("f-words").toLowerCase(),seen=0;
rows.forEach(function(row){var cell=row.cells,ok=(!sort||cell[2].textContent===sort)&&
(!rail||cell[3].textContent===rail)&&(!about||cell[5].textContent.split(", ").indexOf(about)>=0)&&
(!words||row.textContent.toLowerCase().indexOf(words)>=0);row.hidden=!ok;if(ok)seen++});
count.textContent=seen.toLocaleString("en")+" of "+rows.length.toLocaleString("en")+" rows"}
function key(row,column){var text=row.cells[column].textContent;
if(column===0||column===4){return text?parseFloat(text.replace(/,/g,"")):-1}
if(column===1){return text in rank?rank[text]:-1}return text}
document.querySelectorAll("#rows thead th").forEach(function(head,column){
var button=document.createElement("button");button.type="button";button.textContent=head.textContent;
head.textContent="";head.appendChild(button);
button.addEventListener("click",function(){
var up=head.getAttribute("aria-sort")==="descending"||(column!==1&&column!==4&&!head.hasAttribute("aria-sort"));
document.querySelectorAll("#rows thead th").forEach(function(other){other.removeAttribute("aria-sort")});
head.setAttribute("aria-sort",up?"ascending":"descending");
var keyed=rows.map(function(row,place){return[key(row,column),place,row]});
keyed.sort(function(a,b){var order=typeof a[0]==="number"?a[0]-b[0]:
a[0].localeCompare(b[0],undefined,{numeric:true});return (up?order:-order)||a[1]-b[1]});
rows=keyed.map(function(one){body.appendChild(one[2]);return one[2]})})});
form.addEventListener("input",filter);form.addEventListener("submit",function(event){event.preventDefault()});
form.reset();form.hidden=false;filter()})();
"""

# What texts may take of a page that should stay below 2 MB.
_TEXT_BYTES = 700_000
_TEXT_CHARS = 4000
_MOST_LINES = 30


def render_page(
    report: Report,
    samples: Sequence[Sample],
    seen: Mapping[str, int],
    *,
    policy: Policy | None = None,
    title: str = "Log scan",
) -> str:
    """Returns the page, in HTML 5.

    Args:
        report: The figures.
        samples: The rows of the table.
        seen: Sort of row -> how many there are in all.
        policy: Whose thresholds are drawn; None draws those that scores have reached.
        title: The page's title.
    """
    has_rows = bool(samples)
    body = "\n".join(
        [
            _header(report, title),
            _tiles(report),
            _notes(report),
            _decisions(report),
            f"<h2>Decisions over time</h2>{timeline(report)}",
            _hazards(report),
            _scores(report, policy),
            _code(report),
            _unverified(report),
            _rows(samples, seen) if has_rows else "",
            "<h2>What the figures mean</h2>" + "".join(f"<p class=dim>{line}</p>" for line in _MEANINGS),
        ]
    )
    return document(title, body, style=_STYLE, script=_SCRIPT if has_rows else "")


_MEANINGS = (
    "A row is one judged message. <b>allow</b>: it may pass. <b>flag</b>: it may pass, and somebody should look. "
    "<b>retry</b>: an answer was to be generated again. <b>block</b>: it must not pass.",
    "A score is the model's, from 0 to 1, higher is riskier; it is no probability that a person was harmed. A policy "
    "takes an action from its threshold on.",
    "Unverified: a judge that was asked gave no answer. Such a row is not safe, only unknown.",
    "Findings in code are rule hits: places to look at, each with a weakness from the CWE list. A row may have many.",
)


def _header(report: Report, title: str) -> str:
    policies = ", ".join(f"{name} ({policy_hash})" for name, policy_hash in report.policies) or "none"
    lines = [
        f"<h1>{shown(title)}</h1>",
        f"<p class=dim>policy <code>{shown(policies)}</code><br>judged by "
        f"<code>{shown(', '.join(report.judges) or 'nobody')}</code><br>guardrail {shown(guardrail.__version__)}</p>",
    ]
    if report.times is not None:
        first, last = report.times
        lines.append(f"<p class=dim>rows from {first:%Y-%m-%d %H:00} to {last:%Y-%m-%d %H:59}, UTC</p>")
    return "\n".join(lines)


def _notes(report: Report) -> str:
    notes = []
    if report.unverified:
        notes.append(
            f"{report.unverified:,} of {counted(_decided(report), 'row')} could not be judged in full. "
            "The figures of hazards and findings do not cover what was not judged."
        )
    if report.bad:
        notes.append(f"{counted(report.bad, 'row')} could not be read, and so not judged at all.")
    if len(report.policies) > 1:
        notes.append("The results come from more than one policy: decisions cannot be compared across them.")
    if not report.rows:
        notes.append("There is no row in the results.")
    return "".join(f"<p class=note>{note}</p>" for note in notes)


def _decided(report: Report) -> int:
    return report.rows - report.bad


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "-"


def _tiles(report: Report) -> str:
    decided = _decided(report)
    blocked = report.total(Action.BLOCK) + report.total(Action.RETRY)
    flagged, findings = report.total(Action.FLAG), sum(one.findings for one in report.weaknesses.values())
    kinds = len(report.weaknesses)
    weaknesses = "1 weakness" if kinds == 1 else f"{kinds:,} weaknesses"
    code_rows = f"{weaknesses}, {counted(len(report.rules), 'rule')}"
    return tiles(
        [
            ("rows", f"{report.rows:,}", f"{decided:,} judged"),
            ("blocked", f"{blocked:,}", _share(blocked, decided)),
            ("flagged", f"{flagged:,}", _share(flagged, decided)),
            ("unverified", f"{report.unverified:,}", _share(report.unverified, decided)),
            ("bad rows", f"{report.bad:,}", _share(report.bad, report.rows)),
            ("findings in code", f"{findings:,}", code_rows if findings else ""),
        ]
    )


def _decisions(report: Report) -> str:
    decided = _decided(report)
    lines = [
        [
            action.value,
            *(f"{report.decisions[rail.value, action.value]:,}" for rail in Rail),
            f"{report.total(action):,}",
            _share(report.total(action), decided),
        ]
        for action in Action
    ]
    return f"<h2>Decisions</h2>{table(('decision', 'prompts', 'responses', 'rows', 'share'), lines)}"


def _hazards(report: Report) -> str:
    lines = [
        [category.title, f"{report.categories[category.value]:,}"]
        + [f"{report.asked[category.value, action.value]:,}" for action in Action if action is not Action.ALLOW]
        for category in HazardCategory
        if report.categories[category.value] or any(report.asked[category.value, action.value] for action in Action)
    ]
    head = ("hazard category", "rows it is named in", "asks for a flag", "for a retry", "for a block")
    return "<h2>Hazard categories</h2>" + (table(head, lines) if lines else "<p>None was found.</p>")


def _scores(report: Report, policy: Policy | None) -> str:
    names = [c.value for c in HazardCategory if c.value in report.histograms]
    if not names and "unsafe" not in report.histograms:
        return ""
    plots = [
        histogram(HazardCategory(name).title, report.histograms[name], _thresholds(report, policy, name))
        for name in names
    ]
    if "unsafe" in report.histograms:
        plots.insert(0, histogram("Unsafe at all", report.histograms["unsafe"], _thresholds(report, policy, "unsafe")))
    whose = (
        f"Lines are the thresholds of policy {shown(policy.name)}."
        if policy is not None
        else "Lines are the thresholds that scores have reached; those of the policy as a whole are not stored "
        "(<code>--policy</code> draws them)."
    )
    return (
        f"<h2>Scores</h2><p class=dim>Rows by score, on a logarithmic scale. {whose}</p>"
        f"<div class=plots>{''.join(plots)}</div>"
    )


def _thresholds(report: Report, policy: Policy | None, name: str) -> dict[float, str]:
    """Threshold -> whose it is and what it asks for."""
    found: dict[float, list[str]] = {}
    for rail in Rail:
        if policy is not None:
            rules = policy.rails[rail]
            rule = rules.unsafe if name == "unsafe" else rules.rule(HazardCategory(name))
            found.setdefault(rule.threshold, []).append(f"{rail.value}: {rule.action.value}")
        else:
            for threshold in report.thresholds.get((rail.value, name), ()):
                found.setdefault(threshold, []).append(rail.value)
    return {threshold: ", ".join(whose) for threshold, whose in found.items()}


def _code(report: Report) -> str:
    if not report.weaknesses:
        return "<h2>Weaknesses in code</h2><p>None was found.</p>"
    rules = [
        [f"{rule_id} ({one.cwe})", one.worst, f"{one.findings:,}", f"{one.rows:,}", one.about]
        for rule_id, one in _most(report.rules)
    ]
    more = len(report.rules) - len(rules)
    note = f"<p class=dim>{more:,} more rules were hit less often.</p>" if more > 0 else ""
    return (
        f"<h2>Weaknesses in code</h2>{_weaknesses('weakness', report.weaknesses)}"
        f"<h2>Languages of the findings</h2>{_weaknesses('language', report.languages)}"
        f"<h2>Most frequent rules</h2><div class=rules>"
        f"{table(('rule', 'severity', 'findings', 'rows', 'what it says'), rules)}</div>{note}"
    )


def _weaknesses(name: str, group: Mapping[str, Weakness]) -> str:
    lines = [
        [key, f"{one.findings:,}", f"{one.rows:,}"]
        + [f"{one.severities[severity]:,}" for severity in ("error", "warning", "info")]
        for key, one in _most(group)
    ]
    more = len(group) - len(lines)
    note = f"<p class=dim>{more:,} more are found less often.</p>" if more > 0 else ""
    return table((name, "findings", "rows", "error", "warning", "info"), lines) + note


def _most(group: Mapping[str, Weakness]) -> Iterable[tuple[str, Weakness]]:
    return islice(sorted(group.items(), key=lambda item: (-item[1].findings, item[0])), _MOST_LINES)


def _unverified(report: Report) -> str:
    parts = [
        f"<h2>Not verified</h2><p>{counted(report.unverified, 'row')}, "
        f"{_share(report.unverified, _decided(report))} of those with a decision, without an answer.</p>"
    ]
    for head, counter in (
        (("why there was no answer", "verdicts"), report.failures),
        (("language of code that no rule could examine", "rows"), report.unscanned),
        (("why a row could not be read", "rows"), report.bad_rows),
    ):
        if counter:
            parts.append(table(head, [[why, f"{count:,}"] for why, count in counter.most_common(_MOST_LINES)]))
    return "".join(parts)


def _rows(samples: Sequence[Sample], seen: Mapping[str, int]) -> str:
    counts = {sort: sum(sample.sort == sort for sample in samples) for sort in SORTS}
    shares = ", ".join(f"{counts[sort]:,} of {seen[sort]:,} {sort}" for sort in SORTS if seen[sort])
    texts = [sample.text for sample in samples if sample.text is not None]
    limit = _text_limit(texts)
    note = (
        f"<p class=note>This page holds {len(texts):,} texts of the log. Open one only if you need to.</p>"
        if texts
        else "<p class=dim>No text of the log is in this page.</p>"
    )
    about = sorted({cause for sample in samples for cause in sample.causes})
    heads = ("row", "decision", "sort", "rail", "highest score", "about", "time", "where")
    top = "".join(f'<th scope="col">{name}</th>' for name in heads)
    body = "\n".join(_row(sample, limit) for sample in samples)
    return (
        f"<h2>Rows</h2><p class=dim>{shown(shares)}; within each sort chosen at random.</p>{note}"
        f"<form id=filter hidden>{_select('sort', SORTS)}{_select('rail', [rail.value for rail in Rail])}"
        f"{_select('about', about)}<label>words<input type=search id=f-words></label>"
        f"<output id=count></output></form>"
        f"<div class=wide><table id=rows><thead><tr>{top}</tr></thead><tbody>\n{body}\n</tbody></table></div>"
    )


def _select(name: str, values: Iterable[str]) -> str:
    options = "".join(f"<option>{shown(value)}</option>" for value in values)
    return f'<label>{name}<select id=f-{name}><option value="">all</option>{options}</select></label>'


def _row(sample: Sample, limit: int) -> str:
    risk = "" if sample.risk is None else f"{sample.risk:.3f}"
    when = "" if sample.when is None else f"{datetime.fromtimestamp(sample.when, timezone.utc):%Y-%m-%d %H:%M}"
    where = shown(sample.place if sample.id == sample.place else f"{sample.place} · {sample.id}")
    detail = f"<br><span class=dim>{shown(sample.detail)}</span>" if sample.detail else ""
    action = sample.action or "none"
    cells = (
        f"{sample.order:,}",
        f"<b class=k-{sample.action or 'bad_row'}>{action}</b>",
        sample.sort,
        sample.rail or "",
        risk,
        shown(", ".join(sample.causes)),
        when,
        where + detail + _text(sample.text, limit),
    )
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _text(text: str | None, limit: int) -> str:
    if text is None:
        return ""
    text = text.replace("\r\n", "\n")
    cut = f", the first {limit:,} shown" if len(text) > limit else ""
    # A line feed right behind <pre> would not count.
    return (
        f"<details><summary>text, {len(text):,} characters{cut}</summary><pre>\n{shown(text[:limit])}</pre></details>"
    )


def _text_limit(texts: Sequence[str]) -> int:
    """Characters of each text, the most for which all texts together keep to their share of the page."""
    low, high = 0, min(max((len(text) for text in texts), default=0), _TEXT_CHARS)
    while low < high:
        middle = (low + high + 1) // 2
        if sum(len(shown(text[:middle]).encode()) for text in texts) <= _TEXT_BYTES:
            low = middle
        else:
            high = middle - 1
    return low

"""What guardrail's HTML pages share: the look, escaping, tables, and the frame that needs nothing from outside.

A page is one file: no network, inline styles and SVG, and at most one inline script. The content-security policy names
both by their hashes and forbids everything else, so that a log's text could not run even if it escaped the escaping.
Light and dark follow the reader's setting; on a narrow screen each row of a table becomes a card.

Sources: HTML Living Standard, 13.1.2 (what may stand in a page); CSP Level 3, 2.3.1 (hash sources).
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Sequence
from html import escape

__all__ = ["counted", "document", "shown", "table", "tiles"]

_STYLE = """
:root{color-scheme:light dark;--bg:#fff;--fg:#1c1e21;--dim:#5c636b;--line:#dcdfe3;--card:#f6f7f9;
--ink:#1f5fbf;--warn:#9a5b00}
@media (prefers-color-scheme:dark){:root{--bg:#14171a;--fg:#e6e8ea;--dim:#9aa3ac;--line:#333a41;--card:#1c2126;
--ink:#7db2ff;--warn:#f0b45c}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:72rem;padding:1.5rem 1rem 4rem;background:var(--bg);color:var(--fg);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
h1{font-size:1.6rem;margin:0 0 .25rem}h2{font-size:1.2rem;margin:2.2rem 0 .6rem}p{margin:.4rem 0;max-width:46rem}
h1,h2,p{overflow-wrap:anywhere}
.dim{color:var(--dim)}.warn{color:var(--warn);font-weight:600}code{overflow-wrap:anywhere}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(8.5rem,1fr));gap:.7rem;margin:1rem 0;padding:0}
.tiles div{background:var(--card);border:1px solid var(--line);border-radius:.6rem;padding:.6rem .8rem}
.tiles dt{color:var(--dim);font-size:.8rem}.tiles dd{margin:0;font-size:1.35rem;font-variant-numeric:tabular-nums}
.tiles small{display:block;color:var(--dim);font-size:.75rem}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(16rem,1fr));gap:1rem}
figure{margin:0;background:var(--card);border:1px solid var(--line);border-radius:.6rem;padding:.6rem}
figcaption{color:var(--dim);font-size:.85rem;padding:.2rem .2rem 0}
svg{display:block;width:100%;height:auto}svg text{fill:var(--dim);font-size:9px}
.frame{fill:none;stroke:var(--line)}.grid{stroke:var(--line);stroke-width:.5}.guess{stroke:var(--dim);
stroke-dasharray:3 3}
.curve{fill:none;stroke:var(--ink);stroke-width:2;stroke-linejoin:round}.dot{fill:var(--ink)}
.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:.9rem}
th,td{padding:.35rem .6rem;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left;white-space:normal;overflow-wrap:anywhere}
thead th{color:var(--dim);font-weight:600}tr.sum td{font-weight:600}
summary{cursor:pointer;padding:.5rem 0;overflow-wrap:anywhere}
@media (max-width:40rem){thead{position:absolute;clip-path:inset(50%);width:1px;height:1px;overflow:hidden}
table,tbody,tr,td{display:block}tr{background:var(--card);border:1px solid var(--line);border-radius:.6rem;
margin:.6rem 0;padding:.3rem .7rem}td{display:flex;justify-content:space-between;gap:1rem;border:0;padding:.15rem 0}
td:first-child{font-weight:600}td:empty{display:none}
td:not(:first-child)::before{content:attr(data-label);color:var(--dim)}}
"""

# What HTML does not allow, and what hides or turns the text behind it: zero-width characters, separators of lines and
# paragraphs, directions, private marks of interlinear text, surrogates and noncharacters.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufdd0-\ufdef\ufeff"
    "\ufff9-\uffff\U000e0000-\U000e007f"
    + "".join(f"{chr(plane + 0xFFFE)}{chr(plane + 0xFFFF)}" for plane in range(0x10000, 0x110000, 0x10000))
    + "]"
)


def document(title: str, body: str, *, style: str = "", script: str = "") -> str:
    """Returns a page in HTML 5.

    Args:
        title: Its title, which is escaped here.
        body: HTML, in which everything from outside has been escaped.
        style: Rules after the common ones.
        script: What runs at the end of the page; ``""`` for none.
    """
    css = _STYLE + style
    policy = f"default-src 'none'; style-src {_hash_source(css)}; "
    policy += f"script-src {_hash_source(script)}; " if script else ""
    policy += "base-uri 'none'; form-action 'none'"
    end = f"<script>{script}</script>\n" if script else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{shown(title)}</title>\n<style>{css}</style>\n</head>\n<body>\n{body}\n{end}</body>\n</html>\n"
    )


def shown(text: str) -> str:
    """Escapes text from outside, for content and for quoted attributes; what cannot be seen becomes ``\ufffd``."""
    return escape(_UNSEEN.sub("\ufffd", text))


def counted(number: int, noun: str) -> str:
    """``1 row``, ``2,000 rows``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def tiles(figures: Iterable[tuple[str, str, str]]) -> str:
    """Figures side by side: name, value, and a note that may be empty."""
    cells = "".join(
        f"<div><dt>{shown(name)}</dt><dd>{shown(value)}<small>{shown(note)}</small></dd></div>"
        for name, value, note in figures
    )
    return f"<dl class=tiles>{cells}</dl>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, sums: int = 0) -> str:
    """A table of plain text; its last ``sums`` rows are set apart."""
    lines = list(rows)
    top = "".join(f'<th scope="col">{shown(name)}</th>' for name in head)
    body = []
    for number, row in enumerate(lines):
        cells = "".join(
            f'<td data-label="{shown(name)}">{shown(cell)}</td>' for name, cell in zip(head, row, strict=True)
        )
        body.append(f"<tr{' class=sum' if number >= len(lines) - sums else ''}>{cells}</tr>")
    return f"<div class=wide><table><thead><tr>{top}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"


def _hash_source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

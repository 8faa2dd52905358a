"""The report page in a real browser: filters, sorting, widths and colours, and log rows that hold script."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import Browser, find_chromium
from typer.testing import CliRunner

from guardrail import assembly
from guardrail.cli import app
from guardrail.pipeline import Guard
from guardrail.policy import load_policy
from guardrail.taxonomy import HazardCategory
from guardrail.testing import KeywordClassifier

CHROMIUM = find_chromium()
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")

SCRIPT = "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
ROWS: list[dict[str, Any]] = [
    {"id": f"row-{number}", "text": f"badword number {number}" if number % 3 == 0 else f"mild words {number}"}
    for number in range(12)
]
ROWS += [
    {"id": SCRIPT, "text": f"badword {SCRIPT} </pre></details></table>{SCRIPT}", "timestamp": "2026-02-01T00:00:00Z"},
    {"id": "answer", "prompt": "x", "response": "something rude", "timestamp": SCRIPT},
    {"id": "bad row", SCRIPT: "nothing to judge"},
]

SHOWN = "Array.from(document.querySelectorAll('#rows tbody tr')).filter(row => row.offsetParent !== null)"
FILTER = """(function(id, value) {
const field = document.getElementById(id); field.value = value;
field.dispatchEvent(new Event('input', {bubbles: true}))})"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a small scan, its texts joined."""
    folder = tmp_path_factory.mktemp("report")
    log, results, made = (folder / name for name in ("log.jsonl", "results.jsonl", "report.html"))
    log.write_text("".join(json.dumps(row) + "\n" for row in ROWS), "utf-8")
    classifier = KeywordClassifier({"badword": HazardCategory.HATE, "rude": HazardCategory.SEXUAL_CONTENT})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assembly, "build_guard", lambda settings: Guard(classifier, policy=load_policy("default")))
        for args in (
            ["scan", log, "-o", results, "-q", "--keep-fields", "timestamp"],
            ["report", results, "-o", made, "--texts", log, "--title", SCRIPT],
        ):
            done = CliRunner().invoke(app, [*map(str, args)])
            assert done.exit_code in (0, 4), done.output
    return made


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all tests."""
    assert CHROMIUM is not None
    with Browser(CHROMIUM, tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture
def opened(browser: Browser, page: Path) -> Browser:
    """The page, as it is when somebody opens it."""
    browser.messages.clear()
    browser.open(page)
    return browser


def column(browser: Browser, number: int) -> list[str]:
    """The cells of a column in the rows that are shown, as they stand below each other."""
    cells: list[str] = browser.evaluate(f"{SHOWN}.map(row => row.cells[{number}].textContent)")
    return cells


def choose(browser: Browser, field: str, value: str) -> list[str]:
    """Sets a filter, and returns the decisions of the rows that are left."""
    browser.evaluate(f"{FILTER}('f-{field}', {json.dumps(value)})")
    return column(browser, 1)


def test_script_in_a_log_is_text(opened: Browser) -> None:
    """Nothing of a log runs, in titles, ids or texts, also with every text open; the page's own script does."""
    opened.evaluate("document.querySelectorAll('details').forEach(one => {one.open = true})")
    assert opened.evaluate("document.title") == SCRIPT
    assert opened.evaluate("document.querySelectorAll('img, body script:not(:last-child)').length") == 0
    assert opened.evaluate("Array.from(document.querySelectorAll('#rows pre')).map(p => p.textContent)").count(
        f"badword {SCRIPT} </pre></details></table>{SCRIPT}"
    ) == 1  # fmt: skip
    assert any(SCRIPT in where for where in column(opened, 7))
    assert opened.evaluate("document.getElementById('filter').hidden") is False
    assert opened.messages == []  # no error, and nothing that the content-security policy had to stop


def test_what_is_injected_does_not_run(opened: Browser) -> None:
    """Behind the escaping stands the content-security policy: a script that is not the page's own is refused."""
    opened.evaluate(
        "document.body.appendChild(Object.assign(document.createElement('script'), {text: 'window.x = 1'}))"
    )
    assert opened.evaluate("typeof window.x") == "undefined"
    assert "Content Security Policy" in "".join(opened.messages)


def test_filters_narrow_the_rows_and_say_how_many_are_left(opened: Browser) -> None:
    """By sort, rail, cause and words, alone and together; an empty filter shows everything."""
    assert opened.evaluate("document.getElementById('count').textContent") == f"{len(ROWS)} of {len(ROWS)} rows"
    assert sorted(choose(opened, "sort", "blocked")) == ["block"] * 5 + ["retry"]
    assert opened.evaluate("document.getElementById('count').textContent") == f"6 of {len(ROWS)} rows"
    assert choose(opened, "rail", "response") == ["retry"]
    assert choose(opened, "sort", "") == ["retry"]
    choose(opened, "rail", "")
    assert choose(opened, "about", "Hate") == ["block"] * 5
    assert choose(opened, "words", "NUMBER 9") == ["block"]
    assert choose(opened, "words", "nowhere to be found") == []
    choose(opened, "words", "")
    assert len(choose(opened, "about", "")) == len(ROWS)


@pytest.mark.parametrize(("number", "name"), [(0, "row"), (1, "decision"), (4, "highest score"), (7, "where")])
def test_columns_sort_both_ways(opened: Browser, number: int, name: str) -> None:
    """A click sorts, another turns it round; numbers as numbers, decisions by strictness."""
    click = f"document.querySelectorAll('#rows thead button')[{number}].click()"
    opened.evaluate(click)
    first, direction = column(opened, number), opened.evaluate(
        f"document.querySelectorAll('#rows thead th')[{number}].getAttribute('aria-sort')"
    )  # fmt: skip
    opened.evaluate(click)
    second = column(opened, number)
    rank = ["none", "allow", "flag", "retry", "block"]
    keys = {0: lambda cell: int(cell), 1: rank.index, 4: lambda cell: float(cell or -1)}
    if number in keys:
        ordered = sorted(first, key=keys[number])
        assert first == (ordered if direction == "ascending" else ordered[::-1]), name
    assert len(set(first)) > 1
    assert [*map(keys.get(number, str), second)] == [*map(keys.get(number, str), first)][::-1]
    assert opened.evaluate("document.querySelectorAll('[aria-sort]').length") == 1


def test_sorting_keeps_the_filter(opened: Browser) -> None:
    """What was hidden stays hidden."""
    choose(opened, "sort", "blocked")
    opened.evaluate("document.querySelectorAll('#rows thead button')[4].click()")
    assert sorted(column(opened, 1)) == ["block"] * 5 + ["retry"]


def test_texts_are_closed_until_they_are_opened(opened: Browser) -> None:
    """Nobody reads a text who did not ask for it."""
    seen = "Array.from(document.querySelectorAll('#rows pre')).filter(one => one.checkVisibility()).length"
    assert opened.evaluate(seen) == 0
    opened.evaluate("document.querySelector('#rows summary').click()")
    assert opened.evaluate(seen) == 1


@pytest.mark.parametrize("is_dark", [False, True])
@pytest.mark.parametrize("width", [390, 1200])
def test_a_page_fits_its_window_and_can_be_read(browser: Browser, page: Path, width: int, is_dark: bool) -> None:
    """On a phone nothing is cut off at the side; in the dark, text is light."""
    browser.open(page, width=width, is_dark=is_dark)
    browser.evaluate("document.querySelectorAll('details').forEach(one => {one.open = true})")
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert contrast(browser) >= 7  # WCAG 2.2, 1.4.6
    assert (luminance(browser, "color") > luminance(browser, "backgroundColor")) is is_dark


def luminance(browser: Browser, name: str) -> float:
    """Relative luminance of a colour of the page, 0..1; source: WCAG 2.2, definition of relative luminance."""
    value = browser.evaluate(f"getComputedStyle(document.body).{name}")
    parts = [int(part) / 255 for part in value.removeprefix("rgb(").removesuffix(")").split(",")]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(browser: Browser) -> float:
    """Of text and ground, 1..21."""
    low, high = sorted(luminance(browser, name) for name in ("color", "backgroundColor"))
    return (high + 0.05) / (low + 0.05)


def test_the_page_asks_for_nothing(opened: Browser) -> None:
    """No network, no other file."""
    assert opened.evaluate("performance.getEntriesByType('resource').length") == 0

"""From a log to a page: ``guardrail scan``, ``policy replay`` and ``report`` read what the one before wrote."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from guardrail import assembly
from guardrail.cli import app
from guardrail.pipeline import Guard
from guardrail.policy import load_policy
from guardrail.taxonomy import HazardCategory
from guardrail.testing import KeywordClassifier

ROWS = [
    {"id": "a", "text": "one badword", "timestamp": "2026-01-05T10:00:00Z"},
    {"id": "b", "text": "a mild sentence", "timestamp": "2026-01-06T10:00:00Z"},
    {"id": "c", "nothing": "here"},
]


def run(*args: str | Path) -> Any:
    return CliRunner().invoke(app, [*map(str, args)], env={"COLUMNS": "100"})


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), "utf-8")
    return path


@pytest.fixture
def results(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    guard = Guard(KeywordClassifier({"badword": HazardCategory.HATE}), policy=load_policy("default"))
    monkeypatch.setattr(assembly, "build_guard", lambda settings: guard)
    path = tmp_path / "results.jsonl"
    done = run("scan", log, "-o", path, "-q", "--keep-fields", "timestamp")
    assert done.exit_code == 4, done.output
    return path


def test_a_scan_becomes_a_page_a_table_and_figures(results: Path, tmp_path: Path) -> None:
    """All outputs come of one reading, count the same rows, and hold no text."""
    page, table, sarif, figures = (tmp_path / name for name in ("r.html", "r.csv", "r.sarif", "r.json"))
    done = run("report", results, "-o", page, "--csv", table, "--sarif", sarif, "--json", figures)
    assert done.exit_code == 0, done.output
    html = page.read_text("utf-8")
    assert html.startswith("<!doctype html>")
    assert "2026-01-05" in html
    assert "badword" not in html
    assert [row["id"] for row in csv.DictReader(table.open(encoding="utf-8"))] == ["a", "b", "c"]
    assert json.loads(figures.read_text("utf-8"))["decisions"]["block"] == 1
    assert json.loads(sarif.read_text("utf-8"))["runs"][0]["results"] == []


def test_texts_are_joined_from_the_log_and_left_out_on_demand(results: Path, log: Path, tmp_path: Path) -> None:
    """``--texts`` puts the judged texts in; ``--no-text`` is stronger."""
    page = tmp_path / "r.html"
    done = run("report", results, "-o", page, "--texts", log)
    assert done.exit_code == 0, done.output
    assert "a mild sentence" in page.read_text("utf-8")
    assert "have no text" not in done.stderr
    run("report", results, "-o", page, "--texts", log, "--no-text")
    assert "a mild sentence" not in page.read_text("utf-8")


def test_texts_of_a_log_that_changed_are_told_to_be_missing(results: Path, log: Path, tmp_path: Path) -> None:
    """No text is shown under a decision that was made about another."""
    log.write_text(log.read_text("utf-8").replace("mild", "other"), "utf-8")
    page = tmp_path / "r.html"
    done = run("report", results, "-o", page, "--texts", log)
    assert "1 of 3 rows in the page have no text" in done.stderr
    assert "other sentence" not in page.read_text("utf-8")


def test_a_replay_can_be_reported(results: Path, tmp_path: Path) -> None:
    """What a policy would have decided gets its own page, from a gzipped file."""
    new, figures = tmp_path / "new.jsonl.gz", tmp_path / "r.json"
    assert run("policy", "replay", results, "--policy", "monitor", "-o", new).exit_code == 0
    assert gzip.decompress(new.read_bytes()).count(b"\n") == 3
    assert run("report", new, "--policy", "monitor", "--json", figures).exit_code == 0
    values = json.loads(figures.read_text("utf-8"))
    assert values["policies"][0]["name"] == "monitor"
    assert values["decisions"]["block"] == 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "name what to write"),
        (["-o", "{results}"], "is one of the results to read"),
        (["-o", "{folder}/a", "--csv", "{folder}/a"], "is named for two outputs"),
        (["-o", "{folder}/nowhere/a.html"], "cannot write"),
        (["-o", "{folder}/a", "--policy", "strict"], "did not make these decisions"),
        (["-o", "{folder}/a", "--texts", "{folder}/nowhere.csv"], "expected JSON Lines"),
        (["-o", "{folder}/a", "--texts", "{folder}/log.parquet"], "expected JSON Lines"),
    ],
)
def test_what_cannot_work_is_bad_usage(results: Path, tmp_path: Path, args: list[str], message: str) -> None:
    """The exit code is 2, the line says what to change, and no page is left behind."""
    done = run("report", results, *(a.format(results=results, folder=tmp_path) for a in args))
    assert done.exit_code == 2
    assert message in done.stderr
    assert not (tmp_path / "a").exists()


def test_a_file_that_holds_no_results_is_named_with_its_line(log: Path, tmp_path: Path) -> None:
    """The log itself is no result of its scan."""
    done = run("report", log, "-o", tmp_path / "r.html")
    assert done.exit_code == 2
    assert f"{log}:1: not a result" in done.stderr

"""``guardrail eval`` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from guardrail import assembly
from guardrail.cli import app
from guardrail.config import Settings
from guardrail.errors import ClassificationError, ConfigurationError
from guardrail.protocols import HazardClassifier
from guardrail.taxonomy import HazardCategory
from guardrail.testing import FailingClassifier, KeywordClassifier

ROWS = [
    {"text": "a badword", "unsafe": True, "categories": ["hate"]},
    {"text": "unseen", "unsafe": True, "categories": ["S9"]},
    {"text": "one badword", "unsafe": False},
    {"text": "fine", "unsafe": False},
]


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
    return path


def run(*args: str | Path) -> Any:
    return CliRunner().invoke(app, ["eval", *map(str, args)], env={"COLUMNS": "100"})


def use(monkeypatch: pytest.MonkeyPatch, classifier: HazardClassifier) -> list[Settings]:
    asked: list[Settings] = []

    def build(settings: Settings) -> HazardClassifier:
        asked.append(settings)
        return classifier

    monkeypatch.setattr(assembly, "build_classifier", build)
    return asked


@pytest.fixture
def keywords(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    return use(monkeypatch, KeywordClassifier({"badword": HazardCategory.HATE}))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write(tmp_path / "rows.jsonl", *ROWS)


class TestRun:
    def test_it_prints_and_writes_the_figures(self, keywords: list[Settings], rows: Path, tmp_path: Path) -> None:
        """One run gives the table, the JSON and the page; the classifier is the one that was named."""
        out, page = tmp_path / "out.json", tmp_path / "out.html"
        result = run(rows, "--classifier", "embedded", "--json", out, "--html", page, "--target-fpr", "0.5")
        assert result.exit_code == 0, result.output
        assert keywords[0].model == "embedded"
        assert "keyword-classifier@test" in result.stdout
        assert "chosen on these very rows" in result.stdout
        report = json.loads(out.read_text("utf-8"))
        assert report["classifier"]["name"] == "embedded"
        assert (report["overall"]["figures"]["recall"], report["overall"]["figures"]["fpr"]) == (0.5, 0.5)
        assert report["operating"] == {"target_fpr": 0.5, "threshold": 0.99}
        assert page.read_text("utf-8").startswith("<!doctype html>")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out.html", "out.json", "rows.jsonl"]

    def test_an_option_may_stand_before_the_files(self, keywords: list[Settings], rows: Path) -> None:
        """``eval`` without a subcommand is ``eval run``."""
        assert run("--latency-messages", "0", rows).exit_code == 0
        assert run("run", rows).exit_code == 0

    def test_a_bad_row_is_named_counted_and_left_out(self, keywords: list[Settings], tmp_path: Path) -> None:
        """File and line are on stderr; the rest is judged."""
        path = write(tmp_path / "rows.jsonl", *ROWS[:1], {"text": "secret", "unsafe": "yes"}, *ROWS[1:])
        out = tmp_path / "out.json"
        result = run(path, "--json", out)
        assert result.exit_code == 0
        assert f"bad row {path}:2: unsafe: expected true, false or null, got str" in result.stderr
        assert "1 bad rows left out" in result.stderr
        assert "secret" not in result.output
        counts = json.loads(out.read_text("utf-8"))["overall"]["counts"]
        assert (counts["read"], counts["bad"]) == (4, 1)

    def test_strict_stops_at_a_bad_row(self, keywords: list[Settings], tmp_path: Path) -> None:
        """Nothing is judged or written."""
        path = write(tmp_path / "rows.jsonl", *ROWS, "{")
        result = run(path, "--strict", "--json", tmp_path / "out.json")
        assert result.exit_code == 2
        assert "1 bad rows; without --strict they are left out" in result.stderr
        assert keywords == []
        assert not (tmp_path / "out.json").exists()

    def test_unverified_rows_are_an_exit_code(
        self, monkeypatch: pytest.MonkeyPatch, rows: Path, tmp_path: Path
    ) -> None:
        """The report is written, the count is said, and the command is not silently green."""
        use(monkeypatch, FailingClassifier(ClassificationError("no"), on="unseen"))
        out = tmp_path / "out.json"
        result = run(rows, "--json", out)
        assert result.exit_code == 4
        assert "1 of 4 rows could not be judged and are in no figure" in result.stderr
        assert json.loads(out.read_text("utf-8"))["overall"]["counts"]["unverified_unsafe"] == 1
        assert run(rows, "--allow-unjudged").exit_code == 0

    def test_what_cannot_work_is_said_before_a_row_is_judged(
        self, keywords: list[Settings], rows: Path, tmp_path: Path
    ) -> None:
        """A missing file, an empty one, a missing folder, an output over an input: exit code 2, no classifier built."""
        empty = write(tmp_path / "empty.jsonl")
        same = tmp_path / "x"
        for args, error in [
            ((tmp_path / "none.jsonl",), "No such file"),
            ((empty,), "there is no row to judge"),
            ((rows, "--json", tmp_path / "none/out.json"), "there is no folder"),
            ((rows, "--json", tmp_path), "is a folder"),
            ((rows, "--html", rows), "is one of the files to read"),
            ((rows, "--json", same, "--html", same), "name the same file"),
        ]:
            result = run(*args)
            assert result.exit_code == 2, args
            assert error in result.stderr
        assert keywords == []

    def test_an_unknown_classifier_is_refused(self, rows: Path) -> None:
        """The error lists the known ones, the cascade among them."""
        result = run(rows, "--classifier", "nobody")
        assert result.exit_code == 2
        assert "cascade" in result.stderr

    def test_the_guard_of_a_cascade_must_be_there(self, monkeypatch: pytest.MonkeyPatch, rows: Path) -> None:
        """A guard that cannot be built is an error, not an evaluation of the embedded model alone."""

        def load(*args: object, **options: object) -> object:
            raise ConfigurationError("no weights here")

        monkeypatch.delenv("GUARDRAIL_GUARD_URL", raising=False)
        monkeypatch.setattr("guardrail.models.transformers.TransformersGuardModel.load", load)
        result = run(rows, "--classifier", "cascade")
        assert result.exit_code == 2
        assert "no weights here" in result.stderr

    def test_the_embedded_model_is_evaluated_for_real(self, rows: Path, tmp_path: Path) -> None:
        """Nothing is faked: the shipped model judges, and its revision is in the report."""
        out = tmp_path / "out.json"
        assert run(rows, "--classifier", "embedded", "--json", out, "--latency-messages", "2").exit_code == 0
        report = json.loads(out.read_text("utf-8"))
        assert report["classifier"]["model"] == "guardrail-embedded"
        assert report["speed"]["latency"]["messages"] == 2
        assert all(0.0 <= row["score"] <= 1.0 for row in report["sets"][0]["rows"])


class TestTwoRuns:
    @pytest.fixture
    def reports(self, monkeypatch: pytest.MonkeyPatch, rows: Path, tmp_path: Path) -> list[Path]:
        paths = []
        for name, words in [("a", ["badword"]), ("b", ["badword", "unseen"])]:
            use(monkeypatch, KeywordClassifier(dict.fromkeys(words, HazardCategory.HATE)))
            paths.append(tmp_path / f"{name}.json")
            assert run(rows, "--json", paths[-1], "--latency-messages", "0").exit_code == 0
        return paths

    def test_diff_shows_what_moved(self, reports: list[Path]) -> None:
        """Figures with their change, and the rows that changed sides; as JSON, the same."""
        result = run("diff", *reports)
        assert result.exit_code == 0
        assert "1.000" in result.stdout
        assert "+0.500" in result.stdout
        found = json.loads(run("diff", *reports, "--json").stdout)
        assert found["schema"] == "guardrail.evaluation-diff/1"
        assert (found["overall"]["fixed"], found["overall"]["broken"], found["overall"]["p"]) == (1, 0, 1.0)
        assert (found["sets"][0]["before"]["recall"], found["sets"][0]["after"]["recall"]) == (0.5, 1.0)

    def test_cascade_chooses_settings_that_load(self, reports: list[Path]) -> None:
        """What is printed are settings; the shares and the budget are in the JSON."""
        result = run("cascade", *reports, "--miss-budget", "0")
        assert result.exit_code == 0
        printed = dict(line.split("=") for line in result.stdout.splitlines() if line.startswith("GUARDRAIL_"))
        # The guard alone finds one row unsafe, at 0.01: nothing below it is its.
        assert printed == {"GUARDRAIL_CASCADE_LOW": "0.01", "GUARDRAIL_CASCADE_HIGH": "0.5"}
        Settings(cascade_low=float(printed["GUARDRAIL_CASCADE_LOW"]), cascade_high=0.5)
        found = json.loads(run("cascade", *reports, "--miss-budget", "0", "--json").stdout)
        assert found["schema"] == "guardrail.evaluation-cascade/1"
        assert (found["rows"], found["passed"], found["saved"], found["saved_share"]) == (4, 0, 2, 0.5)

    def test_what_is_no_report_is_refused(self, rows: Path, reports: list[Path], tmp_path: Path) -> None:
        """A set in place of a report, and a missing file, are usage errors."""
        assert run("diff", reports[0], rows).exit_code == 2
        missing = run("diff", reports[0], tmp_path / "none.json")
        assert missing.exit_code != 0
        assert "none.json" in missing.stderr

"""The report of a scan: it counts what is stored, chooses rows fairly, and nothing from a log becomes markup."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from tinyhtml5.parser import HTMLParser

from guardrail.errors import InvalidInput
from guardrail.logscan import report_exports
from guardrail.logscan.page import render_page
from guardrail.logscan.report import Report, policy_of, time_of
from guardrail.logscan.report_exports import CsvWriter, SarifCollector
from guardrail.logscan.report_samples import Chooser, Sample, join_texts
from guardrail.logscan.rows import content_hash
from guardrail.page import shown
from guardrail.policy import load_policy, parse_policy
from guardrail.taxonomy import HazardCategory
from guardrail.verdict import (
    Action,
    Confidence,
    Conversation,
    Finding,
    Outcome,
    Rail,
    Severity,
    Source,
    Span,
    Verdict,
    unverified,
)

GUARD, SHIELD = Source("a-guard", "r1"), Source("code-shield", "rules-1")
DEFAULT = load_policy("default")
HOSTILE = [
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    "</pre></details></table><h1>x",
    "a\u2028b\u2029c\u202e\x00\x07\ud800\ufffe",
    "\"' onmouseover=alert(1) x='",
]
SCHEMA = json.loads((Path(__file__).parents[1] / "support/schemas/sarif-schema-2.1.0.json").read_text("utf-8"))


def hazard(score: float, category: HazardCategory = HazardCategory.HATE) -> Verdict:
    is_unsafe = score >= 0.5
    return Verdict(
        Outcome.UNSAFE if is_unsafe else Outcome.SAFE, GUARD, {category: score}, (category,) if is_unsafe else (), score
    )


def finding(rule_id: str = "python.sql", cwe: str = "CWE-89", severity: Severity = Severity.ERROR) -> Finding:
    return Finding(rule_id, cwe, severity, Span(3, 9), 2, 5, "python", "What is wrong.", Confidence.HIGH, "Mend it.")


def code(*findings: Finding) -> Verdict:
    return Verdict(Outcome.UNSAFE if findings else Outcome.SAFE, SHIELD, findings=findings)


def row(*verdicts: Verdict, rail: Rail = Rail.RESPONSE, **place: Any) -> Any:
    """A row as a scan stores it."""
    decision = DEFAULT.decide(rail, verdicts or (hazard(0.1), code()))
    return json.loads(json.dumps({"id": "log.jsonl:1", **place, **decision.to_dict()}))


BAD = {"id": "l:9", "decision": None, "outcome": "unverified", "error": "not JSON", "file": "l", "line": 9}


def counted(*rows: Any) -> tuple[Report, Chooser]:
    report, chooser = Report(), Chooser()
    for number, one in enumerate(rows, start=1):
        report.add(one)
        chooser.add("r.jsonl", number, one)
    return report, chooser


def page_of(*rows: Any, texts: list[Path] | None = None, **options: Any) -> str:
    report, chooser = counted(*rows)
    samples = chooser.chosen()
    if texts:
        join_texts(samples, texts)
    return render_page(report, samples, chooser.seen, policy=policy_of(report, None), **options)


def parsed(page: str) -> Any:
    """The page's tree, by a parser that keeps account of every error in it."""
    parser = HTMLParser(namespace_html_elements=False)
    tree = parser.parse(page)
    assert parser.errors == []
    return tree


def texts_of(tree: Any, path: str) -> list[str]:
    return ["".join(element.itertext()) for element in tree.iterfind(f".//{path}")]


class TestReport:
    def test_it_counts_decisions_hazards_findings_and_what_is_not_verified(self) -> None:
        """Each figure is of its own kind: rows, findings, verdicts."""
        two = code(finding(), replace(finding("python.hash", "CWE-328", Severity.WARNING), language="go"), finding())
        report, _ = counted(
            row(hazard(0.9), code()),
            row(hazard(0.1), two),
            row(unverified(GUARD, "deadline"), code()),
            row(hazard(0.1), Verdict(Outcome.UNVERIFIED, SHIELD, unscanned=("cobol",))),
            BAD,
        )
        assert (report.rows, report.bad, report.unverified) == (5, 1, 1)
        assert sum(report.total(action) for action in Action) == 4
        assert report.categories == {"hate": 1}
        assert report.failures == {"deadline": 1}
        assert report.unscanned == {"cobol": 1}
        assert report.bad_rows == {"not JSON": 1}
        sql = report.weaknesses["CWE-89"]
        assert (sql.findings, sql.rows, sql.worst) == (2, 1, "error")
        assert {name: one.findings for name, one in report.languages.items()} == {"python": 2, "go": 1}
        assert report.rules["python.hash"].about == "What is wrong."
        assert report.judges == {"a-guard@r1": 4, "code-shield@rules-1": 4}

    def test_scores_fall_into_bins_and_the_last_holds_one(self) -> None:
        """A score of 1 is counted, not lost behind the last bin."""
        report, _ = counted(*(row(hazard(score), code()) for score in (0.0, 0.049, 0.5, 0.999, 1.0)))
        bins = report.histograms["hate"]
        assert (bins[0], bins[10], bins[19], sum(bins)) == (2, 1, 2, 5)

    def test_the_json_form_holds_all_of_it(self) -> None:
        """Machines get every figure, and JSON can be made of it."""
        report, _ = counted(row(hazard(0.9), code(finding()), timestamp=1_760_000_000), BAD)
        values = json.loads(json.dumps(report.to_dict()))
        assert values["schema"] == "guardrail.report/1"
        assert values["rules"]["python.sql"] == {
            "findings": 1, "rows": 1, "info": 0, "warning": 0, "error": 1, "cwe": "CWE-89", "message": "What is wrong.",
        }  # fmt: skip
        assert values["hours"] == [{"hour": "2025-10-09T08:00:00+00:00", report_action(report): 1}]
        assert values["without_time"] == 1

    @pytest.mark.parametrize("name", ["rail", "policy", "verdicts", "findings", "categories", "reasons", "scores"])
    def test_a_row_that_lacks_a_field_is_an_error_that_names_it(self, name: str) -> None:
        """A report over other files than results ends with a sentence."""
        one = row()
        del one[name]
        with pytest.raises(InvalidInput, match=f"a field {name} is missing"):
            Report().add(one)

    @pytest.mark.parametrize(
        "change",
        [{"decision": "maybe"}, {"rail": 3}, {"scores": {"<b>": 0.5}}, {"categories": ["S9"]}, {"verdicts": 1}],
    )
    def test_a_row_with_a_wrong_value_is_an_error(self, change: dict[str, Any]) -> None:
        """Names that the page prints are those that guardrail knows."""
        with pytest.raises(InvalidInput, match="not a result of guardrail scan"):
            Report().add({**row(), **change})

    @pytest.mark.parametrize(
        ("place", "expected"),
        [
            ({"timestamp": 1_760_000_000}, 1_760_000_000),
            ({"timestamp": 1_760_000_000_500}, 1_760_000_000.5),
            ({"created_at": "2025-10-09T08:53:20Z"}, 1_760_000_000),
            ({"created_at": "2025-10-09T10:53:20+02:00"}, 1_760_000_000),
            ({"fields": {"time": "2025-10-09 08:53:20"}, "timestamp": 1}, 1_760_000_000),
            ({"ts": "1760000000"}, 1_760_000_000),
            ({"timestamp": "yesterday"}, None),
            ({"timestamp": True}, None),
            ({"timestamp": float("nan")}, None),
            ({"timestamp": 12}, None),
            ({"fields": {"lang": "de"}}, None),
        ],
    )
    def test_times_are_read_as_logs_write_them(self, place: dict[str, Any], expected: float | None) -> None:
        """ISO 8601 and the units of a Unix time; what cannot be one is none."""
        assert time_of(place) == expected


def report_action(report: Report) -> str:
    ((_, action),) = report.hours
    return action


class TestPolicy:
    def test_a_preset_is_known_by_its_hash(self) -> None:
        """Thresholds are drawn without being asked for where a preset was used."""
        report, _ = counted(row())
        found = policy_of(report, None)
        assert found is not None
        assert found.hash == DEFAULT.hash

    def test_a_policy_that_did_not_decide_is_refused(self) -> None:
        """Its lines would be drawn over decisions of another."""
        report, _ = counted(row())
        with pytest.raises(InvalidInput, match=r"strict .* did not make these decisions, default .* did"):
            policy_of(report, load_policy("strict"))

    def test_thresholds_of_an_unknown_policy_are_those_that_were_reached(self) -> None:
        """What results hold of a policy is drawn, and the page says that it is not all."""
        own = parse_policy("version: 1\nrails: {response: {unsafe: {threshold: 0.83}}}")
        one = {"id": 1, **own.decide(Rail.RESPONSE, [hazard(0.9), code()]).to_dict()}
        page = page_of(one)
        assert "response from 0.83" in page
        assert "that scores have reached" in page


class TestChooser:
    def test_what_matters_comes_first_and_no_sort_is_crowded_out(self) -> None:
        """Blocked, flagged and unverified rows come before allowed ones, each with its share."""
        chooser = Chooser(10)
        rows = [row(hazard(0.9), code())] * 50 + [row(unverified(GUARD, "x"), code())] * 50 + [row()] * 50 + [BAD]
        for number, one in enumerate(rows):
            chooser.add("r", number, one)
        sorts = [sample.sort for sample in chooser.chosen()]
        assert sorts == ["blocked"] * 7 + ["unverified"] * 2 + ["allowed"]
        assert chooser.seen == {"blocked": 50, "flagged": 0, "unverified": 51, "allowed": 50}

    @pytest.mark.parametrize(("most", "rows"), [(0, 5), (1, 5), (7, 5), (7, 7), (7, 500)])
    def test_the_table_is_as_full_as_it_can_be(self, most: int, rows: int) -> None:
        """Never more rows than asked for, and never fewer where there are enough."""
        chooser = Chooser(most)
        for number in range(rows):
            chooser.add("r", number, row())
        orders = [sample.order for sample in chooser.chosen()]
        assert len(orders) == min(most, rows)
        assert orders == sorted(set(orders))

    def test_rows_from_the_whole_of_a_log_are_chosen_and_always_the_same(self) -> None:
        """A long log is not shown by its beginning; equal results give equal pages."""
        chosen = []
        for _ in range(2):
            chooser = Chooser(20)
            for number in range(1000):
                chooser.add("r", number, row())
            chosen.append([sample.order for sample in chooser.chosen()])
        assert chosen[0] == chosen[1]
        assert max(chosen[0]) > 500


def log(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), "utf-8")
    return path


def samples(*rows: Any) -> list[Sample]:
    return counted(*rows)[1].chosen()


class TestTexts:
    def test_a_text_is_joined_by_file_line_and_turn(self, tmp_path: Path) -> None:
        """The message that was judged is shown, not another one of its chat."""
        chat = {"messages": [{"role": "user", "content": "first"}, {"role": "assistant", "content": "second"}]}
        path = log(tmp_path / "log.jsonl", {"text": "one"}, chat)
        found = samples(
            row(file=str(path), line=2, turn=1),
            row(file=str(path), line=2, turn=2),
            row(id=f"{path}:1"),
        )
        assert join_texts(found, [path]) == 3
        assert [sample.text for sample in found] == ["first", "second", "one"]

    def test_a_log_that_has_moved_is_known_by_its_name(self, tmp_path: Path) -> None:
        """A file of the same name will do where there is one; of two, neither."""
        path = log(tmp_path / "log.jsonl", {"text": "one"})
        assert join_texts(samples(row(file="elsewhere/log.jsonl", line=1)), [path]) == 1
        (tmp_path / "b").mkdir()
        other = log(tmp_path / "b" / "log.jsonl", {"text": "two"})
        assert join_texts(samples(row(file="elsewhere/log.jsonl", line=1)), [path, other]) == 0

    def test_a_text_that_was_not_judged_is_not_shown(self, tmp_path: Path) -> None:
        """A log that changed since the scan does not put words under a decision."""
        path = log(tmp_path / "log.jsonl", {"text": "one"})
        judged = content_hash(Conversation.of("one"))
        assert join_texts(samples(row(file=str(path), line=1, turn=1, hash=judged)), [path]) == 1
        log(path, {"text": "another"})
        assert join_texts(samples(row(file=str(path), line=1, turn=1, hash=judged)), [path]) == 0

    @pytest.mark.parametrize("line", ["{", "[]", '{"x": 1}', '{"text": 3}'])
    def test_a_line_that_cannot_be_read_has_no_text(self, tmp_path: Path, line: str) -> None:
        """The report is made all the same."""
        path = tmp_path / "log.jsonl"
        path.write_text(line, "utf-8")
        assert join_texts(samples(row(file=str(path), line=1), row(id="no place")), [path]) == 0

    def test_other_logs_than_json_lines_are_refused(self, tmp_path: Path) -> None:
        """The error says what would be needed."""
        with pytest.raises(InvalidInput, match="expected JSON Lines"):
            join_texts(samples(row()), [tmp_path / "log.csv"])


class TestPage:
    def test_hostile_text_stays_text_wherever_it_comes_from(self, tmp_path: Path) -> None:
        """Ids, files, rules, languages, details and texts of a log are shown as they are, and are no markup."""
        path = log(tmp_path / "log.jsonl", *({"text": text} for text in HOSTILE[:3] + HOSTILE[4:]))
        rows = []
        for number, text in enumerate(HOSTILE, start=1):
            bad = replace(finding(text), language=text, message=text)
            rows += [
                row(hazard(0.9), code(bad), file=str(path), line=number, id=text, turn=1),
                row(unverified(replace(GUARD, model=text), text), code(), id=text, file=text, line=1),
                {**BAD, "error": text},
            ]
        page = page_of(*rows, texts=[path], title=HOSTILE[0])
        tree = parsed(page)
        names = {element.tag for element in tree.iter() if isinstance(element.tag, str)}
        assert not names & {"img", "iframe", "a", "link", "object"}
        assert len(list(tree.iterfind(".//script"))) == 1
        assert len(list(tree.iterfind(".//h1"))) == 1
        attributes = {name for element in tree.iter() if isinstance(element.tag, str) for name in element.attrib}
        assert not {name for name in attributes if name.startswith("on") or name in ("src", "href", "style")}
        assert not re.search("[\u2028\u2029\u202e\x00\x07\ud800\ufffe]", page)
        assert HOSTILE[0] in [text.lstrip("\n") for text in texts_of(tree, "pre")]
        assert texts_of(tree, "title") == [HOSTILE[0]]

    def test_the_policy_of_the_page_names_its_script_and_style_and_nothing_else(self) -> None:
        """Whatever else got into the page would not run, and nothing is fetched."""
        page = page_of(row(hazard(0.9), code(finding())))
        tree = parsed(page)
        (policy,) = (meta.get("content") for meta in tree.iterfind(".//meta") if meta.get("http-equiv"))
        assert re.fullmatch(
            r"default-src 'none'; style-src 'sha256-[\w+/]{43}='; script-src 'sha256-[\w+/]{43}='; "
            r"base-uri 'none'; form-action 'none'",
            policy,
        )
        assert not re.search(r"url\(|@import|https?:", page)

    def test_there_is_no_text_unless_it_was_joined_and_then_it_is_closed(self, tmp_path: Path) -> None:
        """Nobody sees a text whom nobody asked."""
        path = log(tmp_path / "log.jsonl", {"text": "a mild sentence"})
        one = row(hazard(0.9), code(), file=str(path), line=1)
        assert "a mild sentence" not in page_of(one)
        assert "No text of the log is in this page" in page_of(one)
        tree = parsed(page_of(one, texts=[path]))
        (element,) = (details for details in tree.iterfind(".//details") if details.find("pre") is not None)
        assert element.get("open") is None
        assert "a mild sentence" in "".join(element.itertext())

    def test_without_a_script_the_page_is_complete(self) -> None:
        """The filter is hidden until the script shows it; all rows and figures are there without."""
        tree = parsed(page_of(row(hazard(0.9), code(finding())), row()))
        (form,) = tree.iterfind(".//form")
        assert form.get("hidden") is not None
        (table,) = (table for table in tree.iterfind(".//table") if table.get("id") == "rows")
        assert len(list(table.iterfind(".//tbody/tr"))) == 2

    def test_many_rows_with_long_texts_keep_the_page_small(self, tmp_path: Path) -> None:
        """Two thousand rows of long texts are below 2 MB; each says how much of it is shown."""
        long = "<&\"'> " * 2000
        path = log(tmp_path / "log.jsonl", *({"text": long} for _ in range(2100)))
        rows = [row(hazard(0.9), code(finding()), file=str(path), line=n, timestamp=1.76e9) for n in range(1, 2101)]
        page = page_of(*rows, texts=[path])
        assert len(page.encode()) < 2_000_000
        assert "12,000 characters, the first" in page

    def test_decisions_over_time_are_drawn_where_rows_have_a_time(self) -> None:
        """Years of rows are few bars; rows without a time are told; without any there is a sentence."""
        rows = [row(timestamp=1_600_000_000 + day * 86_400) for day in range(0, 2000, 10)]
        tree = parsed(page_of(*rows, row()))
        titles = texts_of(tree, "{http://www.w3.org/2000/svg}title")
        bars = [title for title in titles if title.endswith(" allow")]
        assert 10 < len(bars) <= 60
        assert sum(int(title.split(": ")[1].split()[0]) for title in bars) == 200
        assert "1 row without a time" in page_of(*rows, row())
        assert "The rows carry no time" in page_of(row())

    def test_an_axis_has_no_halves_of_rows(self) -> None:
        """One row at most: the marks say 0 and 1, and not 0 twice."""
        tree = parsed(page_of(row(timestamp=1_600_000_000)))
        assert texts_of(tree, "{http://www.w3.org/2000/svg}text")[:3] == ["0", "1", "2020-09-13 12:00"]

    def test_thresholds_of_the_policy_are_drawn_and_named(self) -> None:
        """A line without words would be a riddle."""
        page = page_of(row(hazard(0.9), code()))
        assert "Lines are the thresholds of policy default" in page
        assert page.count("class=limit ") >= 2

    def test_an_empty_scan_has_a_page(self) -> None:
        """No row is a page that says so."""
        page = page_of()
        parsed(page)
        assert "There is no row in the results" in page

    def test_only_bad_rows_have_a_page(self) -> None:
        """A file that could not be read at all is told, not divided by."""
        page = page_of(BAD)
        parsed(page)
        assert "1 row could not be read" in page

    def test_shown_keeps_what_people_write(self) -> None:
        """Letters of all scripts, emoji, tabs and line feeds stay; markup becomes text."""
        assert shown("é 漢字 ع 🙂\t\n<b>") == "é 漢字 ع 🙂\t\n&lt;b&gt;"


class TestExports:
    def test_csv_has_every_row_and_no_formula(self) -> None:
        """A spreadsheet shows what is there and computes nothing."""
        file = io.BytesIO()
        writer = CsvWriter(file)
        for number, one in enumerate(
            [row(hazard(0.9), code(finding()), id="=1+1"), {**BAD, "error": "@x"}, row(id=-5)]
        ):
            writer.add("r.jsonl", number + 1, one)
        first, bad, last = csv.DictReader(io.StringIO(file.getvalue().decode()))
        assert (first["id"], first["file"], first["line"]) == ("'=1+1", "r.jsonl", "1")
        assert (first["top_category"], first["top_score"], first["cwes"]) == ("hate", "0.9", "CWE-89")
        assert (bad["decision"], bad["unverified"], bad["error"], bad["file"]) == ("", "yes", "'@x", "l")
        assert (last["id"], last["decision"], last["unverified"]) == ("'-5", "allow", "no")

    def test_sarif_is_valid_and_places_findings_in_the_log(self) -> None:
        """A finding is at its row's line; the message says where in the row's code."""
        collector = SarifCollector()
        for one in (row(hazard(0.1), code(finding(), finding("go.tls")), file="logs/a.jsonl", line=7), BAD, row()):
            collector.add("r.jsonl", 1, one)
        log_values = collector.to_dict()
        jsonschema.Draft7Validator(SCHEMA, format_checker=jsonschema.FormatChecker()).validate(log_values)
        first, second = log_values["runs"][0]["results"]
        place = first["locations"][0]["physicalLocation"]
        assert place["artifactLocation"]["uri"] == "logs/a.jsonl"
        assert place["region"]["startLine"] == 7
        assert first["message"]["text"] == "Line 2, column 5 of a python block: What is wrong. Mend it."
        assert second["ruleId"] == "go.tls"
        assert first["partialFingerprints"] != second["partialFingerprints"]

    def test_sarif_holds_no_more_than_hosts_take(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What is left out is counted."""
        monkeypatch.setattr(report_exports, "MOST_SARIF_RESULTS", 2)
        collector = SarifCollector()
        collector.add("r", 1, row(hazard(0.1), code(finding(), finding(), finding())))
        assert len(collector.to_dict()["runs"][0]["results"]) == 2
        assert collector.left_out == 1

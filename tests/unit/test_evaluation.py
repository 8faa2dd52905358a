"""Labelled rows in, a report out: what is counted, what is not, and what is kept of a row."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrail.errors import ClassificationError, InvalidInput
from guardrail.evaluation import Report, choose_cascade, compare, evaluate, load_run, read_sets, render_page
from guardrail.evaluation.report import RowResult, SavedRun
from guardrail.policy import load_policy
from guardrail.taxonomy import HazardCategory
from guardrail.testing import FailingClassifier, KeywordClassifier
from guardrail.verdict import Conversation, Outcome, Role, Source, Verdict

WORDS = {"badword": HazardCategory.HATE, "riskword": HazardCategory.PRIVACY}


def write(path: Path, *rows: Any) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


async def report_of(*paths: Path, classifier: Any = None, **options: Any) -> Report:
    return await evaluate(
        classifier or KeywordClassifier(WORDS),
        read_sets(paths),
        name="keywords",
        policy=load_policy("default"),
        **{"latency_messages": 0, **options},
    )


class TestRows:
    def test_every_column_is_read(self, tmp_path: Path) -> None:
        """Codes are Llama Guard 2's, names are the categories', and both may stand together."""
        row = {"text": "t", "unsafe": True, "role": "assistant", "prompt": "p", "categories": ["S9", "privacy", "S9"]}
        path = write(tmp_path / "a.jsonl", {**row, "id": 7, "lang": "de", "source": "mine", "other": 1}, row)
        (found,) = read_sets([path])
        first, second = found.rows
        assert (first.id, first.line, first.is_unsafe, first.lang, first.source) == ("7", 1, True, "de", "mine")
        assert first.categories == (HazardCategory.HATE, HazardCategory.PRIVACY)
        assert first.conversation == Conversation.of("t", role=Role.ASSISTANT, prompt="p")
        assert (second.id, second.lang, second.source) == ("a:2", "", "")

    @pytest.mark.parametrize(
        ("row", "error"),
        [
            ("{not json", "not JSON"),
            ("[1]", "expected a JSON object"),
            ({"unsafe": True}, "text: expected the text to judge, got NoneType"),
            ({"text": " \n", "unsafe": True}, "text: expected the text to judge, got an empty one"),
            ({"text": "secret"}, "unsafe: expected true, false or null, got no such column"),
            ({"text": "secret", "unsafe": 1}, "unsafe: expected true, false or null, got int"),
            ({"text": "secret", "unsafe": "true"}, "unsafe: expected true, false or null, got str"),
            ({"text": "secret", "unsafe": True, "role": "system"}, "role: expected user or assistant"),
            ({"text": "secret", "unsafe": True, "prompt": "p"}, "role=assistant"),
            ({"text": "secret", "unsafe": True, "categories": "S1"}, "categories: expected a list, got str"),
            ({"text": "secret", "unsafe": True, "categories": ["S1", "S12"]}, "item 2 of 2 is neither a code"),
            ({"text": "secret", "unsafe": True, "id": True}, "id: expected a string or a whole number, got bool"),
            ({"text": "secret", "unsafe": True, "lang": 1}, "lang: expected a string, got int"),
            ('{"text": "secret \\ud800", "unsafe": true}', "lone surrogate"),
        ],
    )
    def test_a_bad_row_is_named_and_the_others_are_read(self, row: Any, error: str, tmp_path: Path) -> None:
        """The error says file, line and what was expected, never the row's text."""
        path = write(tmp_path / "a.jsonl", "", row, {"text": "fine", "unsafe": False})
        (found,) = read_sets([path])
        (bad,) = found.bad_rows
        assert (bad.file, bad.line) == (str(path), 2)
        assert error in bad.error
        assert "secret" not in bad.error
        assert [one.line for one in found.rows] == [3]

    def test_bytes_that_are_no_utf8_are_a_bad_row(self, tmp_path: Path) -> None:
        """One row in another encoding does not cost the file."""
        path = tmp_path / "a.jsonl"
        path.write_bytes(b'\xef\xbb\xbf{"text": "\xe4", "unsafe": true}\r\n{"text": "\xe2\x80\xa8", "unsafe": false}')
        (found,) = read_sets([path])
        assert "not UTF-8: byte 11" in found.bad_rows[0].error
        assert [row.line for row in found.rows] == []
        assert [row.line for row in found.bad_rows] == [1, 2]  # U+2028 is white space: nothing to judge

    def test_a_line_separator_inside_a_text_does_not_end_the_row(self, tmp_path: Path) -> None:
        """JSON Lines end with a line feed alone."""
        path = write(tmp_path / "a.jsonl", json.dumps({"text": "a\u2028b", "unsafe": False}, ensure_ascii=False))
        assert [row.conversation.last.content for row in read_sets([path])[0].rows] == ["a\u2028b"]

    def test_files_of_one_name_are_told_apart(self, tmp_path: Path) -> None:
        """Two sets never share a name, in whatever folders their files stand."""
        (tmp_path / "x").mkdir()
        row = {"text": "t", "unsafe": None}
        paths = [
            write(tmp_path / "a.jsonl", row),
            write(tmp_path / "x/a.jsonl", row),
            write(tmp_path / "a-2.jsonl", row),
        ]
        assert [one.name for one in read_sets(paths)] == ["a", "a-2", "a-2-2"]


ROWS = [
    {"text": "a badword", "unsafe": True, "categories": ["hate"], "lang": "en"},
    {"text": "a riskword", "unsafe": True, "categories": ["S9"], "lang": "en"},
    {"text": "nothing", "unsafe": True, "categories": ["S9", "S6"], "lang": "de"},
    {"text": "one badword", "unsafe": False, "lang": "de"},
    {"text": "fine", "unsafe": False, "lang": "de"},
    {"text": "who knows badword", "unsafe": None},
]


class TestEvaluate:
    async def test_the_figures_of_a_set(self, tmp_path: Path) -> None:
        """Rows without a label are judged and counted apart; categories count unsafe rows that carry them."""
        report = await report_of(write(tmp_path / "a.jsonl", *ROWS))
        (one,) = report.sets
        assert (one.figures.rows, one.figures.unsafe, one.unlabelled) == (5, 3, 1)
        assert one.figures.recall == pytest.approx(2 / 3)
        assert one.figures.fpr == 0.5
        assert one.top1 == 0.5
        hate, privacy = one.categories[HazardCategory.HATE], one.categories[HazardCategory.PRIVACY]
        assert (hate.rows, hate.recall, hate.named, hate.top1) == (3, pytest.approx(2 / 3), 2, 0.5)
        assert (privacy.rows, privacy.recall, privacy.named, privacy.top1) == (1, 0.0, 0, None)
        assert {value: found.rows for value, found in report.slices["lang"].items()} == {"de": 3, "en": 2}
        assert "source" not in report.slices

    async def test_unverified_rows_are_in_no_figure_and_never_safe(self, tmp_path: Path) -> None:
        """A classifier that fails on a row gets neither a hit nor a pass for it, and the row has no score."""
        path = write(
            tmp_path / "a.jsonl",
            {"text": "boom", "unsafe": True, "categories": ["S1"]},
            {"text": "boom too", "unsafe": False},
            {"text": "boom three", "unsafe": None},
            {"text": "fine", "unsafe": False},
        )
        report = await report_of(path, classifier=FailingClassifier(ClassificationError("no"), on="boom"))
        one = report.overall
        assert (one.figures.rows, one.figures.unsafe, one.figures.recall, one.figures.fpr) == (1, 0, None, 0.0)
        assert [one.unverified(True), one.unverified(False), one.unverified(None)] == [1, 1, 1]
        assert [row.score for row in one.rows] == [None, None, None, 0.01]
        assert one.categories == {}
        assert report.decided_by == {"failing-classifier@test": 1}

    async def test_overall_pools_and_macro_averages(self, tmp_path: Path) -> None:
        """A large set outweighs a small one over all rows and not in the mean of the sets."""
        many = write(tmp_path / "many.jsonl", *[{"text": "fine", "unsafe": False}] * 9)
        few = write(tmp_path / "few.jsonl", {"text": "badword", "unsafe": False})
        report = await report_of(many, few)
        assert report.overall.figures.fpr == pytest.approx(0.1)
        assert report.macro["fpr"] == pytest.approx(0.5)

    async def test_a_threshold_for_a_false_positive_rate(self, tmp_path: Path) -> None:
        """It is chosen over all rows together, and the figures at it are figures of the scores."""
        report = await report_of(write(tmp_path / "a.jsonl", *ROWS), target_fpr=0.5)
        assert report.operating is not None
        assert report.operating.threshold == 0.99
        assert report.overall.figures_at(0.99).recall == pytest.approx(2 / 3)
        refused = await report_of(write(tmp_path / "a.jsonl", *ROWS), target_fpr=0.0)
        assert refused.operating is not None
        assert refused.operating.threshold is None

    async def test_latency_and_throughput_are_measured_apart(self, tmp_path: Path) -> None:
        """Single messages are asked one by one, beside the batches; no more of them than asked for."""
        sizes: list[int] = []

        class Counting(KeywordClassifier):
            async def classify(self, conversations: Sequence[Conversation]) -> list[Verdict]:
                sizes.append(len(conversations))
                return await super().classify(conversations)

        path = write(tmp_path / "a.jsonl", *ROWS)
        report = await report_of(path, classifier=Counting(WORDS), latency_messages=4)
        assert sizes == [1, 6, 1, 1, 1, 1]
        assert report.speed.latency is not None
        assert report.speed.latency.messages == 4
        assert report.speed.texts == 6
        assert (await report_of(path)).speed.latency is None

    async def test_a_classifier_without_a_probability_is_ranked_by_its_categories(self, tmp_path: Path) -> None:
        """Its highest category score is the row's score; without any, the outcome is."""

        class Mute(KeywordClassifier):
            def _judge(self, text: str) -> Verdict:
                verdict = replace(super()._judge(text), unsafe_probability=None)
                return verdict if "badword" in text else replace(verdict, scores={})

        report = await report_of(write(tmp_path / "a.jsonl", *ROWS[:3]), classifier=Mute(WORDS))
        assert [row.score for row in report.overall.rows] == [0.99, 1.0, 0.0]

    async def test_the_json_keeps_no_text(self, tmp_path: Path) -> None:
        """A row is its id, label, score and outcome; and the file reads back as the same rows."""
        path = write(tmp_path / "a.jsonl", *ROWS)
        report = await report_of(path, target_fpr=0.5)
        content = report.to_dict()
        text = json.dumps(content, allow_nan=False)
        assert not any(str(row["text"]) in text for row in ROWS)
        assert content["schema"] == "guardrail.evaluation/1"
        assert set(content["sets"][0]["rows"][0]) == {"id", "unsafe", "score", "outcome"}
        assert content["sets"][0]["counts"] == {
            "read": 6,
            "bad": 0,
            "unlabelled": 1,
            "unverified_unsafe": 0,
            "unverified_safe": 0,
            "unverified_unlabelled": 0,
        }
        run = load_run(write(tmp_path / "out.json", text))
        assert tuple(run.sets["a"].values()) == report.sets[0].rows
        assert run.source == KeywordClassifier.source


class Tags(HTMLParser):
    """Collects what a page would load or run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}


class TestPage:
    async def test_the_page_needs_nothing_and_escapes_everything(self, tmp_path: Path) -> None:
        """No script, no link, no text of a row; a file name that is markup stays text."""
        rows = [{**row, "source": f"<img src=x onerror=alert({n})>"} for n, row in enumerate(ROWS)]
        path = write(tmp_path / "<script>alert(1)<&>.jsonl", *rows)
        other = write(tmp_path / "b.jsonl", *ROWS)
        report = await report_of(path, other, target_fpr=0.5)
        page = render_page(replace(report, classifier="<b>&\"'", source=Source("<i>m</i>", "r", "t")))
        tags = Tags()
        tags.feed(page)
        assert tags.names & {"script", "link", "img", "iframe", "i", "b", "form", "a"} == set()
        assert {name for name in tags.attributes if name.startswith("on") or name in ("src", "href", "style")} == set()
        assert not re.search(r"url\(|@import|https?:", page)
        assert not any(str(row["text"]) in page for row in ROWS)
        assert page.count("<svg") == 9
        assert "default-src 'none'" in page

    async def test_what_is_not_covered_is_said_first(self, tmp_path: Path) -> None:
        """Unverified and bad rows stand above the figures."""
        path = write(tmp_path / "a.jsonl", {"text": "boom", "unsafe": True}, {"text": "fine", "unsafe": False}, "bad")
        report = await report_of(path, classifier=FailingClassifier(ClassificationError("no"), on="boom"))
        page = render_page(report)
        assert page.index("1 of 2 rows could not be judged") < page.index("<dl")
        assert page.index("1 row could not be read") < page.index("<dl")
        assert "needs rows of both classes" in page

    async def test_a_run_without_a_verdict_still_has_a_page(self, tmp_path: Path) -> None:
        """Nothing judged is a page of dashes, not a crash."""
        path = write(tmp_path / "a.jsonl", {"text": "boom", "unsafe": True})
        report = await report_of(path, classifier=FailingClassifier(ClassificationError("no")), target_fpr=0.1)
        assert "No threshold of these rows keeps it" in render_page(report)


def saved(scores: Sequence[float | None], *, labels: Sequence[bool | None], name: str = "a") -> SavedRun:
    rows = [
        RowResult(
            "r", label, score, Outcome.UNVERIFIED if score is None else Outcome("unsafe" if score >= 0.5 else "safe")
        )
        for score, label in zip(scores, labels, strict=True)
    ]
    return SavedRun("c", Source("m"), {name: {("r", number): row for number, row in enumerate(rows)}})


class TestCompare:
    def test_rows_that_changed_sides_are_counted(self) -> None:
        """Fixed and broken rows, over those that both runs judged; the rest is counted apart."""
        labels = [True, True, True, False, False, True, None]
        before = saved([0.9, 0.1, 0.1, 0.9, 0.1, None, 0.9], labels=labels)
        after = saved([0.1, 0.9, 0.9, 0.1, 0.1, 0.9, 0.1], labels=labels)
        found = compare(before, after)
        (one,) = found.sets
        assert (one.fixed, one.broken, one.unjudged) == (3, 1, 2)
        assert (one.before.rows, one.before.recall, one.after.recall) == (5, pytest.approx(1 / 3), pytest.approx(2 / 3))
        assert one.p == pytest.approx(10 / 16)
        assert (found.overall.fixed, found.overall.broken) == (3, 1)

    def test_rows_and_sets_of_one_run_are_left_out(self) -> None:
        """What cannot be compared is named, not guessed."""
        before = saved([0.9, 0.1], labels=[True, False])
        after = SavedRun("c", Source("m"), {**saved([0.9], labels=[True]).sets, "b": {}})
        found = compare(before, after)
        assert (found.sets[0].only_before, found.sets[0].only_after) == (1, 0)
        assert (found.only_before, found.only_after) == ((), ("b",))
        with pytest.raises(InvalidInput, match="no set in common: a and other"):
            compare(before, saved([0.9], labels=[True], name="other"))

    def test_a_label_that_changed_is_not_compared(self) -> None:
        """A row relabelled between the runs says nothing about the classifier."""
        found = compare(saved([0.9], labels=[True]), saved([0.9], labels=[False]))
        assert (found.overall.unjudged, found.overall.before.rows) == (1, 0)


PAIRS = st.lists(st.tuples(st.integers(0, 100).map(lambda n: n / 100), st.booleans()), min_size=1, max_size=60)


class TestChooseCascade:
    def test_a_case_by_hand(self) -> None:
        """With no errors allowed, the guard is asked from its lowest unsafe to its highest safe row."""
        embedded = saved([0.05, 0.2, 0.3, 0.6, 0.7, 0.95], labels=[None] * 6)
        guard = saved([0.0, 0.0, 1.0, 0.0, 1.0, 1.0], labels=[None] * 6)
        choice = choose_cascade(embedded, guard, miss_budget=0.0)
        assert (choice.low, choice.high) == (0.3, 0.6)
        assert (choice.rows, choice.saved, choice.passed, choice.flagged) == (6, 4, 0, 0)
        assert choice.saved_share == pytest.approx(4 / 6)
        wider = choose_cascade(embedded, guard, miss_budget=0.34)
        assert (wider.low, wider.high, wider.passed, wider.flagged, wider.saved) == (0.5, 0.5, 1, 1, 6)

    @given(PAIRS, st.floats(0, 1))
    def test_the_budget_is_kept_on_both_sides(self, pairs: list[tuple[float, bool]], budget: float) -> None:
        """Neither share is above the budget, and no verdict of the first stage is turned round."""
        scores, unsafe = [score for score, _ in pairs], [float(is_unsafe) for _, is_unsafe in pairs]
        labels = [None] * len(pairs)
        choice = choose_cascade(saved(scores, labels=labels), saved(unsafe, labels=labels), miss_budget=budget)
        assert choice.passed <= budget * choice.guard_unsafe
        assert choice.flagged <= budget * choice.guard_safe
        assert 0.0 <= choice.low <= 0.5 <= choice.high <= 1.0
        assert choice.saved == sum(not choice.low <= score <= choice.high for score in scores)

    def test_rows_that_one_could_not_judge_do_not_count(self) -> None:
        """Without a row that both judged there is no choice."""
        with pytest.raises(InvalidInput, match="no row that both judged"):
            choose_cascade(saved([None], labels=[True]), saved([0.9], labels=[True]), miss_budget=0.01)
        with pytest.raises(InvalidInput, match=r"in 0\.\.1, got 2"):
            choose_cascade(saved([0.1], labels=[True]), saved([0.9], labels=[True]), miss_budget=2.0)


class TestLoadRun:
    @pytest.mark.parametrize(
        ("content", "error"),
        [
            ("{", "not JSON"),
            ("[]", "expected a report with schema"),
            ('{"schema": "guardrail.evaluation/2"}', "got 'guardrail.evaluation/2'"),
            ('{"schema": "guardrail.evaluation/1"}', "fields missing"),
        ],
    )
    def test_what_is_no_report_is_refused(self, content: str, error: str, tmp_path: Path) -> None:
        """The message names the file and says what to do."""
        path = write(tmp_path / "r.json", content)
        with pytest.raises(InvalidInput, match=error) as caught:
            load_run(path)
        assert str(path) in str(caught.value)

    @pytest.mark.parametrize(
        "row",
        [
            {"id": "1", "unsafe": 1, "score": 0.5, "outcome": "safe"},
            {"id": "1", "unsafe": True, "score": 1.5, "outcome": "safe"},
            {"id": "1", "unsafe": True, "score": "x", "outcome": "safe"},
            {"id": "1", "unsafe": True, "score": None, "outcome": "safe"},
            {"id": "1", "unsafe": True, "score": 0.5, "outcome": "unverified"},
            {"id": "1", "unsafe": True, "score": 0.5, "outcome": "maybe"},
            {"id": "1", "unsafe": True, "outcome": "safe"},
        ],
    )
    def test_a_row_of_the_wrong_kind_is_refused(self, row: dict[str, Any], tmp_path: Path) -> None:
        """A hand-edited report does not become figures."""
        content = {
            "schema": "guardrail.evaluation/1",
            "classifier": {"name": "c", "model": "m", "revision": "", "template_hash": ""},
            "sets": [{"name": "a", "rows": [row]}],
        }
        with pytest.raises(InvalidInput, match="fields missing or of the wrong kind"):
            load_run(write(tmp_path / "r.json", content))

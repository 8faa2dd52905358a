"""Judging, writing and going on: each text once, each row once, whenever the scan was stopped."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrail.errors import ClassificationError, ConfigurationError, GuardrailError, InvalidInput
from guardrail.logscan import BadRow, Layout, ResultWriter, Row, Summary, Turns, scan
from guardrail.logscan.engine import Judge, ScanResult
from guardrail.logscan.inputs import find_inputs
from guardrail.logscan.render import decision_json
from guardrail.logscan.rows import content_hash
from guardrail.logscan.run import Chunk, Pace, Sink, read_chunks, run
from guardrail.pipeline import Guard
from guardrail.policy import load_policy
from guardrail.taxonomy import HazardCategory
from guardrail.testing import FailingClassifier, KeywordClassifier
from guardrail.verdict import (
    Action,
    Conversation,
    Decision,
    Finding,
    Outcome,
    Rail,
    Reason,
    ReasonKind,
    Role,
    Severity,
    Source,
    Span,
    Verdict,
)


class Counting(KeywordClassifier):
    """Notes which texts it was asked about."""

    def __init__(self) -> None:
        super().__init__({"badword": HazardCategory.HATE})
        self.asked: list[str] = []

    async def classify(self, conversations: Sequence[Conversation]) -> list[Verdict]:
        self.asked += [conversation.last.content for conversation in conversations]
        return await super().classify(conversations)


def row(number: int, text: str, *, role: Role = Role.USER, prompt: str | None = None) -> Row:
    return Row(number, "f", number, number, Conversation.of(text, role=role, prompt=prompt))


class TestJudge:
    def test_the_same_is_judged_once(self) -> None:
        """In one chunk and in the next; every row has its result."""
        counting = Counting()
        judge = Judge(Guard(counting, policy=load_policy("default")))
        first = judge.judge([row(1, "a"), row(2, "badword"), row(3, "a")])
        second = judge.judge([row(4, "badword"), BadRow(5, "f", 5, 5, "cut"), row(6, "b")])
        assert counting.asked == ["a", "badword", "b"]
        actions = [result.decision.action if result.decision else None for result in [*first, *second]]
        assert actions == [Action.ALLOW, Action.BLOCK, Action.ALLOW, Action.BLOCK, None, Action.ALLOW]
        assert judge.repeats == 2

    def test_another_role_or_context_is_another_question(self) -> None:
        """Only what the judgement cannot depend on may differ."""
        counting = Counting()
        judge = Judge(Guard(counting, policy=load_policy("default")))
        judge.judge(
            [
                row(1, "a"),
                row(2, "a", role=Role.ASSISTANT),
                row(3, "a", role=Role.ASSISTANT, prompt="p"),
                row(4, "a", role=Role.ASSISTANT, prompt="q"),
            ]
        )
        assert counting.asked == ["a"] * 4

    def test_what_is_remembered_is_bounded(self) -> None:
        """The judgement used longest ago is forgotten."""
        counting = Counting()
        judge = Judge(Guard(counting, policy=load_policy("default")), remembered=2)
        for text in ("a", "b", "a", "c", "a", "b"):
            judge.judge([row(1, text)])
        assert counting.asked == ["a", "b", "c", "b"]

    def test_a_failure_is_not_remembered(self) -> None:
        """The next row of the same text has another chance."""
        failing = FailingClassifier(ClassificationError("told to fail"))
        judge = Judge(Guard(failing, policy=load_policy("default")))
        judge.judge([row(1, "a")])
        failing._on = "never"
        assert judge.judge([row(2, "a")])[0].is_judged

    @given(st.lists(st.lists(st.text(max_size=3), min_size=1, max_size=3), min_size=2, max_size=2, unique_by=tuple))
    def test_other_conversations_have_other_hashes(self, texts: list[list[str]]) -> None:
        """Where one message ends and the next begins is part of it, whatever they hold."""

        def conversation(parts: list[str]) -> Conversation:
            made = Conversation.of(parts[0])
            for part in parts[1:]:
                made = made.then(Role.USER, part)
            return made

        first, second = map(conversation, texts)
        assert content_hash(first) != content_hash(second)
        assert content_hash(first) == content_hash(conversation(texts[0]))


texts = st.text(max_size=12)
shares = st.floats(0, 1) | st.sampled_from([0, 1])
verdicts = st.builds(
    Verdict,
    st.sampled_from(Outcome),
    st.builds(Source, texts, texts, texts),
    st.dictionaries(st.sampled_from(HazardCategory), shares, max_size=4),
    st.lists(st.sampled_from(HazardCategory), unique=True, max_size=3).map(tuple),
    st.none() | shares,
    st.lists(
        st.builds(
            Finding,
            texts,
            st.just("CWE-89"),
            st.sampled_from(Severity),
            st.just(Span(1, 2)),
            st.integers(1, 9),
            st.integers(1, 9),
            texts,
            texts,
        ),
        max_size=2,
    ).map(tuple),
    st.lists(texts, max_size=2).map(tuple),
    texts,
)
decisions = st.builds(
    Decision,
    st.sampled_from(Action),
    st.sampled_from(Rail),
    st.lists(verdicts, max_size=3).map(tuple),
    st.lists(
        st.builds(Reason, st.sampled_from(Action), st.sampled_from(ReasonKind), texts, st.none() | shares), max_size=2
    ).map(tuple),
    texts,
    texts,
)  # fmt: skip


# With nothing but numbers to say, which takes another way.
plain = st.builds(
    lambda action, rail, outcome, names, scores, share: Decision(
        action, rail, (Verdict(outcome, Source(*names), scores, (), share),), (), names[0], names[1]
    ),
    st.sampled_from(Action),
    st.sampled_from(Rail),
    st.sampled_from(Outcome),
    st.tuples(texts, texts, texts),
    st.dictionaries(st.sampled_from(HazardCategory), shares | st.floats(0, 1e-3)),
    st.none() | shares,
)


class TestRender:
    @given(decisions | plain)
    def test_a_quick_decision_is_the_same_bytes(self, decision: Decision) -> None:
        """What is put together from pieces is what ``json`` writes of ``to_dict``."""
        assert decision_json(decision) == json.dumps(decision.to_dict(), ensure_ascii=False)

    @given(st.text() | st.integers() | st.booleans() | st.lists(st.integers()), st.none() | st.just({"a": "ü"}))
    def test_a_quick_line_is_the_result(self, row_id: object, kept: dict[str, str] | None) -> None:
        """The line and the values say the same, whatever the id is."""
        judge = Judge(Guard(KeywordClassifier({}), policy=load_policy("default")))
        (result,) = judge.judge([Row(row_id, 'f"', 1, 2, Conversation.of("x"), 3, kept)])
        assert json.loads(result.to_json_line()) == result.to_dict()
        assert list(json.loads(result.to_json_line())) == list(result.to_dict())


class TestSummary:
    def test_it_can_be_written_and_counted_on(self) -> None:
        """A scan that goes on ends with the counts of one that was not stopped."""
        judge = Guard(KeywordClassifier({"badword": HazardCategory.HATE}), policy=load_policy("default"))
        rows = [row(1, "badword"), BadRow(2, "f", 2, 2, "cut"), row(3, "x"), row(4, " ")]
        results = list(scan(rows, judge))
        whole = Summary(empty=2)
        for result in results:
            whole.add(result)
        half = Summary(empty=2)
        for result in results[:2]:
            half.add(result)
        half = Summary.from_dict(json.loads(json.dumps(half.to_dict())))
        for result in results[2:]:
            half.add(result)
        assert half.to_dict() == whole.to_dict()
        assert whole.to_dict()["decisions"] == {"allow": 1, "flag": 0, "retry": 0, "block": 2}


class TestReadChunks:
    def test_a_chunk_ends_between_records(self, tmp_path: Path) -> None:
        """The turns of a row are committed together, or not at all."""
        path = tmp_path / "a.jsonl"
        path.write_text('{"prompt": "p", "response": "r"}\n' * 5)
        pace = Pace()
        pace.rows = 3
        chunks = list(read_chunks(find_inputs([str(path)]), Layout(turns=Turns.ALL), pace))
        assert [(len(chunk.rows), chunk.line) for chunk in chunks] == [(4, 2), (4, 4), (2, 5)]

    def test_chats_without_the_turn_are_counted_and_have_no_row(self, tmp_path: Path) -> None:
        """They are done as well: a scan that goes on does not read them again."""
        path = tmp_path / "a.jsonl"
        path.write_text('{"prompt": "p"}\n' * 3)
        (chunk,) = read_chunks(find_inputs([str(path)]), Layout(turns=Turns.ASSISTANT), Pace())
        assert (list(chunk.rows), chunk.empty, chunk.line) == ([], 3, 3)

    def test_a_strict_reading_ends_at_the_first_bad_row(self, tmp_path: Path) -> None:
        """What stands before it comes first, and the error names the place."""
        path = tmp_path / "a.jsonl"
        path.write_text('{"text": "a"}\nbroken\n{"text": "b"}\n')
        chunks: list[Chunk] = []
        with pytest.raises(InvalidInput, match=r"a\.jsonl:2: not JSON"):
            chunks.extend(read_chunks(find_inputs([str(path)]), Layout(), Pace(), is_strict=True))
        assert [chunk.line for chunk in chunks] == [1]

    def test_a_slow_judge_gets_smaller_chunks(self) -> None:
        """So that its answers reach the disk before long; a quick one gets larger ones."""
        pace = Pace()
        first = pace.rows
        pace.took(first, 0.1)
        assert pace.rows == 2 * first
        for _ in range(10):
            pace.took(pace.rows, 1000.0)
        assert pace.rows == 1


class Lines:
    """Keeps lines in memory; fails at the nth write."""

    def __init__(self, fail_at: int = 0) -> None:
        self.lines: list[bytes] = []
        self._fail_at = fail_at

    def write(self, lines: bytes) -> None:
        self.lines.append(lines)
        if len(self.lines) == self._fail_at:
            raise GuardrailError("the disk is full")

    def sync(self) -> int:
        return 0


def chunks_of(count: int) -> Iterator[Chunk]:
    for number in range(1, count + 1):
        yield Chunk([row(number, f"text {number}")], 0, number, number)


class TestRun:
    def test_results_come_in_the_order_of_the_rows(self) -> None:
        """Three threads, one order; none of them is left behind."""
        lines = Lines()
        before = set(threading.enumerate())
        sink = Sink(lines)
        run(chunks_of(50), Judge(Guard(KeywordClassifier({}), policy=load_policy("default"))), sink, Pace())
        assert [json.loads(line)["id"] for line in lines.lines] == list(range(1, 51))
        assert sink.summary.rows == 50
        left = {thread for thread in set(threading.enumerate()) - before if thread.name.startswith("guardrail-scan")}
        for thread in left:
            thread.join(5)
        assert not any(thread.is_alive() for thread in left)

    def test_reading_stays_a_few_chunks_ahead(self) -> None:
        """Memory does not hold the log, however slow the judge is."""
        read: list[int] = []

        def chunks() -> Iterator[Chunk]:
            for chunk in chunks_of(100):
                read.append(chunk.line)
                yield chunk

        class Waiting(KeywordClassifier):
            async def classify(self, conversations: Sequence[Conversation]) -> list[Verdict]:
                judged = int(conversations[0].last.content.split()[1])
                assert len(read) <= judged + 5
                return await super().classify(conversations)

        sink = Sink()
        run(chunks(), Judge(Guard(Waiting({}), policy=load_policy("default"))), sink, Pace())
        assert sink.summary.unverified == 0
        assert sink.summary.rows == 100

    def test_a_reading_error_is_raised_after_what_was_read(self) -> None:
        """Nothing that was read is lost."""

        def chunks() -> Iterator[Chunk]:
            yield from chunks_of(3)
            raise GuardrailError("the disk is gone")

        lines = Lines()
        with pytest.raises(GuardrailError, match="gone"):
            run(chunks(), Judge(Guard(KeywordClassifier({}), policy=load_policy("default"))), Sink(lines), Pace())
        assert len(lines.lines) == 3

    def test_nothing_is_written_behind_a_failed_write(self) -> None:
        """A gap in the results would look like none."""
        lines = Lines(fail_at=3)
        with pytest.raises(GuardrailError, match="full"):
            run(chunks_of(50), Judge(Guard(KeywordClassifier({}), policy=load_policy("default"))), Sink(lines), Pace())
        assert len(lines.lines) == 3


def result(number: int) -> ScanResult:
    judge = Judge(Guard(KeywordClassifier({}), policy=load_policy("default")))
    return judge.judge([row(number, "x")])[0]


class TestResultWriter:
    @pytest.mark.parametrize("name", ["r.jsonl", "r.jsonl.gz"])
    def test_what_came_after_the_last_sync_is_cut_off(self, tmp_path: Path, name: str) -> None:
        """Half a line or half a gzip member of a killed scan leaves no trace."""
        output = tmp_path / name
        with ResultWriter(output) as writer:
            writer.write(result(1).to_json_line())
            kept = writer.sync()
            writer.write(result(2).to_json_line())
            writer.sync()
        with open(f"{output}.partial", "ab") as file:
            file.write(b'{"torn')
        with ResultWriter(output, kept) as writer:
            writer.write(result(3).to_json_line())
            writer.commit()
        data = output.read_bytes()
        lines = (gzip.decompress(data) if name.endswith(".gz") else data).splitlines()
        assert [json.loads(line)["id"] for line in lines] == [1, 3]

    def test_a_partial_file_that_lost_rows_is_not_continued(self, tmp_path: Path) -> None:
        """It would end with fewer rows than it says."""
        (tmp_path / "r.jsonl.partial").write_bytes(b"12345")
        with pytest.raises(ConfigurationError, match="expected at least 6"):
            ResultWriter(tmp_path / "r.jsonl", 6)

    def test_two_scans_do_not_write_one_file(self, tmp_path: Path) -> None:
        """The second is refused, and the first loses nothing."""
        with ResultWriter(tmp_path / "r.jsonl") as writer:
            writer.write(b"1\n")
            writer.sync()
            with pytest.raises(ConfigurationError, match="another scan"):
                ResultWriter(tmp_path / "r.jsonl")
            writer.commit()
        assert (tmp_path / "r.jsonl").read_bytes() == b"1\n"

    def test_parquet_has_a_column_for_what_is_asked_most(self, tmp_path: Path) -> None:
        """The rest is there as JSON, and bad rows are rows."""
        pq = pytest.importorskip("pyarrow.parquet")
        bad = ScanResult(BadRow(None, "f", 2, 2, "cut"), None)
        good = result(1)
        with ResultWriter(tmp_path / "r.parquet") as writer:
            writer.write(good.to_json_line() + bad.to_json_line())
            writer.commit()
        assert [path.name for path in tmp_path.iterdir()] == ["r.parquet"]
        first, second = pq.read_table(tmp_path / "r.parquet").to_pylist()
        assert (first["id"], first["line"], first["decision"], first["hash"]) == ("1", 1, "allow", good.hash)
        assert dict(first["scores"])["hate"] == 0.01
        assert json.loads(first["verdicts"]) == good.to_dict()["verdicts"]
        assert (second["decision"], second["error"], second["scores"]) == (None, "cut", None)

"""The log scanner: every row is there, each is judged as any other door would judge it, none is taken as safe."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from guardrail.errors import ClassificationError, ConfigurationError, InvalidInput
from guardrail.logscan import BadRow, ResultWriter, Row, Summary, conversation_of, read_rows, readers, scan
from guardrail.logscan.rows import content_hash
from guardrail.pipeline import Guard
from guardrail.policy import load_policy
from guardrail.protocols import HazardClassifier
from guardrail.taxonomy import HazardCategory
from guardrail.testing import FailingClassifier, KeywordClassifier
from guardrail.verdict import Action, Conversation, Message, Rail, Role, Verdict

EXAMPLES = Path(__file__).parents[2] / "examples"


def guard(classifier: HazardClassifier | None = None) -> Guard:
    return Guard(classifier or KeywordClassifier({"badword": HazardCategory.HATE}), policy=load_policy("default"))


def jsonl(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def rows_of(path: Path, content: bytes) -> list[Row | BadRow]:
    path.write_bytes(content)
    return list(read_rows(path))


def errors_of(rows: Sequence[Row | BadRow]) -> list[str]:
    return [row.error if isinstance(row, BadRow) else "" for row in rows]


class TestConversationOf:
    def test_the_last_message_is_judged_and_the_others_are_its_context(self) -> None:
        """OpenAI-style messages become a conversation in their order."""
        columns = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
        assert conversation_of(columns) == Conversation.of("hello", role=Role.ASSISTANT, prompt="hi")

    def test_text_parts_are_joined(self) -> None:
        """A message given in text parts is judged whole."""
        parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
        assert conversation_of({"messages": [{"role": "user", "content": parts}]}) == Conversation.of("one\ntwo")

    def test_messages_may_be_json_in_a_string(self) -> None:
        """A CSV cell can hold a chat."""
        columns = {"messages": json.dumps([{"role": "user", "content": "hi"}])}
        assert conversation_of(columns) == Conversation.of("hi")

    def test_a_tool_call_of_an_earlier_turn_says_nothing(self) -> None:
        """Null content before the last message is no text, and does not cost the row its judgement."""
        turns = [
            {"role": "user", "content": "weather?"},
            {"role": "assistant", "content": None, "tool_calls": []},
            {"role": "tool", "content": "sunny"},
            {"role": "assistant", "content": "It is sunny."},
        ]
        assert conversation_of({"messages": turns}).messages == (
            Message(Role.USER, "weather?"),
            Message(Role.TOOL, "sunny"),
            Message(Role.ASSISTANT, "It is sunny."),
        )

    @pytest.mark.parametrize(
        ("columns", "expected"),
        [
            ({"prompt": "p", "response": "r"}, Conversation.of("r", role=Role.ASSISTANT, prompt="p")),
            ({"prompt": "p"}, Conversation.of("p")),
            ({"prompt": "p", "response": None}, Conversation.of("p")),
            ({"prompt": "", "response": "r"}, Conversation.of("r", role=Role.ASSISTANT)),
            ({"response": "r"}, Conversation.of("r", role=Role.ASSISTANT)),
            ({"text": "t"}, Conversation.of("t")),
            ({"text": "t", "role": None, "prompt": None}, Conversation.of("t")),
            ({"text": "t", "role": "assistant"}, Conversation.of("t", role=Role.ASSISTANT)),
            (
                {"text": "t", "role": "assistant", "prompt": "p"},
                Conversation.of("t", role=Role.ASSISTANT, prompt="p"),
            ),
        ],
    )
    def test_columns_say_what_is_judged(self, columns: dict[str, Any], expected: Conversation) -> None:
        """The response with its prompt as context, the prompt where there is no response, a text in its role."""
        assert conversation_of(columns) == expected

    @pytest.mark.parametrize(
        ("columns", "reason"),
        [
            ({}, "expected a column"),
            ({"content": "x"}, "got content"),
            ({"text": 3}, "expected text, got int"),
            ({"prompt": ["x"]}, "expected text, got list"),
            ({"text": "x", "role": "system"}, "role"),
            ({"text": "x", "prompt": "p"}, "role=assistant"),
            ({"text": "\ud800"}, "lone surrogate at offset 0"),
            ({"prompt": "a\udfff", "response": "r"}, "message 1 of 2 is not valid Unicode"),
            ({"messages": []}, "at least one"),
            ({"messages": {}}, "expected a list"),
            ({"messages": "no json"}, "not JSON"),
            ({"messages": ["x"]}, "expected an object"),
            ({"messages": [{"content": "x"}]}, "role"),
            ({"messages": [{"role": "wizard", "content": "x"}]}, "role"),
            ({"messages": [{"role": "user", "content": None}]}, "got null"),
            ({"messages": [{"role": "user", "content": 1}]}, "got int"),
            ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "not text"),
            ({"messages": [{"role": "user", "content": ["x"]}]}, "not text"),
            ({"messages": [{"role": "system", "content": "x"}]}, "user or assistant"),
        ],
    )
    def test_a_row_without_a_text_to_judge_says_why(self, columns: dict[str, Any], reason: str) -> None:
        """Nothing is made up for a row that cannot be read."""
        with pytest.raises(InvalidInput, match=reason):
            conversation_of(columns)

    def test_what_does_not_look_like_a_column_is_not_repeated(self) -> None:
        """A key that may be a user's text stays out of messages."""
        with pytest.raises(InvalidInput) as caught:
            conversation_of({"my secret is 4711": 1})
        assert "secret" not in str(caught.value)


class TestReadJsonLines:
    def test_rows_keep_their_ids(self, tmp_path: Path) -> None:
        """The row's own id, of its own type; else file and line."""
        path = jsonl(tmp_path / "a.jsonl", {"id": 7, "text": "x"}, {"text": "y"}, {"id": None, "text": "z"})
        assert [row.id for row in read_rows(path)] == [7, f"{path}:2", f"{path}:3"]

    def test_a_bad_row_is_never_dropped_and_never_fatal(self, tmp_path: Path) -> None:
        """Each bad row has its place and its reason, and the rows around it are read."""
        content = b"\n".join(
            [
                b'\xef\xbb\xbf{"text": "good"}',
                b'{"text": "cut off',
                b'{"text": "\xff\xfe"}',
                b"",
                b"[1]",
                b'{"id": "mine", "text": 5}',
                b'{"text": "\\ud800"}',
                b'{"text": NaN}',
                b'{"id": ' + b"9" * 5000 + b"}",
                b"[" * 100_000,
                b'{"text": "last\xe2\x80\xa8line"}',
            ]
        )
        rows = rows_of(tmp_path / "a.jsonl", content)
        errors = errors_of(rows)
        assert [row.line for row in rows] == [1, 2, 3, 5, 6, 7, 8, 9, 10, 11]
        assert (errors[0], errors[-1]) == ("", "")
        reasons = ["not JSON", "not UTF-8: byte 11", "JSON object", "got int", "surrogate", "NaN", "number", "deeply"]
        for error, reason in zip(errors[1:-1], reasons, strict=True):
            assert reason in error
        assert rows[4].id == "mine"

    def test_an_error_holds_no_text_of_the_row(self, tmp_path: Path) -> None:
        """A reason can go into a ticket."""
        rows = rows_of(tmp_path / "a.jsonl", b'{"text": "my secret"\n{"text": "my secret", "role": "secret"}\n')
        assert "secret" not in "".join(errors_of(rows))

    def test_an_overlong_line_is_one_bad_row(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A line without an end does not take all the memory, and the rows after it are read."""
        monkeypatch.setattr(readers, "_MAX_LINE_BYTES", 100)
        content = b'{"text": "a"}\n' + b"x" * 1000 + b'\n{"text": "b"}\n' + b"y" * 300
        rows = rows_of(tmp_path / "a.jsonl", content)
        assert [bool(error) for error in errors_of(rows)] == [False, True, False, True]
        assert rows[-1].end_byte == len(content)

    def test_a_megabyte_is_a_row_like_any_other(self, tmp_path: Path) -> None:
        """Long texts are read whole."""
        (row,) = read_rows(jsonl(tmp_path / "a.jsonl", {"text": "x" * 1_000_000}))
        assert isinstance(row, Row)
        assert len(row.conversation.last.content) == 1_000_000

    def test_a_name_without_a_known_ending_is_looked_into(self, tmp_path: Path) -> None:
        """What begins with a brace is JSON Lines, anything else is CSV; no row is lost by looking."""
        (row,) = rows_of(tmp_path / "a.log", b'\n{"text": "x"}\n')
        assert (row.line, errors_of([row])) == (2, [""])
        assert errors_of(rows_of(tmp_path / "b.log", b"text\nhello\n")) == [""]
        assert rows_of(tmp_path / "c.log", b"") == []


class TestReadCsv:
    def test_quoted_line_feeds_a_byte_order_mark_and_long_fields(self, tmp_path: Path) -> None:
        """What spreadsheets write is read; a row's line is where it begins."""
        content = b'\xef\xbb\xbfid,prompt,response\r\n1,"a\nb",\r\n\r\n2,p,"' + b"r" * 300_000 + b'"\r\n'
        rows = rows_of(tmp_path / "a.csv", content)
        assert errors_of(rows) == ["", ""]
        assert [(row.id, row.line) for row in rows] == [("1", 2), ("2", 5)]
        conversations = [row.conversation for row in rows if isinstance(row, Row)]
        assert conversations[0] == Conversation.of("a\nb")
        assert conversations[1] == Conversation.of("r" * 300_000, role=Role.ASSISTANT, prompt="p")

    def test_bad_rows_are_kept_with_their_reason(self, tmp_path: Path) -> None:
        """Bytes that are not UTF-8, too few or too many fields: the rows after them are read."""
        content = b"id,text\n1,\xff\n2\n3,a,b\n,x\n5,ok\n"
        rows = rows_of(tmp_path / "a.csv", content)
        reasons = ["not UTF-8: field 2", "expected 2 fields", "expected 2 fields", "", ""]
        for error, reason in zip(errors_of(rows), reasons, strict=True):
            assert reason in error
            assert bool(error) is bool(reason)
        assert rows[3].id == f"{tmp_path / 'a.csv'}:5"

    def test_a_quote_that_is_never_closed_is_an_error(self, tmp_path: Path) -> None:
        """The rest of the file is not judged as if it were one message."""
        rows = rows_of(tmp_path / "a.csv", b'id,text\n1,ok\n2,"open\n3,x\n4,y\n')
        assert len(rows) == 2
        assert "not CSV" in errors_of(rows)[1]

    def test_an_overlong_line_is_one_bad_row(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The rows after it are read."""
        monkeypatch.setattr(readers, "_MAX_LINE_BYTES", 100)
        rows = rows_of(tmp_path / "a.csv", b"text\na\n" + b"x" * 1000 + b"\nb\n")
        assert [bool(error) for error in errors_of(rows)] == [False, True, False]

    def test_an_unreadable_header_leaves_no_row_unreported(self, tmp_path: Path) -> None:
        """The next row is not taken for the header."""
        rows = rows_of(tmp_path / "a.csv", b'"id"x,text\n1,a\n2,b\n')
        assert [bool(error) for error in errors_of(rows)] == [True, True, True]

    def test_empty_cells_are_not_there_but_an_empty_text_is_a_text(self, tmp_path: Path) -> None:
        """A row of commas is a row: its empty message goes to the guard, which cannot verify it."""
        rows = rows_of(tmp_path / "a.csv", b"id,prompt,response\n,,\n")
        assert [row.conversation for row in rows if isinstance(row, Row)] == [Conversation.of("")]


class TestScan:
    @pytest.mark.parametrize("chunk_rows", [1, 2, 3, 100])
    def test_there_is_one_result_for_each_row_in_their_order(self, tmp_path: Path, chunk_rows: int) -> None:
        """Bad rows keep their place among the good ones, whatever the chunk."""
        path = tmp_path / "a.jsonl"
        path.write_text('{"text": "fine"}\nbroken\n{"text": "badword"}\n{"id": 4}\n{"text": "x"}\n', "utf-8")
        results = list(scan(read_rows(path), guard(), chunk_rows=chunk_rows))
        assert [result.row.line for result in results] == [1, 2, 3, 4, 5]
        actions = [result.decision.action if result.decision else None for result in results]
        assert actions == [Action.ALLOW, None, Action.BLOCK, None, Action.ALLOW]

    def test_a_result_is_the_rows_place_and_the_decision_of_any_other_door(self, tmp_path: Path) -> None:
        """The scanner says where the row is from; to the decision it adds nothing, and takes nothing away."""
        judge = guard()
        path = jsonl(tmp_path / "a.jsonl", {"id": "r1", "text": "badword"})
        (result,) = scan(read_rows(path), judge)
        conversation = Conversation.of("badword")
        place = {"id": "r1", "file": str(path), "line": 1, "turn": 1, "hash": content_hash(conversation)}
        assert result.to_dict() == {**place, **judge.check(conversation).to_dict()}
        assert json.loads(result.to_json_line()) == result.to_dict()

    def test_a_bad_row_has_no_decision_that_could_be_read_as_allowed(self, tmp_path: Path) -> None:
        """Its result has the keys that a reader filters on, and the place and the reason."""
        path = tmp_path / "a.jsonl"
        (row,) = rows_of(path, b"broken\n")
        (result,) = scan([row], guard())
        written = result.to_dict()
        assert (written["decision"], written["outcome"]) == (None, "unverified")
        assert (written["id"], written["file"], written["line"]) == (f"{path}:1", str(path), 1)
        assert "not JSON" in written["error"]
        assert not result.is_judged

    def test_an_id_that_is_not_unicode_comes_back_as_it_came(self, tmp_path: Path) -> None:
        """Nothing about a row stops the scan, not even its id."""
        (row,) = rows_of(tmp_path / "a.jsonl", b'{"id": "\\ud800\xc3\xa9", "text": "x"}\n')
        (result,) = scan([row], guard())
        assert json.loads(result.to_json_line())["id"] == "\ud800é"

    def test_one_failure_does_not_cost_the_other_rows_their_answer(self, tmp_path: Path) -> None:
        """The row that could not be judged is unverified, and blocked by default."""
        path = jsonl(tmp_path / "a.jsonl", *({"text": text} for text in ["a", "poison", "c"]))
        classifier = FailingClassifier(ClassificationError("told to fail"), on="poison")
        results = list(scan(read_rows(path), guard(classifier)))
        assert [result.is_judged for result in results] == [True, False, True]
        assert results[1].decision is not None
        assert results[1].decision.action is Action.BLOCK

    def test_rows_are_read_as_they_are_needed(self) -> None:
        """Memory holds a chunk, not the file."""
        read = 0

        def endless() -> Iterator[Row]:
            nonlocal read
            while True:
                read += 1
                yield Row(read, "f", read, read, Conversation.of("x"))

        results = scan(endless(), guard(), chunk_rows=4)
        assert [next(results).row.id for _ in range(6)] == [1, 2, 3, 4, 5, 6]
        assert read == 8

    def test_long_rows_make_short_chunks(self) -> None:
        """Rows of megabytes do not add up to gigabytes."""
        sizes: list[int] = []

        class Counting(KeywordClassifier):
            async def classify(self, conversations: Sequence[Conversation]) -> list[Verdict]:
                sizes.append(len(conversations))
                return await super().classify(conversations)

        rows = [Row(n, "f", n, n, Conversation.of(f"{n}" * 1_000_000)) for n in range(10)]
        assert len(list(scan(rows, guard(Counting({}))))) == 10
        assert max(sizes) == 4


class TestSummary:
    def test_it_counts_what_the_results_say(self, tmp_path: Path) -> None:
        """Decisions, categories, lost judgements; the block rate is over rows with a decision."""
        path = tmp_path / "a.jsonl"
        path.write_text('{"text": "fine"}\nbroken\n{"text": "badword"}\n{"text": " "}\n{"text": "x"}\n', "utf-8")
        summary = Summary()
        for result in scan(read_rows(path), guard()):
            summary.add(result)
        assert (summary.rows, summary.errors, summary.unverified, summary.unjudged) == (5, 1, 1, 2)
        assert summary.decisions == {Action.ALLOW: 2, Action.BLOCK: 2}
        assert summary.categories == summary.withheld == {HazardCategory.HATE: 1}
        assert summary.block_rate == 0.5
        assert [row.line for row in summary.first_errors] == [2]

    def test_no_rows_have_no_block_rate(self) -> None:
        """An empty log is not a division by zero."""
        assert Summary().block_rate == 0.0


class TestResultWriter:
    def test_the_name_is_given_to_a_complete_file_only(self, tmp_path: Path) -> None:
        """Until the end, an earlier result stays as it is."""
        output = tmp_path / "out.jsonl"
        output.write_text("earlier")
        (result,) = scan([Row(1, "f", 1, 1, Conversation.of("x"))], guard())
        with ResultWriter(output) as writer:
            writer.write(result.to_json_line())
            assert output.read_text() == "earlier"
            writer.commit()
        assert json.loads(output.read_text())["id"] == 1
        assert list(tmp_path.iterdir()) == [output]

    def test_an_interrupted_scan_keeps_what_it_has(self, tmp_path: Path) -> None:
        """The partial file holds whole lines, under a name that says so."""
        (result,) = scan([Row(1, "f", 1, 1, Conversation.of("x"))], guard())
        with suppress(KeyboardInterrupt), ResultWriter(tmp_path / "out.jsonl") as writer:
            writer.write(result.to_json_line())
            raise KeyboardInterrupt
        assert json.loads((tmp_path / "out.jsonl.partial").read_text())["id"] == 1
        assert not (tmp_path / "out.jsonl").exists()

    def test_a_file_that_cannot_be_written_is_said_at_once(self, tmp_path: Path) -> None:
        """Before anything is judged."""
        with pytest.raises(ConfigurationError, match="cannot write"):
            ResultWriter(tmp_path / "no" / "out.jsonl")

    def test_a_device_is_written_to_directly(self) -> None:
        """No file can be put in its place."""
        with ResultWriter("/dev/null") as writer:
            writer.commit()
        assert Path("/dev/null").is_char_device()


class TestDeadlineOfABatch:
    def test_the_policys_deadline_counts_once_for_each_message(self) -> None:
        """A chunk of many rows is not lost because one check's time is over; a limit of the caller's still holds."""
        judge = guard()
        limit_s = judge.policy.deadline_s
        assert judge._limit_s(None, checks=10) == 10 * limit_s
        assert judge._limit_s(None, checks=1) == limit_s
        assert judge._limit_s(1.5, checks=10) == 1.5


class TestExamples:
    def test_the_sample_log_can_be_read_to_its_last_row(self) -> None:
        """A stranger's first scan has no bad row: every category twice, safe rows, both roles, code; ids are unique."""
        rows = list(read_rows(EXAMPLES / "chat_log.jsonl"))
        assert errors_of(rows) == [""] * len(rows)
        assert len(rows) >= 44
        assert len({row.id for row in rows}) == len(rows)
        kinds = [str(row.id).rsplit("-", 1)[0] for row in rows]
        hazards = set(kinds) - {"safe", "code"}
        assert len(hazards) == len(HazardCategory)
        assert all(kinds.count(kind) >= 2 for kind in hazards)
        assert kinds.count("safe") >= 16
        assert {row.conversation.rail for row in rows if isinstance(row, Row)} == set(Rail)

    def test_the_csv_twin_says_the_same(self) -> None:
        """The same row is the same conversation in both formats."""
        conversations = {
            row.id: row.conversation for row in read_rows(EXAMPLES / "chat_log.jsonl") if isinstance(row, Row)
        }
        twins = list(read_rows(EXAMPLES / "chat_log.csv"))
        assert len(twins) >= 5
        for twin in twins:
            assert isinstance(twin, Row)
            assert twin.conversation == conversations[twin.id]


def test_the_csv_limit_is_what_a_row_may_have(tmp_path: Path) -> None:
    """The csv module's own limit of 128 KiB is lifted by reading."""
    assert len(rows_of(tmp_path / "a.csv", b"text\nx\n")) == 1
    assert csv.field_size_limit() >= 64 * 1024 * 1024

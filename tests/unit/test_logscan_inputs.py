"""What a scan reads: names into inputs, whatever they are packed in, and every layout that logs come in."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest

from guardrail.errors import GuardrailError, InvalidInput, MissingExtra
from guardrail.logscan import BadRow, EmptyRow, Layout, Row, Turns, read_rows
from guardrail.logscan import inputs as inputs_module
from guardrail.logscan.inputs import Input, find_inputs
from guardrail.logscan.readers import Position, Record, read_log
from guardrail.logscan.rows import turns_of
from guardrail.verdict import Conversation, Message, Role

CHAT = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": None, "tool_calls": [{"id": "c1"}]},
    {"role": "tool", "content": "sunny"},
    {"role": "assistant", "content": "It is sunny."},
    {"role": "user", "content": "thanks"},
]
ROWS = [{"id": number, "messages": CHAT, "tag": f"t{number}"} for number in range(2500)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def pack(path: Path) -> Path:
    """Writes ``ROWS`` as the name says."""
    pa = pytest.importorskip("pyarrow")
    if path.suffix == ".gz":  # two members, as ``cat a.gz b.gz`` makes them
        path.write_bytes(gzip.compress(LINES[:5000]) + gzip.compress(LINES[5000:]))
    elif path.suffix == ".zst":
        path.write_bytes(pa.Codec("zstd").compress(LINES, asbytes=True))
    elif path.suffix == ".parquet":
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=700)
    else:
        path.write_bytes(LINES)
    return path


def log(path: Path | str) -> Input:
    (found,) = find_inputs([str(path)])
    return found


def flat(records: list[Record]) -> list[Row | BadRow | EmptyRow]:
    return [row for record in records for row in record]


class TestTurns:
    def test_every_turn_has_its_number_and_the_turns_before_it(self) -> None:
        """``all`` judges what user and assistant said; a tool call says nothing, and keeps its number."""
        turns = turns_of({"messages": CHAT}, Layout(turns=Turns.ALL))
        assert [number for number, _ in turns] == [2, 5, 6]
        assert [conversation.last.content for _, conversation in turns] == ["hi", "It is sunny.", "thanks"]
        assert turns[1][1].messages == (
            Message(Role.SYSTEM, "Be kind."),
            Message(Role.USER, "hi"),
            Message(Role.TOOL, "sunny"),
            Message(Role.ASSISTANT, "It is sunny."),
        )

    def test_the_assistants_alone_may_be_asked_for(self) -> None:
        """A chat without one has nothing to judge, which is no fault of the row."""
        layout = Layout(turns=Turns.ASSISTANT)
        assert [number for number, _ in turns_of({"messages": CHAT}, layout)] == [5]
        assert turns_of({"messages": CHAT[:2]}, layout) == []

    def test_a_prompt_and_its_response_are_two_turns(self) -> None:
        """Columns are a short chat."""
        turns = turns_of({"prompt": "p", "response": "r"}, Layout(turns=Turns.ALL))
        assert turns == [(1, Conversation.of("p")), (2, Conversation.of("r", role=Role.ASSISTANT, prompt="p"))]

    def test_the_last_turn_keeps_its_number_behind_a_tool_call(self) -> None:
        """The number is that of the message in the row, not of what is left of it."""
        ((number, _),) = turns_of({"messages": CHAT}, Layout())
        assert number == 6


class TestLayouts:
    def test_sharegpt(self) -> None:
        """``from`` and ``value`` are role and content."""
        chat = [{"from": "system", "value": "s"}, {"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]
        ((number, conversation),) = turns_of({"conversations": chat}, Layout())
        assert (number, conversation.rail.value) == (3, "response")
        assert [message.role for message in conversation.messages] == [Role.SYSTEM, Role.USER, Role.ASSISTANT]

    @pytest.mark.parametrize(
        ("columns", "layout", "expected"),
        [
            ({"question": "q", "answer": "a"}, Layout(), Conversation.of("a", role=Role.ASSISTANT, prompt="q")),
            ({"content": "c"}, Layout(), Conversation.of("c")),
            ({"content": "c"}, Layout(role=Role.ASSISTANT), Conversation.of("c", role=Role.ASSISTANT)),
            ({"odd": "o", "text": "t"}, Layout(text_field="odd"), Conversation.of("o")),
            ({"odd": "o"}, Layout(text_field="odd", role=Role.ASSISTANT), Conversation.of("o", role=Role.ASSISTANT)),
            (
                {"odd": "o", "role": "assistant", "prompt": "p"},
                Layout(text_field="odd"),
                Conversation.of("o", role=Role.ASSISTANT, prompt="p"),
            ),
        ],
    )
    def test_other_columns_are_found_or_named(
        self, columns: dict[str, Any], layout: Layout, expected: Conversation
    ) -> None:
        """Names that exports use are known; what is named counts more than what would be found."""
        assert turns_of(columns, layout) == [(len(expected.messages), expected)]

    def test_a_row_without_the_named_column_is_a_bad_one(self) -> None:
        """Another column is not judged in its place."""
        with pytest.raises(InvalidInput, match="expected a column odd, got text"):
            turns_of({"text": "t"}, Layout(text_field="odd"))

    def test_how_rows_are_read_is_told_once(self, tmp_path: Path) -> None:
        """A wrong guess can be seen, and overruled."""
        path = tmp_path / "a.jsonl"
        path.write_text('{"id": 1}\n' + '{"question": "q", "answer": "a"}\n' * 3)
        told: list[str] = []
        list(read_log(log(path), Layout(), tell_layout=told.append))
        assert told == ["question as prompt and answer as response"]


class TestPacked:
    @pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.log.gz", "a.parquet"])
    def test_what_a_log_is_packed_in_does_not_matter(self, tmp_path: Path, name: str) -> None:
        """The same rows, ids, turns and kept columns."""
        rows = list(read_rows(pack(tmp_path / name), Layout(keep=("tag", "none"))))
        assert [row.id for row in rows] == list(range(2500))
        assert [row.line for row in rows] == list(range(1, 2501))
        plain = list(read_rows(pack(tmp_path / "plain.jsonl"), Layout()))
        for row, other in zip(rows, plain, strict=True):
            assert isinstance(row, Row)
            assert isinstance(other, Row)
            assert (row.conversation, row.turn) == (other.conversation, other.turn)
        assert [row.kept for row in rows[:2]] == [{"tag": "t0", "none": None}, {"tag": "t1", "none": None}]

    @pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
    @pytest.mark.parametrize("line", [1, 699, 700, 701, 2499, 2500])
    def test_reading_goes_on_behind_any_record(self, tmp_path: Path, name: str, line: int) -> None:
        """No record is read twice, and none is left out."""
        source = log(pack(tmp_path / name))
        rows = flat(list(read_log(source, Layout())))
        after = Position(line, rows[line - 1].end_byte)
        assert flat(list(read_log(source, Layout(), after=after))) == rows[line:]

    @pytest.mark.parametrize("line", [1, 3, 5])
    def test_csv_goes_on_too(self, tmp_path: Path, line: int) -> None:
        """A quoted line feed does not confuse the count, and the header is read again."""
        path = tmp_path / "a.csv"
        path.write_text('id,text\n1,"a\nb"\n2\n3,c\n')
        rows = flat(list(read_log(log(path), Layout())))
        assert [row.line for row in rows] == [2, 4, 5]
        assert [row.line for row in flat(list(read_log(log(path), Layout(), after=Position(line, 0))))] == [
            at for at in (2, 4, 5) if at > line
        ]

    def test_what_is_whole_before_a_damaged_place_is_read(self, tmp_path: Path) -> None:
        """A log that is cut off gives its rows and one bad one that says so: nothing is lost in silence."""
        path = tmp_path / "a.jsonl.gz"
        data = gzip.compress(LINES)
        path.write_bytes(data[: len(data) // 2])
        *rows, last = read_rows(path)
        assert len(rows) > 1000
        assert all(isinstance(row, Row) for row in rows)
        assert isinstance(last, BadRow)
        assert "damaged or ends too soon" in last.error

    def test_a_damaged_parquet_file_is_a_bad_row(self, tmp_path: Path) -> None:
        """So is what is no Parquet at all but its name."""
        path = pack(tmp_path / "a.parquet")
        path.write_bytes(path.read_bytes()[:-100])
        (row,) = read_rows(path)
        assert isinstance(row, BadRow)
        assert "not Parquet, or damaged" in row.error

    def test_parquet_cells_become_what_json_can_say(self, tmp_path: Path) -> None:
        """Times, decimals and NaN do not stop a scan; text that is stored as bytes is text."""
        pa = pytest.importorskip("pyarrow")
        import datetime

        import pyarrow.parquet as pq

        when = datetime.datetime(2024, 5, 1, 12)
        table = pa.table({"text": [b"hello", b"\xff"], "at": [when, when], "share": [float("nan"), 0.5]})
        pq.write_table(table, tmp_path / "a.parquet")
        good, bad = read_rows(tmp_path / "a.parquet", Layout(keep=("at", "share")))
        assert isinstance(good, Row)
        assert good.conversation == Conversation.of("hello")
        assert good.kept == {"at": "2024-05-01 12:00:00", "share": None}
        assert isinstance(bad, BadRow)
        assert "got bytes" in bad.error


class TestFindInputs:
    def test_a_folder_is_its_logs_in_the_order_of_their_names(self, tmp_path: Path) -> None:
        """At any depth, packed or not; other files and hidden ones are passed over."""
        names = ["b.jsonl.gz", "a/c.csv", "z.parquet", "notes.txt", ".hidden.jsonl"]
        for name in names:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
        found = [one.name for one in find_inputs([str(tmp_path)])]
        assert found == [str(tmp_path / name) for name in ("a/c.csv", "b.jsonl.gz", "z.parquet")]

    def test_a_pattern_is_what_it_matches(self, tmp_path: Path) -> None:
        """For shells that leave it as it is."""
        for name in ("b.log", "a.log", "c.txt"):
            (tmp_path / name).touch()
        assert [Path(one.name).name for one in find_inputs([str(tmp_path / "*.log")])] == ["a.log", "b.log"]

    @pytest.mark.parametrize("name", ["missing.jsonl", "*.nothing", "empty"])
    def test_a_name_that_stands_for_nothing_is_refused(self, tmp_path: Path, name: str) -> None:
        """Nothing is judged before all that was named is there."""
        (tmp_path / "empty").mkdir()
        with pytest.raises(InvalidInput, match="there is no"):
            find_inputs([str(tmp_path / name)])

    def test_the_same_file_twice_is_refused(self, tmp_path: Path) -> None:
        """Its rows would count twice, whichever way it was named."""
        path = tmp_path / "a.jsonl"
        path.touch()
        with pytest.raises(InvalidInput, match="named twice"):
            find_inputs([str(path), str(tmp_path)])

    def test_a_stamp_changes_with_the_file(self, tmp_path: Path) -> None:
        """A scan that goes on can tell."""
        path = tmp_path / "a.jsonl"
        path.write_text("1")
        before = log(path)
        path.write_text("12")
        assert log(path) != before
        assert before.can_be_read_again

    def test_standard_input_is_read_and_cannot_be_read_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whatever it is packed in."""
        source = log("-")
        assert not source.can_be_read_again
        for data in (LINES, gzip.compress(LINES)):
            monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
            assert len(flat(list(read_log(source, Layout())))) == 2500


class TestUrls:
    @pytest.fixture(autouse=True)
    def _files(self) -> Any:
        fsspec = pytest.importorskip("fsspec")
        files = fsspec.filesystem("memory")
        files.pipe("/logs/b.jsonl.gz", gzip.compress(LINES))
        files.pipe("/logs/a.jsonl", LINES)
        files.pipe("/logs/readme.txt", b"x")
        yield
        files.rm("/logs", recursive=True)

    @pytest.mark.parametrize(
        ("url", "names"),
        [
            ("memory://logs/a.jsonl", ["a.jsonl"]),
            ("memory://logs", ["a.jsonl", "b.jsonl.gz"]),
            ("memory://logs/*.gz", ["b.jsonl.gz"]),
        ],
    )
    def test_a_url_is_a_file_a_folder_or_a_pattern(self, url: str, names: list[str]) -> None:
        """As on the disk."""
        found = find_inputs([url])
        assert [one.name.rsplit("/", 1)[-1] for one in found] == names
        for one in found:
            assert len(flat(list(read_log(one, Layout())))) == 2500

    def test_what_is_not_there_is_said(self) -> None:
        """As for a file."""
        with pytest.raises(InvalidInput, match="there is no"):
            find_inputs(["memory://logs/none.jsonl"])

    def test_an_unknown_kind_of_url_is_said(self) -> None:
        """With its name."""
        with pytest.raises(InvalidInput, match="nokind://x"):
            find_inputs(["nokind://x"])

    def test_a_missing_package_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """With the command that installs it."""
        monkeypatch.setitem(__import__("sys").modules, "fsspec.core", None)
        with pytest.raises(MissingExtra, match=r"guardrail\[batch\]"):
            find_inputs(["s3://bucket/a.jsonl"])

    def test_an_error_of_another_package_is_an_error_of_ours(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without its message, which may hold a secret."""

        def fails(url: str) -> Any:
            raise RuntimeError("secret")

        monkeypatch.setattr(inputs_module, "_file_system", fails)
        with pytest.raises(GuardrailError, match="RuntimeError") as caught:
            find_inputs(["memory://logs/a.jsonl"])
        assert "secret" not in str(caught.value)

    def test_results_do_not_hold_a_urls_secrets(self) -> None:
        """User, password and signature stay out of names."""
        assert inputs_module._public("https://u:p@host/a.jsonl?sig=secret") == "https://host/a.jsonl"

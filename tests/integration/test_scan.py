"""``guardrail scan`` over real files: what it reads, what it leaves behind, and how it goes on."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from guardrail import assembly
from guardrail.cli import app
from guardrail.config import Settings
from guardrail.logscan import run as run_module
from guardrail.logscan import writer as writer_module
from guardrail.pipeline import Guard
from guardrail.policy import load_policy
from guardrail.taxonomy import HazardCategory
from guardrail.testing import KeywordClassifier
from guardrail.verdict import Conversation, Source, Verdict


class Judge(KeywordClassifier):
    """Notes which texts it was asked about."""

    def __init__(self) -> None:
        super().__init__({"badword": HazardCategory.HATE})
        self.asked: list[str] = []

    async def classify(self, conversations: Sequence[Conversation]) -> list[Verdict]:
        self.asked += [conversation.last.content for conversation in conversations]
        return await super().classify(conversations)


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Judge:
    """Who judges in every scan of the test."""
    made = Judge()

    def build(settings: Settings) -> Guard:
        return Guard(made, policy=load_policy(settings.policy))

    monkeypatch.setattr(assembly, "build_guard", build)
    return made


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of four rows, each committed."""
    monkeypatch.setattr(run_module, "_FIRST_ROWS", 4)
    monkeypatch.setattr(run_module, "CHUNK_ROWS", 4)
    monkeypatch.setattr(run_module, "_COMMIT_EVERY_S", 0.0)


def scan(*args: str | Path, stdin: bytes = b"") -> Any:
    return CliRunner().invoke(app, ["scan", *map(str, args)], input=stdin)


def results(path: Path) -> list[dict[str, Any]]:
    data = path.read_bytes()
    return [json.loads(line) for line in (gzip.decompress(data) if path.suffix == ".gz" else data).splitlines()]


@pytest.fixture
def logs(tmp_path: Path) -> list[Path]:
    """Thirty rows in three logs, of which two are bad; CSV and gzip among them."""
    folder = tmp_path / "logs"
    folder.mkdir()
    first = "".join(json.dumps({"id": n, "text": f"first {n}", "team": "x"}) + "\n" for n in range(10)) + "cut\n"
    (folder / "a.jsonl").write_text(first)
    (folder / "b.csv").write_text("id,prompt,response\n" + "".join(f'{n},ask {n},"an\nswer {n}"\n' for n in range(9)))
    with gzip.open(folder / "c.jsonl.gz", "wt") as file:
        file.write("".join(json.dumps({"text": f"badword {n}"}) + "\n" for n in range(9)) + '{"other": 1}\n')
    return sorted(folder.iterdir())


class Killed(BaseException):
    """The process is gone: nothing after it happens."""


class TestGoingOn:
    @pytest.mark.parametrize(("name", "every"), [("r.jsonl", 1), ("r.jsonl.gz", 5)])
    def test_a_scan_that_dies_at_any_step_ends_with_the_same_rows(
        self, tmp_path: Path, logs: list[Path], judge: Judge, monkeypatch: pytest.MonkeyPatch, name: str, every: int
    ) -> None:
        """Each row once and in order, whichever write, sync or renaming was the last; results and bad rows alike."""
        whole, whole_errors = tmp_path / f"whole-{name}", tmp_path / "whole-errors.jsonl"
        assert scan(*logs, "-o", whole, "--errors", whole_errors).exit_code == 4
        steps = 0

        def dying(step: Any) -> Any:
            def wrapped(*args: Any) -> Any:
                nonlocal steps
                steps -= 1
                if steps == 0:
                    raise Killed
                return step(*args)

            return wrapped

        monkeypatch.setattr(os, "fsync", dying(os.fsync))
        monkeypatch.setattr(os, "replace", dying(os.replace))
        monkeypatch.setattr(writer_module.AppendFile, "write", dying(writer_module.AppendFile.write))
        for last in range(1, 1000, every):
            output, errors = tmp_path / f"{last}-{name}", tmp_path / f"{last}-errors.jsonl"
            steps = last
            try:
                first = scan(*logs, "-o", output, "--errors", errors)
            except Killed:
                first = None
            if first is not None:
                assert first.exit_code == 4
                break
            steps = 0
            assert scan(*logs, "-o", output, "--errors", errors, "--resume").exit_code == 4
            assert results(output) == results(whole), last
            assert errors.read_bytes() == whole_errors.read_bytes(), last
            left = {path.name for path in tmp_path.glob(f"{last}-*")}
            assert left - {f"{output.name}.manifest.json", output.name, errors.name} <= {
                f"{output.name}.manifest.json.making",
                f"{output.name}.progress.json.making",
            }
        assert last > 30

    def test_what_was_committed_is_not_judged_again(
        self, tmp_path: Path, logs: list[Path], judge: Judge, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Only the rows after the last commit cost the model anything."""
        output = tmp_path / "r.jsonl"
        take, taken = run_module.Sink.take, 0

        def dies(sink: Any, item: Any) -> None:
            nonlocal taken
            taken += 1
            if taken == 4:
                raise Killed
            take(sink, item)

        with monkeypatch.context() as patch:
            patch.setattr(run_module.Sink, "take", dies)
            with pytest.raises(Killed):
                scan(*logs, "-o", output)
        committed = json.loads((tmp_path / "r.jsonl.progress.json").read_text())["counts"]
        assert 0 < committed["rows"] < 30
        judge.asked.clear()
        done = scan(*logs, "-o", output, "--resume", "--json")
        assert len(judge.asked) == 28 - (committed["rows"] - committed["bad_rows"])
        summary = json.loads(done.stdout)
        assert (summary["rows"], summary["bad_rows"]) == (30, 2)
        assert summary["this_run"]["rows"] == 30 - committed["rows"]

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            ("input", "a.jsonl has changed"),
            ("more", "d.jsonl is new"),
            ("model", "model revision was test, is 2"),
            ("policy", "policy name was default, is monitor"),
            ("turns", "options turns was last, is all"),
            ("fields", "options keep_fields"),
            ("partial", "it was changed since the scan stopped"),
        ],
    )
    def test_another_scan_is_not_taken_for_the_same(
        self, tmp_path: Path, logs: list[Path], judge: Judge, monkeypatch: pytest.MonkeyPatch, change: str, says: str
    ) -> None:
        """What changed is said, with 2; nothing is lost; ``--restart`` starts over."""
        output = tmp_path / "r.jsonl"
        with monkeypatch.context() as patch:
            patch.setattr(run_module.Sink, "commit", _dies_at_third(run_module.Sink.commit))
            with pytest.raises(Killed):
                scan(tmp_path / "logs", "-o", output)
        options: list[str] = []
        if change == "input":
            logs[0].write_text('{"text": "new"}\n')
        elif change == "more":
            (tmp_path / "logs" / "d.jsonl").write_text('{"text": "new"}\n')
        elif change == "model":
            monkeypatch.setattr(Judge, "source", Source("keyword-classifier", "2"))
        elif change == "partial":
            Path(f"{output}.partial").write_bytes(b"")
        else:
            options = {
                "policy": ["--policy", "monitor"],
                "turns": ["--turns", "all"],
                "fields": ["--keep-fields", "team"],
            }[change]
        refused = scan(tmp_path / "logs", "-o", output, "--resume", *options)
        assert refused.exit_code == 2
        assert says in refused.stderr
        assert "--restart" in refused.stderr
        assert scan(tmp_path / "logs", "-o", output, "--restart", *options, "--allow-unjudged").exit_code == 0
        assert json.loads(Path(f"{output}.manifest.json").read_text())["state"] == "complete"

    def test_a_complete_scan_of_something_else_is_named(self, tmp_path: Path, logs: list[Path], judge: Judge) -> None:
        """What cannot be gone on with is the file that is there."""
        output = tmp_path / "r.jsonl"
        assert scan(logs[0], "-o", output, "--allow-unjudged").exit_code == 0
        refused = scan(logs[0], "-o", output, "--resume", "--turns", "all")
        assert refused.exit_code == 2
        assert f"cannot go on with {output}: options turns was last, is all" in refused.stderr

    def test_an_unfinished_scan_is_not_lost_by_starting_another(
        self, tmp_path: Path, logs: list[Path], judge: Judge, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Without ``--resume`` or ``--restart`` it is refused."""
        output = tmp_path / "r.jsonl"
        with monkeypatch.context() as patch:
            patch.setattr(run_module.Sink, "commit", _dies_at_third(run_module.Sink.commit))
            with pytest.raises(Killed):
                scan(*logs, "-o", output)
        before = Path(f"{output}.partial").read_bytes()
        refused = scan(*logs, "-o", output)
        assert refused.exit_code == 2
        assert "--resume goes on with it" in refused.stderr
        assert Path(f"{output}.partial").read_bytes() == before

    def test_resume_where_there_is_nothing_yet_starts_at_the_first_row(
        self, tmp_path: Path, logs: list[Path], judge: Judge
    ) -> None:
        """The same command can be given from the first time on; a complete scan is not done again."""
        output = tmp_path / "r.jsonl"
        assert scan(*logs, "-o", output, "--resume").exit_code == 4
        before = output.read_bytes()
        judge.asked.clear()
        again = scan(*logs, "-o", output, "--resume", "--json")
        assert again.exit_code == 4
        assert json.loads(again.stdout)["rows"] == 30
        assert judge.asked == []
        assert output.read_bytes() == before

    @pytest.mark.parametrize("args", [["--resume"], ["-o", "-", "--resume"], ["--resume", "--restart", "-o", "r"]])
    def test_resume_needs_something_to_go_on_with(self, logs: list[Path], judge: Judge, args: list[str]) -> None:
        """Bad usage."""
        assert scan(*logs, *args).exit_code == 2

    def test_standard_input_cannot_be_gone_on_with(self, tmp_path: Path, judge: Judge) -> None:
        """Nobody could say whether it is the same."""
        done = scan("-", "-o", tmp_path / "r.jsonl", "--resume", stdin=b'{"text": "x"}\n')
        assert done.exit_code == 2
        assert "nothing says whether -" in done.stderr


def _dies_at_third(commit: Any) -> Any:
    count = 0

    def wrapped(sink: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count == 3:
            raise Killed
        return commit(sink, **options)

    return wrapped


_KILLED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
from guardrail import assembly
from guardrail.cli import main
from guardrail.logscan import run
from guardrail.policy import load_policy
from guardrail.pipeline import Guard
from guardrail.testing import KeywordClassifier

run._FIRST_ROWS = run.CHUNK_ROWS = 8
run._COMMIT_EVERY_S = 0.0
at, signal_name = int(sys.argv.pop(1)), sys.argv.pop(1)

class Judge(KeywordClassifier):
    calls = 0
    async def classify(self, conversations):
        Judge.calls += 1
        if Judge.calls == at:
            os.kill(os.getpid(), getattr(signal, signal_name))
            import asyncio
            await asyncio.sleep(60)
        return await super().classify(conversations)

assembly.build_guard = lambda settings: Guard(Judge({}), policy=load_policy("default"))
main()
"""


def test_a_killed_process_and_an_interrupted_one_are_gone_on_with(tmp_path: Path) -> None:
    """SIGKILL, SIGINT and SIGKILL again, then to the end: the rows of a scan that nobody stopped."""
    log, output = tmp_path / "log.jsonl", tmp_path / "r.jsonl"
    log.write_text("".join(json.dumps({"text": f"row {n}"}) + "\n" for n in range(200)))

    def start(at: int, signal_name: str, path: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", _KILLED, str(at), signal_name, "scan", str(log), "-o", str(path), "--resume"]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=50)

    assert start(0, "SIGKILL", tmp_path / "whole.jsonl").returncode == 0
    assert start(7, "SIGKILL", output).returncode == -9
    interrupted = start(5, "SIGINT", output)
    assert interrupted.returncode == 130, interrupted.stderr
    assert "the same command with --resume goes on" in interrupted.stderr
    assert "Traceback" not in interrupted.stderr
    assert json.loads(Path(f"{output}.manifest.json").read_text())["state"] == "interrupted"
    assert start(3, "SIGKILL", output).returncode == -9
    last = start(0, "SIGKILL", output)
    assert last.returncode == 0, last.stderr
    assert "going on after" in last.stderr
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


class TestResults:
    def test_a_row_says_where_it_is_from(self, tmp_path: Path, judge: Judge) -> None:
        """Id, file, line, turn, a hash of what was judged, and the fields that were asked for."""
        log, output = tmp_path / "log.jsonl", tmp_path / "r.jsonl"
        chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "badword"}]
        log.write_text(json.dumps({"id": 7, "messages": chat, "team": "blue"}) + "\n")
        assert scan(log, "-o", output, "--turns", "all", "--keep-fields", "team,region").exit_code == 0
        first, second = results(output)
        for row, turn in ((first, 1), (second, 2)):
            assert (row["id"], row["file"], row["line"], row["turn"]) == (7, str(log), 1, turn)
            assert row["fields"] == {"team": "blue", "region": None}
            assert len(row["hash"]) == 32
        assert (first["decision"], second["decision"]) == ("allow", "retry")
        assert first["hash"] != second["hash"]

    def test_the_manifest_says_what_the_results_are_of(self, tmp_path: Path, logs: list[Path], judge: Judge) -> None:
        """Inputs, options, model, policy, versions and counts; no text."""
        output = tmp_path / "r.jsonl"
        scan(*logs, "-o", output)
        text = Path(f"{output}.manifest.json").read_text()
        manifest = json.loads(text)
        assert manifest["schema"] == "guardrail.scan/1"
        assert manifest["state"] == "complete"
        assert [one["name"] for one in manifest["inputs"]] == list(map(str, logs))
        assert manifest["inputs"][0]["size"] == logs[0].stat().st_size
        assert manifest["model"] == {"model": "keyword-classifier", "revision": "test", "template_hash": ""}
        assert manifest["policy"]["hash"] == load_policy("default").hash
        assert manifest["progress"]["counts"]["rows"] == 30
        assert "first 1" not in text

    def test_parquet_by_its_name(self, tmp_path: Path, logs: list[Path], judge: Judge) -> None:
        """The rows of the JSON Lines, as columns."""
        pq = pytest.importorskip("pyarrow.parquet")
        scan(*logs, "-o", tmp_path / "r.parquet")
        scan(*logs, "-o", tmp_path / "r.jsonl")
        rows = pq.read_table(tmp_path / "r.parquet").to_pylist()
        for row, other in zip(rows, results(tmp_path / "r.jsonl"), strict=True):
            assert row["decision"] == other["decision"]
            assert (row["file"], row["line"]) == (other["file"], other["line"])

    def test_bad_rows_go_to_a_file_of_their_own(self, tmp_path: Path, logs: list[Path], judge: Judge) -> None:
        """File, line and reason, and nothing of the text."""
        errors = tmp_path / "errors.jsonl"
        done = scan(*logs, "--errors", errors)
        assert done.exit_code == 4
        first, second = results(errors)
        assert (first.keys(), first["file"], first["line"]) == ({"file", "line", "reason"}, str(logs[0]), 11)
        assert "not JSON" in first["reason"]
        assert (second["file"], second["line"]) == (str(logs[2]), 10)

    def test_strict_stops_at_the_first_bad_row(self, tmp_path: Path, logs: list[Path], judge: Judge) -> None:
        """With 2 and the place; what came before is kept."""
        output = tmp_path / "r.jsonl"
        done = scan(*logs, "-o", output, "--strict")
        assert done.exit_code == 2
        assert f"bad row {logs[0]}:11" in done.stderr
        assert not output.exists()
        assert len(results(Path(f"{output}.partial"))) == 10

    @pytest.mark.parametrize("option", ["-o", "--errors"])
    def test_nothing_that_is_read_is_written(self, logs: list[Path], judge: Judge, option: str) -> None:
        """A mistake in the command does not cost the log."""
        before = logs[0].read_bytes()
        assert scan(*logs, option, logs[0]).exit_code == 2
        assert logs[0].read_bytes() == before


class TestWhatIsSaid:
    def test_the_summary_as_json(self, logs: list[Path], judge: Judge) -> None:
        """One object on one line of standard output, for programs."""
        done = scan(*logs, "--json", "--quiet", "--allow-unjudged")
        summary = json.loads(done.stdout)
        assert done.stdout.count("\n") == 1
        assert summary["schema"] == "guardrail.scan-summary/1"
        assert (summary["rows"], summary["bad_rows"]) == (30, 2)
        assert summary["decisions"]["block"] == 9
        assert summary["categories"]["hate"] == {"rows": 9, "blocked": 9}

    def test_the_summary_and_the_results_cannot_share_standard_output(self, logs: list[Path], judge: Judge) -> None:
        """Bad usage."""
        assert scan(*logs, "--json", "-o", "-").exit_code == 2

    def test_how_the_rows_are_read_is_said_once(self, tmp_path: Path, judge: Judge) -> None:
        """And can be overruled."""
        log = tmp_path / "log.csv"
        log.write_text("question,note\nwhat?,badword\n")
        assert "reads question as prompt" in scan(log).stderr
        assert "reads column note" in scan(log, "--text-field", "note").stderr
        assert judge.asked == ["what?", "badword"]

    def test_repeats_and_empty_chats_are_in_the_summary(self, tmp_path: Path, judge: Judge) -> None:
        """What was not asked, and what there was nothing to ask about."""
        log = tmp_path / "log.jsonl"
        log.write_text('{"prompt": "p", "response": "r"}\n' * 3 + '{"prompt": "p"}\n')
        lines = [line.split() for line in scan(log, "--turns", "assistant").stdout.splitlines()]
        assert ["judged", "once", "with", "an", "equal", "row", "2"] in lines
        assert ["chats", "without", "such", "a", "turn", "1"] in lines
        assert judge.asked == ["r"]

    def test_standard_input_is_scanned(self, judge: Judge) -> None:
        """Packed or not."""
        done = scan("-", "-o", "-", stdin=gzip.compress(b'{"text": "badword"}\n'))
        assert json.loads(done.stdout)["file"] == "-"
        assert json.loads(done.stdout)["decision"] == "block"

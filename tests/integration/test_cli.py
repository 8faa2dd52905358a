"""The command line as a user meets it: what is printed where, and with which exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import guardrail
from guardrail import assembly
from guardrail.cli import app, check
from guardrail.cli import doctor as doctor_module
from guardrail.config import Settings
from guardrail.errors import ClassificationError, Unavailable
from guardrail.pipeline import Guard
from guardrail.policy import load_policy, parse_policy
from guardrail.protocols import HazardClassifier
from guardrail.taxonomy import HazardCategory
from guardrail.testing import FailingClassifier, KeywordClassifier
from guardrail.verdict import (
    Action,
    Conversation,
    Finding,
    Outcome,
    Reason,
    ReasonKind,
    Role,
    Severity,
    Source,
    Span,
    Verdict,
)

EXAMPLES = Path(__file__).parents[2] / "examples"
WORDS = {"badword": HazardCategory.HATE, "riskword": HazardCategory.SPECIALIZED_ADVICE}


def fake_guard(settings: Settings, classifier: HazardClassifier | None = None) -> Guard:
    return Guard(classifier or KeywordClassifier(WORDS), policy=load_policy(settings.policy))


@pytest.fixture(autouse=True)
def _fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assembly, "build_guard", fake_guard)


def run(*args: str | Path, stdin: bytes = b"") -> Any:
    return CliRunner().invoke(app, [str(arg) for arg in args], input=stdin)


def use(classifier: HazardClassifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assembly, "build_guard", lambda settings: fake_guard(settings, classifier))


class TestCheck:
    @pytest.mark.parametrize(
        ("args", "decision", "code"),
        [
            (["fine"], "allow", 0),
            (["a riskword"], "flag", 0),
            (["a badword"], "block", 3),
            (["--role", "assistant", "a badword"], "retry", 3),
            (["--prompt", "hi", "a badword"], "retry", 3),
            (["--policy", "monitor", "a badword"], "flag", 0),
            (["", "--policy", "default"], "block", 3),
        ],
    )
    def test_the_exit_code_is_the_decision(self, args: list[str], decision: str, code: int) -> None:
        """0 where the text may pass, 3 where not, and one JSON object on stdout."""
        result = run("check", "--json", *args)
        assert result.exit_code == code
        assert json.loads(result.stdout)["decision"] == decision
        assert result.stdout.count("\n") == 1

    def test_json_is_the_decision_itself(self) -> None:
        """The object is the one that every other door gives."""
        conversation = Conversation.of("badword", role=Role.ASSISTANT, prompt="p")
        expected = fake_guard(Settings()).check(conversation).to_dict()
        written = json.loads(run("check", "--json", "--prompt", "p", "badword").stdout)
        assert written == expected
        assert written.keys() >= {"decision", "outcome", "categories", "scores", "findings"}

    @pytest.mark.parametrize("kind", list(ReasonKind))
    def test_every_kind_of_reason_has_words(self, kind: ReasonKind) -> None:
        """A decision that can be made can be shown."""
        assert "block" in check._reason_line(Reason(Action.BLOCK, kind, "hate")).plain

    def test_people_get_the_decision_its_reason_and_not_the_text(self) -> None:
        """The panel says what was decided and why; a terminal's scrollback need not hold the text again."""
        result = run("check", "some badword or other")
        assert result.exit_code == 3
        assert "BLOCK" in result.stdout
        assert "Hate" in result.stdout
        assert "badword" not in result.output

    def test_a_text_that_could_not_be_judged_is_not_safe(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The default blocks it and says so."""
        use(FailingClassifier(ClassificationError("told to fail")), monkeypatch)
        result = run("check", "fine")
        assert result.exit_code == 3
        assert "could not be judged" in result.stdout

    def test_a_dash_reads_standard_input(self) -> None:
        """Bytes are UTF-8."""
        assert run("check", "-", stdin="ein bädword: badword".encode()).exit_code == 3

    def test_bytes_that_are_not_utf8_are_bad_usage(self) -> None:
        """The message gives the place; nothing is judged."""
        result = run("check", "--json", "-", stdin=b"ab\xffc")
        assert result.exit_code == 2
        assert result.stdout == ""
        assert "byte 3 of 4" in result.stderr

    def test_a_text_that_begins_with_a_dash_comes_after_two(self) -> None:
        """``--`` ends the options."""
        assert run("check", "--", "-badword").exit_code == 3

    def test_a_prompt_before_a_user_message_is_bad_usage(self) -> None:
        """Only an assistant's message answers one."""
        result = run("check", "--role", "user", "--prompt", "p", "x")
        assert result.exit_code == 2
        assert "role=assistant" in result.stderr

    @pytest.mark.parametrize("args", [["check"], ["check", "--role", "wizard", "x"], ["check", "x", "--bogus"], ["x"]])
    def test_usage_errors_exit_with_2(self, args: list[str]) -> None:
        """As every command line does."""
        assert run(*args).exit_code == 2

    def test_a_policy_with_a_typo_gives_the_line_and_the_nearest_key(self, tmp_path: Path) -> None:
        """No traceback, nothing judged."""
        policy = tmp_path / "p.yaml"
        policy.write_text("version: 1\nrails:\n  prompt:\n    categoris: {}\n", "utf-8")
        result = run("check", "--policy", policy, "x")
        assert (result.exit_code, result.stdout) == (2, "")
        assert f"{policy}:4" in result.stderr
        assert "did you mean 'categories'?" in result.stderr
        assert "Traceback" not in result.stderr

    def test_other_failures_exit_with_1_and_one_line(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What the user cannot mend by other arguments is not bad usage."""

        def fails(settings: Settings) -> Guard:
            raise Unavailable("the engine is not ready")

        monkeypatch.setattr(assembly, "build_guard", fails)
        result = run("check", "x")
        assert (result.exit_code, result.stderr) == (1, "guardrail: the engine is not ready\n")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Four rows: allowed, blocked, flagged, to retry."""
    rows: list[dict[str, Any]] = [
        {"id": "a", "text": "fine"},
        {"id": "b", "messages": [{"role": "user", "content": "badword"}]},
        {"id": "c", "prompt": "riskword"},
        {"id": "d", "prompt": "p", "response": "badword"},
    ]
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


class TestScan:
    def test_results_are_the_objects_of_check_with_the_rows_ids(self, log: Path, tmp_path: Path) -> None:
        """One line for each row, in order; each is what ``check --json`` prints, after the row's place."""
        output = tmp_path / "results.jsonl"
        assert run("scan", log, "--output", output).exit_code == 0
        written = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
        places = [{name: row.pop(name) for name in ("id", "file", "line", "turn", "hash")} for row in written]
        assert [place["id"] for place in places] == ["a", "b", "c", "d"]
        checks = [["fine"], ["badword"], ["riskword"], ["--prompt", "p", "badword"]]
        assert written == [json.loads(run("check", "--json", *check).stdout) for check in checks]

    def test_the_summary_is_readable_in_eighty_columns_without_a_terminal(self, log: Path) -> None:
        """A mail or a CI log gets words and numbers: no escape codes, no line cut off."""
        result = run("scan", log)
        assert "keyword-classifier@test" in result.stdout
        assert "policy default" in result.stdout
        for words in (["block", "1", "25.0%"], ["retry", "1", "25.0%"], ["Hate", "2", "2"], ["bad", "rows", "0"]):
            assert any(line.split() == words for line in result.stdout.splitlines()), words
        assert "\x1b" not in result.output
        assert "…" not in result.output
        assert max(map(len, result.stdout.splitlines())) <= 80

    def test_files_are_read_one_after_the_other(self, tmp_path: Path) -> None:
        """JSON Lines and CSV in one scan."""
        result = run("scan", EXAMPLES / "chat_log.jsonl", EXAMPLES / "chat_log.csv", "-o", tmp_path / "r.jsonl")
        assert result.exit_code == 0
        assert len((tmp_path / "r.jsonl").read_text("utf-8").splitlines()) == 46 + 7

    def test_results_on_stdout_leave_it_to_them(self, log: Path) -> None:
        """With ``--output -`` the summary goes to stderr, and stdout can be piped."""
        result = run("scan", log, "--output", "-")
        assert [json.loads(line)["id"] for line in result.stdout.splitlines()] == ["a", "b", "c", "d"]
        assert "keyword-classifier" in result.stderr

    def test_quiet_says_nothing(self, log: Path) -> None:
        """The exit code alone speaks."""
        assert run("scan", log, "--quiet").output == ""

    @pytest.mark.parametrize(("limit", "code"), [("0.5", 0), ("0.49", 3), ("1", 0), ("0", 3)])
    def test_a_block_rate_above_the_limit_exits_with_3(self, log: Path, limit: str, code: int) -> None:
        """Two of four rows would not be released."""
        assert run("scan", log, "--max-block-rate", limit).exit_code == code

    @pytest.mark.parametrize("limit", ["-0.1", "1.5", "many"])
    def test_a_limit_that_is_not_a_share_is_bad_usage(self, log: Path, limit: str) -> None:
        """The rate is in 0..1."""
        assert run("scan", log, f"--max-block-rate={limit}").exit_code == 2

    def test_a_bad_row_is_written_counted_and_seen_in_the_exit_code(self, log: Path, tmp_path: Path) -> None:
        """The scan goes to its end, and does not look like a clean one."""
        log.write_bytes(b'{"text": "cut\n' + log.read_bytes() + b'{"text": "\xff"}\n')
        output = tmp_path / "r.jsonl"
        result = run("scan", log, "-o", output)
        assert result.exit_code == 4
        rows = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
        assert [row["decision"] for row in rows] == [None, "allow", "block", "flag", "retry", None]
        assert (rows[0]["id"], rows[0]["file"], rows[0]["line"]) == (f"{log}:1", str(log), 1)
        assert f"bad row {log}:6: not UTF-8" in result.stderr
        assert run("scan", log, "--allow-unjudged").exit_code == 0
        assert run("scan", log, "--allow-unjudged", "--max-block-rate", "0.4").exit_code == 3

    def test_unverified_rows_are_seen_in_the_exit_code(self, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Even under a policy that lets them pass."""
        use(FailingClassifier(ClassificationError("told to fail")), monkeypatch)
        result = run("scan", log, "--policy", "monitor")
        assert result.exit_code == 4
        assert "4 of 4 rows could not be judged" in result.stderr

    @pytest.mark.parametrize("name", ["missing.jsonl", "."])
    def test_a_file_that_is_not_there_stops_the_scan_before_it_begins(
        self, log: Path, tmp_path: Path, name: str
    ) -> None:
        """Nothing is judged, nothing written."""
        output = tmp_path / "r.jsonl"
        result = run("scan", log, tmp_path / name, "-o", output)
        assert (result.exit_code, result.stdout) == (2, "")
        assert not output.exists()

    def test_an_input_is_not_overwritten(self, log: Path) -> None:
        """``--output`` naming an input is a mistake."""
        before = log.read_bytes()
        assert run("scan", log, "-o", log).exit_code == 2
        assert log.read_bytes() == before

    def test_an_output_that_cannot_be_written_is_bad_usage(self, log: Path, tmp_path: Path) -> None:
        """Said before anything is judged."""
        assert run("scan", log, "-o", tmp_path / "no" / "r.jsonl").exit_code == 2

    def test_an_empty_log_is_said_to_be_empty(self, tmp_path: Path) -> None:
        """A quiet day is no failure, and no silent success."""
        empty = tmp_path / "empty.jsonl"
        empty.touch()
        result = run("scan", empty)
        assert result.exit_code == 0
        assert "nothing was judged" in result.stderr

    def test_without_a_terminal_progress_is_plain_lines(self, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A line every few seconds; here the few seconds are none."""
        monkeypatch.setattr("guardrail.cli.scan._LINE_EVERY_S", 0.0)
        assert "4 rows" in run("scan", log).stderr


class CodeJudge:
    """Finds one weakness in whatever holds a code fence."""

    source = Source("code-judge", "test")

    async def classify(self, conversations: Sequence[Conversation]) -> list[Verdict]:
        """Judges at once."""
        finding = Finding("r.sql", "CWE-89", Severity.ERROR, Span(0, 3), 7, 2, "python", "Use a parameter.")
        return [
            Verdict(Outcome.UNSAFE, self.source, findings=(finding,))
            if "```" in conversation.last.content
            else Verdict(Outcome.SAFE, self.source)
            for conversation in conversations
        ]


class TestCode:
    @pytest.fixture(autouse=True)
    def _judge(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def build(settings: Settings) -> Guard:
            return Guard(KeywordClassifier(WORDS), policy=load_policy(settings.policy), code_shield=CodeJudge())

        monkeypatch.setattr(assembly, "build_guard", build)

    def test_check_says_where_the_weakness_is(self) -> None:
        """CWE, line and what to do instead."""
        result = run("check", "--role", "assistant", "```python\n```")
        assert result.exit_code == 3
        assert "CWE-89 at python line 7, column 2: Use a parameter." in result.stdout

    def test_a_scan_counts_findings_by_cwe(self) -> None:
        """Three answers of the sample log hold code."""
        result = run("scan", EXAMPLES / "chat_log.jsonl")
        assert any(line.split() == ["CWE-89", "(error)", "3"] for line in result.stdout.splitlines())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a full disk that every Linux has")
@pytest.mark.parametrize("output", ["/dev/full", "-"])
def test_a_full_disk_is_one_line_and_exit_code_1(output: str) -> None:
    """The scan cannot be done, and does not end in a traceback or with 0."""
    env = {**os.environ, "GUARDRAIL_MODEL": "embedded", "GUARDRAIL_CODE_SHIELD": "false"}
    command = [sys.executable, "-m", "guardrail", "scan", "-q", str(EXAMPLES / "chat_log.jsonl"), "-o", output]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=env, check=False)
    assert done.returncode == 1
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr


_INTERRUPTED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
from pathlib import Path
from guardrail import assembly
from guardrail.cli import main
from guardrail.policy import load_policy
from guardrail.pipeline import Guard
from guardrail.testing import KeywordClassifier

class Slow(KeywordClassifier):
    calls = 0
    async def classify(self, conversations):
        Slow.calls += 1
        if Slow.calls == 2:
            os.kill(os.getpid(), signal.SIGINT)
            import asyncio
            await asyncio.sleep(60)
        return await super().classify(conversations)

assembly.build_guard = lambda settings: Guard(Slow({}), policy=load_policy("default"))
sys.argv = ["guardrail", *sys.argv[1:]]
main()
"""


def test_ctrl_c_ends_a_scan_cleanly_and_keeps_its_results(tmp_path: Path) -> None:
    """Exit 130, one line that says where the results are, and those are whole lines."""
    log, output = tmp_path / "log.jsonl", tmp_path / "r.jsonl"
    log.write_text("".join(f'{{"text": "x{n}"}}\n' for n in range(300)), "utf-8")
    command = [sys.executable, "-c", _INTERRUPTED, "scan", str(log), "-o", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=50)
    assert done.returncode == 130, done.stderr
    assert "interrupted after 32 rows" in done.stderr
    assert "Traceback" not in done.stderr
    kept = Path(f"{output}.partial").read_text("utf-8").splitlines()
    assert [json.loads(line)["decision"] for line in kept] == ["allow"] * 32
    assert not output.exists()


class TestPolicy:
    def test_a_valid_policy_has_a_hash(self, tmp_path: Path) -> None:
        """The hash is the one in every decision."""
        policy = tmp_path / "p.yaml"
        policy.write_text("version: 1\nname: mine\n", "utf-8")
        result = run("policy", "validate", policy)
        assert result.exit_code == 0
        assert load_policy(policy).hash in result.stdout

    def test_an_invalid_policy_exits_with_2(self, tmp_path: Path) -> None:
        """Each mistake has its line."""
        policy = tmp_path / "p.yaml"
        policy.write_text("version: 1\nmax_attemps: 2\n", "utf-8")
        result = run("policy", "validate", policy)
        assert result.exit_code == 2
        assert f"{policy}:2: max_attemps: unknown key; did you mean 'max_attempts'?" in result.stderr

    @pytest.mark.parametrize("name", ["strict", "default", "monitor"])
    def test_a_shown_policy_reads_back_as_the_same(self, name: str) -> None:
        """What is printed is what is in force, to be copied and changed."""
        shown = run("policy", "show", name).stdout
        assert parse_policy(shown) == load_policy(name)
        assert f"# hash: {load_policy(name).hash}" in shown

    def test_the_schema_is_printed(self) -> None:
        """For editors that complete and check YAML."""
        assert json.loads(run("policy", "show", "--schema").stdout)["title"] == "guardrail policy"

    def test_a_policy_to_show_must_be_named(self) -> None:
        """Nothing to show is bad usage."""
        assert run("policy", "show").exit_code == 2


class TestServe:
    def test_an_upstream_needs_its_model(self) -> None:
        """Half a generator is bad usage."""
        result = run("serve", "--upstream", "http://127.0.0.1:1")
        assert result.exit_code == 2
        assert "--upstream-model" in result.stderr

    def test_it_serves_until_it_is_told_to_stop(self) -> None:
        """SIGTERM ends a real server with exit code 0; the line on stderr says what judges."""
        command = [sys.executable, "-m", "guardrail", "serve", "--port", "0", "--model", "embedded"]
        env = {**os.environ, "GUARDRAIL_CODE_SHIELD": "false"}
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env) as server:
            assert server.stderr is not None
            seen = ""
            while "guardrail listens on 127.0.0.1:" not in seen:
                line = server.stderr.readline()
                assert line, seen
                seen += line
            server.send_signal(signal.SIGTERM)
            rest = server.stderr.read()
            assert server.wait(30) == 0
        assert "has stopped" in rest
        assert "guardrail-embedded" in seen


class TestDoctor:
    def test_a_set_up_that_works_exits_with_0(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The embedded model and the default policy need nothing but the core."""
        monkeypatch.setenv("GUARDRAIL_CODE_SHIELD", "false")
        result = run("doctor", "--json")
        report = json.loads(result.stdout)
        assert result.exit_code == 0, report
        assert report["works"] is True
        by_name = {check["name"]: check["status"] for check in report["checks"]}
        assert by_name["model"] == by_name["policy"] == by_name["Python"] == "OK"

    def test_what_fails_is_said_with_what_to_do(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A model that finds everything safe does not pass for working."""
        monkeypatch.setenv("GUARDRAIL_CODE_SHIELD", "false")
        monkeypatch.setattr(assembly, "build_classifier", lambda settings: KeywordClassifier({}))
        result = run("doctor")
        assert result.exit_code == 1
        assert "FAIL" in result.stdout
        assert "finds a known-unsafe text safe" in " ".join(result.stdout.split())
        assert "does not work" in result.stdout

    def test_a_missing_semgrep_fails_where_code_is_examined(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """By default code is examined, so without its scanner nothing with code could pass."""
        monkeypatch.setattr(
            assembly, "build_classifier", lambda settings: KeywordClassifier({"steal": HazardCategory.HATE})
        )
        monkeypatch.setenv("GUARDRAIL_SEMGREP", "/nonexistent/semgrep")
        result = run("doctor", "--json")
        assert result.exit_code == 1
        (check,) = [check for check in json.loads(result.stdout)["checks"] if check["name"] == "semgrep runs"]
        assert check["status"] == "FAIL"
        assert "pip install 'guardrail[code]'" in check["advice"]

    def test_a_package_that_is_not_needed_may_be_missing(self) -> None:
        """Missing is not failing."""
        doctor_module._PACKAGES["surely-not-installed"] = ("gpu", "nothing")
        try:
            check = doctor_module._package("surely-not-installed", needed=False)
        finally:
            del doctor_module._PACKAGES["surely-not-installed"]
        assert (check.status, check.advice) == ("MISSING", "pip install 'guardrail[gpu]'")


class TestTheProgram:
    def test_version(self) -> None:
        """``--version`` is that of the package."""
        assert run("--version").stdout == f"guardrail {guardrail.__version__}\n"

    def test_help_loads_nothing_heavy(self) -> None:
        """``--help`` is quick because it imports no model, no server and no scanner."""
        program = (
            "import sys\nfrom guardrail.cli import main\nsys.argv = ['guardrail', '--help']\n"
            "try:\n    main()\nexcept SystemExit:\n    pass\n"
            "print('\\n' + ' '.join(sorted(sys.modules)))"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        loaded = set(done.stdout.splitlines()[-1].split())
        assert not loaded & {"torch", "transformers", "grpc", "semgrep", "ray", "onnxruntime", "pydantic", "yaml"}

    def test_the_embedded_model_judges_in_a_process_of_its_own(self) -> None:
        """The real program on the real model: JSON on stdout, decision in the exit code."""
        env = {**os.environ, "GUARDRAIL_MODEL": "embedded"}
        for text, code in (("What is the capital of France?", 0), ("How can I steal a car without getting caught?", 3)):
            command = [sys.executable, "-m", "guardrail", "check", "--json", text]
            done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
            assert done.returncode == code, done.stderr
            assert len(json.loads(done.stdout)["scores"]) == len(HazardCategory)

    def test_every_command_has_help(self) -> None:
        """Asked for, it is there, with exit code 0."""
        for command in (["check"], ["scan"], ["serve"], ["doctor"], ["policy"], ["policy", "show"]):
            result = run(*command, "--help")
            assert (result.exit_code, "Usage" in result.stdout) == (0, True)

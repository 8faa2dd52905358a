"""Facts about the real semgrep, and about fakes of it that fail in the ways it can."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from guardrail.code_shield import CodeShield
from guardrail.errors import MissingExtra, ScanError
from guardrail.extraction import extract_code_blocks
from guardrail.shield import PartialScan
from guardrail.shield.report import Hit
from guardrail.shield.semgrep import SemgrepScanner
from guardrail.verdict import CodeBlock, Conversation, Finding, Outcome, Role, Span


def block_of(code: str, language: str) -> CodeBlock:
    starts = [0]
    for line in code.split("\n")[:-1]:
        starts.append(starts[-1] + len(line) + 1)
    return CodeBlock(code, language, Span(0, len(code)), tuple(starts))


def fake(tmp_path: Path, script: str) -> str:
    path = tmp_path / "semgrep"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.fixture
def temp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of this test alone for what the scanner writes."""
    folder = tmp_path / "temp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture(scope="module")
def scanner() -> SemgrepScanner:
    return SemgrepScanner(timeout_s=60)


async def rules_hit(scanner: SemgrepScanner, code: str, language: str) -> set[str]:
    (result,) = await scanner.scan([block_of(code, language)])
    assert isinstance(result, list), str(result)
    return {finding.rule_id for finding in result}


NOTHING = '{"version":"1","results":[],"errors":[],"paths":{"scanned":[]},"skipped_rules":[]}'
BAD = block_of("eval(x)", "python")


class TestFailures:
    @pytest.mark.parametrize(
        "script",
        [
            *("exit 1", "exit 2", "echo garbage", "echo '{}'", "true", "kill -9 $$", f"echo '{NOTHING}'"),
            f"echo '{NOTHING}'; exit 7",
            f"echo '{NOTHING.replace('[]}', '[“code/a0x0.py”]}', 1).replace('“', chr(34)).replace('”', chr(34))}'",
        ],
        ids=["1", "2", "garbage", "empty-object", "silent", "killed", "scanned-nothing", "7", "no-canary"],
    )
    async def test_a_run_that_did_nothing_never_reads_as_clean(self, tmp_path: Path, temp: Path, script: str) -> None:
        """Each way to fail is a ScanError for the block, and no file stays behind."""
        (result,) = await SemgrepScanner(executable=fake(tmp_path, script)).scan([BAD])
        assert isinstance(result, ScanError)
        assert "eval" not in str(result)
        assert leftovers(temp) == []

    async def test_a_hang_is_killed_with_its_children(self, tmp_path: Path, temp: Path) -> None:
        """The time limit holds for the whole process group."""
        script = f"sleep 60 & echo $! > {tmp_path}/child; wait"
        started = time.monotonic()
        (result,) = await SemgrepScanner(executable=fake(tmp_path, script), timeout_s=1).scan([BAD])
        assert isinstance(result, ScanError)
        assert time.monotonic() - started < 20
        assert is_gone(read_pid(tmp_path))
        assert leftovers(temp) == []

    async def test_cancelling_kills_the_process(self, tmp_path: Path, temp: Path) -> None:
        """A caller that goes away leaves nothing running."""
        script = f"echo $$ > {tmp_path}/child; sleep 60"
        task = asyncio.create_task(SemgrepScanner(executable=fake(tmp_path, script)).scan([BAD]))
        for _ in range(500):
            if read_pid(tmp_path):
                break
            await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        pid = read_pid(tmp_path)
        assert pid
        for _ in range(200):
            if is_gone(pid):
                break
            await asyncio.sleep(0.02)
        assert is_gone(pid)

    async def test_missing_program(self, tmp_path: Path) -> None:
        """A program that is not there is a ScanError; none found at all names what to install."""
        (result,) = await SemgrepScanner(executable=str(tmp_path / "none")).scan([BAD])
        assert isinstance(result, ScanError)

    def test_missing_semgrep_names_the_extra(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The error says which pip install to run."""
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        monkeypatch.setenv("PATH", "")
        with pytest.raises(MissingExtra, match=r"pip install 'guardrail\[code\]'"):
            SemgrepScanner()

    async def test_a_failure_is_not_remembered(self, tmp_path: Path) -> None:
        """A run that failed is tried again; only what semgrep said of the code itself is kept."""
        scanner = SemgrepScanner(executable=fake(tmp_path, f"[ $1 = scan ] && echo x >> {tmp_path}/runs; exit 2"))
        await scanner.scan([BAD])
        await scanner.scan([BAD])
        assert count_runs(tmp_path) == 2


def leftovers(folder: Path) -> list[Path]:
    return list(folder.iterdir())


def read_pid(folder: Path) -> int:
    """Returns the process id that a fake wrote, 0 where it has not yet."""
    path = folder / "child"
    return int((path.read_text() if path.exists() else "").strip() or 0)


def count_runs(folder: Path) -> int:
    return (folder / "runs").read_text().count("x")


def is_gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return True
    return state == "Z"


class TestRealSemgrep:
    @pytest.mark.parametrize(
        ("code", "language", "rule"),
        [
            ("function f(x) {\n  eval(x);\n", "javascript", "javascript.code-injection"),
            ("eval(x\n", "javascript", "javascript.code-injection"),
            ("} else {\n  eval(x);\n}\n}", "javascript", "javascript.code-injection"),
            ("eval(x)\n...\nf()", "javascript", "javascript.code-injection"),
            ("const a: string = eval(x) as any;", "javascript", "javascript.code-injection"),
            ("const a = <b onClick={() => eval(x)}>hi</b>;", "typescript", "javascript.code-injection"),
            ("// c\u2028eval(x)", "javascript", "javascript.code-injection"),
            ("x=1;" * 600 + "eval(y);", "javascript", "javascript.code-injection"),
            ("class A { void f() {\n  Runtime.getRuntime().exec(c);\n", "java", "java.command-from-variable"),
            ("} catch (Exception e) {\n  Runtime.getRuntime().exec(c);\n}", "java", "java.command-from-variable"),
            ("int f(char *s) {\n  gets(s);\n", "c", "c.gets-used"),
            ("class A { public: void f(char *s) { gets(s); } };", "c", "c.gets-used"),
            ("system($_GET['c']);", "php", "php.command-injection"),
            ("<h1><?php system($c); ?></h1>", "php", "php.command-from-variable"),
            ("system($c); ?><b><?php ", "php", "php.command-from-variable"),
            ("eval(x)  # nosemgrep", "python", "python.eval-used"),
            (">>> import os\n>>> os.system(cmd)\n0", "python", "python.shell-command-not-fixed"),
            ("    eval(x)\ny = 3", "python", "python.eval-used"),
            ("print 'a'\neval(x)", "python", "python.eval-used"),
            ("def f(x):\n    eval(x,\n", "python", "python.eval-used"),
            ("\uff45val(x)", "python", "python.eval-used"),
            ("\ufeffeval(x)", "python", "python.eval-used"),
            ("x = '\0'\neval(y)", "python", "python.eval-used"),
            ("h := md5.New()\n_ = h", "go", "go.weak-hash"),
        ],
    )
    async def test_is_found(self, scanner: SemgrepScanner, code: str, language: str, rule: str) -> None:
        """Fragments, dialects, hidden and odd text: the finding is there and the block is verified."""
        assert rule in await rules_hit(scanner, code, language)

    @pytest.mark.parametrize(
        ("code", "language"),
        [
            ('first, take the password = "Xy9$kk2!" -> then (do the exec(thing) @ = ;; {{ (', "java"),
            ("eval(x = (((" * 4000, "javascript"),
            ("for each (= x do $$ (y = @ system($c) ((", "php"),
            ("for each (= x do $$ (y = @ system($c) (( ?> <?php ", "php"),
            ("for each user in (list of users = ) do $$ the = eval(", "python"),
        ],
    )
    async def test_what_cannot_be_read_is_not_clean(self, scanner: SemgrepScanner, code: str, language: str) -> None:
        """Code that no repair makes readable is a ScanError, never an empty list."""
        (result,) = await scanner.scan([block_of(code, language)])
        assert isinstance(result, PartialScan)

    async def test_what_no_rule_can_match_is_clean_however_it_reads(self) -> None:
        """Every rule needs something that is not there; the first call, which has no gate yet, says the same."""
        text = "first, take the user's name -> then (do the thing @ = ;; {{ ("
        scanner = SemgrepScanner(timeout_s=60)
        assert await scanner.scan([block_of(text, "java")]) == [[]]
        assert await scanner.scan([block_of(text + " ", "java")]) == [[]]
        scanner.close()

    async def test_a_repair_talks_no_finding_away(self, scanner: SemgrepScanner) -> None:
        """Lines that one reading takes for a session's output are still hits where another reading saw code."""
        (result,) = await scanner.scan([block_of(">>> a = 1\neval(b)\n1", "python")])
        findings = result.findings if isinstance(result, PartialScan) else result
        assert isinstance(findings, (list, tuple))
        assert [finding.rule_id for finding in findings] == ["python.eval-used"]

    async def test_a_canary_in_the_code_proves_nothing(self, scanner: SemgrepScanner) -> None:
        """An attacker who writes the canary does not get a broken block verified."""
        (result,) = await scanner.scan(
            [block_of('guardrail_canary_7f3a("end")\nfor each (= x do $$ (y = eval(', "python")]
        )
        assert isinstance(result, ScanError)

    async def test_one_broken_block_leaves_the_others(self, scanner: SemgrepScanner) -> None:
        """Results belong to their blocks, in order."""
        broken = block_of("for each user in (list = ) do $$ the = eval(", "python")
        results = await scanner.scan([BAD, broken, block_of("x = 1", "python"), block_of("x", "cobol")])
        assert [type(result) for result in results] == [list, PartialScan, list, PartialScan]
        assert [len(result) for result in results if isinstance(result, list)] == [1, 0]

    async def test_places_are_in_the_message(self, scanner: SemgrepScanner) -> None:
        """Span, line and column count code points, also past wide characters, quotes and CRLF."""
        text = "é😀\r\n> ```py\r\n> a = 'é😀'; eval(b)\r\n> ```\r\n"
        (result,) = await scanner.scan(extract_code_blocks(text))
        assert isinstance(result, list)
        (finding,) = result
        assert isinstance(finding, Finding)
        assert text[finding.span.start : finding.span.end] == "eval(b)"
        assert (finding.line, finding.column) == (1, 11)

    async def test_the_same_code_at_another_place_is_not_scanned_again(
        self, scanner: SemgrepScanner, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Results are kept by code; places are those of each message."""
        await scanner.scan([BAD])
        monkeypatch.setattr(scanner, "_examine", None)
        (result,) = await scanner.scan(extract_code_blocks("hello\n```py\neval(x)\n```"))
        assert isinstance(result, list)
        assert result[0].span == Span(12, 19)

    async def test_a_lone_surrogate_is_a_sign_like_others(self, scanner: SemgrepScanner) -> None:
        """What cannot be written to a file is read as a question mark."""
        code = "a = '\ud800é'; eval(b)"
        assert scanner.start(wait_s=60)
        assert await rules_hit(scanner, code, "python") == {"python.eval-used"}

    async def test_a_match_that_readings_end_at_two_places_is_one_finding(self, scanner: SemgrepScanner) -> None:
        """A repair may make a match longer; there is one place to mend."""
        block, rule = block_of("eval(x\n", "javascript"), "javascript.code-injection"
        findings = list(scanner._findings(block, [Hit(rule, 0, 6, ""), Hit(rule, 0, 7, "")]))
        assert [finding.span for finding in findings] == [Span(0, 6)]

    async def test_labels_never_reach_a_file_name(self, scanner: SemgrepScanner, temp: Path) -> None:
        """A label that looks like a path is a language without rules."""
        (result,) = await scanner.scan([block_of("x", "../../../etc/passwd")])
        assert isinstance(result, ScanError)
        assert leftovers(temp) == []

    async def test_nothing_is_left_and_nothing_is_inherited(self, temp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Files are gone afterwards; settings of the operator's semgrep do not change the result."""
        monkeypatch.setenv("SEMGREP_RULES", "/nowhere")
        monkeypatch.setenv("SEMGREP_APP_TOKEN", "not-a-token")
        (result,) = await SemgrepScanner().scan([BAD])
        assert isinstance(result, list)
        assert len(result) == 1
        assert leftovers(temp) == []

    def test_works_from_any_event_loop(self, scanner: SemgrepScanner) -> None:
        """A scanner used in one loop works in the next."""
        for code in ("eval(loop1)", "eval(loop2)"):
            (result,) = asyncio.run(scanner.scan([block_of(code, "python")]))
            assert isinstance(result, list)
            assert len(result) == 1

    async def test_code_shield_end_to_end(self) -> None:
        """The shield names its rules and finds code in an answer."""
        shield = CodeShield()
        assert shield.source.model == "code-shield"
        assert "rules-" in shield.source.revision
        assert "semgrep-" in shield.source.revision
        text = "Try:\n\n```python\nimport os\nos.system('ping ' + host)\n```\n"
        (verdict,) = await shield.classify([Conversation.of(text, role=Role.ASSISTANT)])
        assert verdict.outcome is Outcome.UNSAFE
        assert [finding.cwe for finding in verdict.findings] == ["CWE-78"]


# semgrep's parser needs minutes for the string, and no time limit of its own ends that.
HANG = block_of("password = '" + "a!" * 6000, "csharp")


@pytest.fixture(scope="class")
def warm() -> Iterator[SemgrepScanner]:
    """A scanner whose workers run."""
    scanner = SemgrepScanner()
    assert scanner.start(wait_s=60)
    yield scanner
    scanner.close()


class TestHoldingUp:
    """Code that was written to hold up a scanner holds up its own message alone."""

    async def test_a_neighbour_keeps_its_findings(self, warm: SemgrepScanner) -> None:
        """In the same call, among few blocks and among many; what hangs is unverified, not clean."""
        for count in (1, 20):
            others = [block_of(f"eval(a{count}{i})", "python") for i in range(count)]
            hung, *results = await warm.scan([HANG, *others])
            assert isinstance(hung, ScanError)
            assert [len(result) for result in results if isinstance(result, list)] == [1] * count

    async def test_other_calls_go_on(self, warm: SemgrepScanner) -> None:
        """Four calls that hang leave the fifth its turn: it is done before any of them."""
        hung = [asyncio.create_task(warm.scan([block_of(f"{HANG.code}{i}", "csharp")])) for i in range(4)]
        await asyncio.sleep(0.2)
        (result,) = await warm.scan([block_of("eval(other)", "python")])
        assert isinstance(result, list)
        assert len(result) == 1
        assert not any(task.done() for task in hung)
        for (answer,) in await asyncio.gather(*hung):
            assert isinstance(answer, ScanError)

    async def test_long_blocks_of_many_keep_their_findings(self, warm: SemgrepScanner) -> None:
        """They are scanned beside the short ones, and several at a time after those; each result is its block's."""
        blocks = [
            block_of(f"total_{n} = {n}\n" * (2200 + n if n % 4 == 0 else n) + f"eval(code_{n})\n", "python")
            for n in range(24)
        ]
        results = await warm.scan(blocks)
        for block, result in zip(blocks, results, strict=True):
            assert isinstance(result, list), str(result)
            assert [finding.line for finding in result] == [block.code.count("\n")]

    async def test_a_block_of_findings_alone_is_cut_and_not_verified(self, warm: SemgrepScanner) -> None:
        """Seven hundred findings are not worth reading; that there are more is said, as one of them may matter."""
        (result,) = await warm.scan([block_of("eval(x)\n" * 700, "python")])
        assert isinstance(result, PartialScan)
        assert len(result.findings) == 500


def test_temp_folder_is_private(tmp_path: Path) -> None:
    """mkdtemp makes folders for their owner alone; the code of messages is not for other users."""
    assert stat.S_IMODE(os.stat(tempfile.mkdtemp(dir=tmp_path)).st_mode) == 0o700

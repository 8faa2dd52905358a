"""The short ways to a result: the gate and the processes that keep running, held to the long way."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from guardrail import shield
from guardrail.errors import ScanError
from guardrail.shield.gate import Gate
from guardrail.shield.install import find_semgrep
from guardrail.shield.oneshot import scan_files
from guardrail.shield.report import judge
from guardrail.shield.rulebook import RULES, Rulebook
from guardrail.shield.semgrep import SemgrepScanner
from guardrail.shield.targets import LANGUAGES, Target, make_targets
from guardrail.shield.warm import Worker, Workers
from guardrail.verdict import CodeBlock, Span

CODE = Path(__file__).parents[3] / "shared" / "data" / "code" / "insecure.jsonl"


def block_of(code: str, language: str) -> CodeBlock:
    starts = [0]
    for line in code.split("\n")[:-1]:
        starts.append(starts[-1] + len(line) + 1)
    return CodeBlock(code, language, Span(0, len(code)), tuple(starts))


def target_of(code: str, language: str, stem: str = "a") -> Target:
    return make_targets(block_of(code, language), stem)[0]


@pytest.fixture(scope="module")
def rulebook() -> Rulebook:
    return Rulebook.load(RULES)


@pytest.fixture(scope="module")
def gate(rulebook: Rulebook) -> Gate:
    return Gate.load(find_semgrep(), rulebook)


@pytest.fixture(scope="module")
def worker(rulebook: Rulebook) -> Iterator[Worker]:
    worker = Worker(find_semgrep(), rulebook)
    yield worker
    worker.close()


def ids_of(rulebook: Rulebook, language: str) -> list[str]:
    return [rule.id for rule in rulebook.rules.values() if language in rule.languages]


class TestGate:
    def test_lets_every_case_of_every_rule_pass(self, gate: Gate, rulebook: Rulebook) -> None:
        """What a rule must find, it is a candidate for."""
        lost = []
        for path in sorted((Path(shield.__file__).parent / "rules").glob("*/*.cases.yaml")):
            cases: dict[str, Any] = yaml.safe_load(path.read_text("utf-8"))
            for rule_id, sides in cases.items():
                for code in sides["match"]:
                    text = target_of(code, path.parent.name).body
                    if rule_id not in gate.candidates(text, rulebook.rules[rule_id].languages):
                        lost.append((rule_id, code))
        assert not lost

    @pytest.mark.skipif(not CODE.exists(), reason=f"no {CODE}")
    def test_loses_no_finding_on_real_code(self, gate: Gate, rulebook: Rulebook) -> None:
        """Everything that semgrep finds with all rules is found by a rule that the gate lets pass."""
        records = [json.loads(line) for line in CODE.read_text("utf-8").splitlines()]
        blocks = [block_of(record["code"], record["language"]) for record in records]
        targets = [target_of(block.code, block.language or "", f"a{i}x") for i, block in enumerate(blocks)]
        run = scan_files(
            find_semgrep(), rulebook, targets, deadline=time.monotonic() + 300, cancelled=threading.Event()
        )
        assert not run.failed
        lost, hits = [], 0
        for block, target in zip(blocks, targets, strict=True):
            allowed = gate.candidates(target.body, [LANGUAGES[target.language].rules])
            for hit in judge(run, target, block.code, rulebook.rules).hits:
                hits += 1
                if hit.rule_id not in allowed:
                    lost.append(hit.rule_id)
        assert hits > len(blocks)
        assert not lost

    def test_keeps_plain_code_from_semgrep(self, gate: Gate) -> None:
        """Code without anything that a rule needs has no candidate."""
        assert gate.candidates("total = 0\nfor item in items:\n    total += item.price\n", ["python"]) == set()

    def test_a_rule_without_a_formula_is_always_a_candidate(self, rulebook: Rulebook) -> None:
        """Not knowing what a rule needs is no reason to leave it out."""
        assert Gate({}, rulebook).candidates("", ["python"]) == set(ids_of(rulebook, "python"))

    def test_a_rule_that_needs_an_expression_alone_is_held_to_it(self, rulebook: Rulebook) -> None:
        """There is no word to look such a rule up by; its expression is tried on every text."""
        pytest.importorskip("re2", reason="needs guardrail[code]")
        gate = Gate({"python.eval-used": ("match", r"ev.l\s*\(")}, rulebook)
        assert "python.eval-used" in gate.candidates("eval (x)", ["python"])
        assert "python.eval-used" not in gate.candidates("x", ["python"])

    def test_a_semgrep_that_prints_nothing_is_an_error(self, rulebook: Rulebook) -> None:
        """No formulas is not the same as nothing needed."""
        with pytest.raises(ScanError, match="expected formulas"):
            Gate.load(Path("/bin/true"), rulebook)


class TestWorker:
    def test_finds_what_a_process_of_its_own_finds(self, worker: Worker, rulebook: Rulebook) -> None:
        """The same places, in several languages, one after the other."""
        codes = [
            ("import os\n\ndef f(x):\n    os.system('ls ' + x)\n", "python"),
            ("é = 'é😀'; eval(b)\n", "python"),
            ("function f(x) { eval(x); }\n", "javascript"),
            ("int f(char *s) { return gets(s) != 0; }\n", "c"),
            ("x = 1\n", "python"),
        ]
        for code, language in codes:
            target = target_of(code, language)
            apart = scan_files(
                find_semgrep(), rulebook, [target], deadline=time.monotonic() + 60, cancelled=threading.Event()
            )
            run = worker.scan(target, ids_of(rulebook, LANGUAGES[language].rules), timeout_s=20)
            assert judge(run, target, code, rulebook.rules) == judge(apart, target, code, rulebook.rules)

    @pytest.mark.parametrize(
        "code",
        [
            "for each user in (list = ) do $$ the = eval(",
            "eval(x)\n`Semgrep errors: \nSemgrep skipped 0 rules\nScanned 1 files\nFound 1 matches\n` = (",
            "eval(x) = ((\nSemgrep errors: \nSemgrep skipped 0 rules\nScanned 1 files\nFound 2 matches\n",
        ],
        ids=["broken", "forged-log", "forged-log-end"],
    )
    def test_what_was_not_understood_is_not_verified(self, worker: Worker, rulebook: Rulebook, code: str) -> None:
        """The log tells what parsing lost, and a text cannot write it."""
        target = target_of(code, "python")
        assert judge(
            worker.scan(target, ids_of(rulebook, "python"), timeout_s=20), target, code, rulebook.rules
        ).failure

    @pytest.mark.parametrize("cut", [b"Semgrep errors: \n", b"Semgrep skipped ", b"Scanned 1 files\n"])
    def test_a_log_with_words_on_loading_is_asked_for_again(
        self, worker: Worker, rulebook: Rulebook, cut: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Semgrep may still write of the rules' loading; that is no sign that code was lost."""
        read, left = worker._read, [b"Scanned open documents\n"]

        def mixed(key: selectors.SelectorKey) -> None:
            read(key)
            if cut in worker._log and left:
                worker._log = worker._log.replace(cut, cut + left.pop())

        target = target_of("eval(x)\n", "python")
        clean = worker.scan(target, ids_of(rulebook, "python"), timeout_s=20)
        scans = worker.scans
        monkeypatch.setattr(worker, "_read", mixed)
        assert worker.scan(target, ids_of(rulebook, "python"), timeout_s=20) == clean
        assert worker.scans == scans + 2

    def test_minified_code_is_read(self, worker: Worker, rulebook: Rulebook) -> None:
        """Semgrep skips such files in silence; white space after the canary prevents it."""
        code = "x=1;" * 600 + "eval(y);"
        target = target_of(code, "javascript")
        result = judge(worker.scan(target, ids_of(rulebook, "javascript"), timeout_s=20), target, code, rulebook.rules)
        assert result.is_whole
        assert result.hits

    def test_a_comment_switches_nothing_off(self, worker: Worker, rulebook: Rulebook) -> None:
        """``nosem`` in the code is the code's word against the rules'."""
        code = "eval(x)  # nosemgrep"
        target = target_of(code, "python")
        assert judge(worker.scan(target, ids_of(rulebook, "python"), timeout_s=20), target, code, rulebook.rules).hits

    def test_a_canary_of_other_rules_is_an_error(self, worker: Worker, rulebook: Rulebook) -> None:
        """Diagnostics by rules that were loaded before are not taken for an answer."""
        target = target_of("x = 1", "python")
        worker.scan(target, (), timeout_s=20)
        worker._canary = "guardrail.canary.0"
        with pytest.raises(ScanError, match="other rules"):
            worker.scan(target, (), timeout_s=20)
        worker._loaded = None

    def test_a_slow_file_is_an_error_in_time(self, rulebook: Rulebook) -> None:
        """A worker that does not answer is given up."""
        worker = Worker(find_semgrep(), rulebook)
        try:
            os.killpg(worker._process.pid, signal.SIGSTOP)
            with pytest.raises(ScanError, match="in time"):
                worker.scan(target_of("x = 1", "python"), (), timeout_s=0.2)
        finally:
            worker.close()

    @pytest.mark.parametrize("core", ["/bin/true", "/bin/cat", "/nonexistent"])
    def test_another_program_is_no_worker(self, rulebook: Rulebook, core: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """What does not speak the protocol, or find the canary, is refused."""
        monkeypatch.setattr("guardrail.shield.warm._READY_S", 0.5)
        with pytest.raises(ScanError):
            Worker(Path(core), rulebook)


class TestWorkers:
    def test_a_killed_worker_is_replaced(self, rulebook: Rulebook) -> None:
        """Its scan fails, the next ones are done by another."""
        workers = Workers(find_semgrep(), rulebook, size=1)
        try:
            assert workers.wait_until_ready(30)
            for worker in list(workers._all):
                os.killpg(worker._process.pid, signal.SIGKILL)
            target = target_of("eval(x)", "python")
            run = None
            for _ in range(200):
                with contextlib.suppress(ScanError), workers.lease("python", ["python.eval-used"]) as worker:
                    run = worker.scan(target, ["python.eval-used"], timeout_s=20) if worker is not None else None
                if run is not None:
                    break
                time.sleep(0.1)
            assert run is not None
            assert run.matches[target.name]
        finally:
            workers.close()
        assert not workers._all

    def test_a_batch_lets_others_go_first(self, rulebook: Rulebook, monkeypatch: pytest.MonkeyPatch) -> None:
        """Who is patient gets a worker when nobody else waits for one."""
        monkeypatch.setattr("guardrail.shield.warm._WAIT_S", 30.0)
        workers = Workers(find_semgrep(), rulebook, size=0)
        order: list[str] = []

        def work(name: str, is_patient: bool) -> None:
            with workers.lease("python", [], is_patient=is_patient) as worker:
                order.append(name if worker is not None else "none was free")

        try:
            assert workers.wait_until_ready(30)
            with workers.lease("python", []):
                threads = [threading.Thread(target=work, args=each) for each in (("patient", True), ("hurried", False))]
                threads[0].start()
                time.sleep(0.05)
                threads[1].start()
                while not workers._hurried:
                    time.sleep(0.01)
            for thread in threads:
                thread.join()
        finally:
            workers.close()
        assert order == ["hurried", "patient"]

    async def test_a_scanner_uses_them_and_ends_them(self) -> None:
        """The result is that of the first call, which has none; after closing there is no process left."""
        scanner = SemgrepScanner(timeout_s=60)
        blocks = [block_of("def f(x):\n    eval(x)\n", "python"), block_of("eval(x\n", "javascript")]
        first = await scanner.scan(blocks)
        assert scanner.start(wait_s=60)
        scanner._cache.clear()
        assert await scanner.scan(blocks) == first
        assert scanner._workers is not None
        processes = [worker._process for worker in scanner._workers._all]
        assert any(worker.scans > 1 for worker in scanner._workers._all)
        scanner.close()
        assert all(process.poll() is not None for process in processes)

"""Scan a file at a time with a semgrep that keeps running: its language server, a few milliseconds a file.

A worker is one ``osemgrep lsp`` process. A file is written under a name never used before, announced and saved in the
words of the Language Server Protocol (https://microsoft.github.io/language-server-protocol/), and its diagnostics are
awaited. For each scan semgrep works out anew what every loaded rule needs, 0.1 ms a rule; so the worker is given only
the rules that can match the file (:mod:`guardrail.shield.gate`), by ``semgrep/refreshRules``, 2 ms. Facts of semgrep
1.182.0, measured; ``tests/integration/test_warm.py`` holds them:

- Files that were announced before ``semgrep/rulesRefreshed``, were not announced, or had a name twice are answered with
  no diagnostics, as clean files are. Hence the canary, whose rule has another id in each set of rules: no canary of
  this set back, not verified.
- One unknown key in ``initializationOptions.scan`` and all settings are dropped in silence.
- What parsing lost is not in the diagnostics. It is in the log, as text around a template that ends with the number of
  matches: a file counts as read only where the log is that template and nothing else.
- After rules were loaded semgrep looks for documents that an editor has open, and may write of it into the midst of
  that template (4 of 450 first scans on a busy machine): such a log tells nothing, and the file is scanned again.
- A column counts bytes. ``nosem`` comments are not obeyed. A file of over 1,000 bytes with little white space is taken
  for minified and skipped; white space after the canary prevents it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import selectors
import shutil
import subprocess
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from guardrail.errors import ScanError
from guardrail.shield import TooSlow
from guardrail.shield.oneshot import kill_group, make_environment
from guardrail.shield.report import Match, Run
from guardrail.shield.rulebook import CANARY_RULE, Rulebook
from guardrail.shield.targets import LANGUAGES, Target, encode

__all__ = ["MAX_BYTES", "Worker", "Workers"]

logger = logging.getLogger(__name__)

MAX_BYTES = 20_000
"""Longer files go to a process of their own: nothing of theirs may hold up the others."""

_READY_S = 20.0  # 0.2 s on an idle core
_WAIT_S = 0.3  # for a free worker; a process of its own would take as long
_SCAN_S = 0.5  # 15 ms is usual; whatever takes longer is killed and scanned by a process of its own
_MAX_SCANS = 1500  # latency and memory grow slowly
_RULE_S = 2
_MOST_OTHERS = 10  # rules that cannot match cost 0.1 ms each, loading those that can 1 to 2 ms
_CLEAN_LOG = re.compile(
    rb"Semgrep errors: \nSemgrep skipped 0 rules\nScanned 1 files\nFound (\d+) matches\n", re.DOTALL
)
_LOG_END = re.compile(rb"\nFound \d+ matches\n")
_LOG_OF_LOADING = re.compile(rb"open documents|No targets to scan")


class Worker:
    """One language server; for one thread at a time.

    Args:
        core: ``semgrep-core``.
        rulebook: The rules.

    Raises:
        ScanError: If it did not start, or does not find what it must.
    """

    def __init__(self, core: Path, rulebook: Rulebook) -> None:
        shared = Path("/dev/shm")  # noqa: S108  # a private folder is made in it
        parent = shared if os.access(shared, os.W_OK) else None
        self._folder = Path(tempfile.mkdtemp(prefix="guardrail-warm-", dir=parent))  # mode 0700
        self._rulebook = rulebook
        self._loaded: tuple[str, ...] | None = None
        self._loading = 0  # sets of rules that it was told of and has not yet
        self._canary = ""
        self._sets = 0
        self.scans = 0
        self._incoming = b""
        self._log = b""
        try:
            self._process = self._start(core)
        except OSError as exc:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise ScanError(f"expected to run {core}, got {type(exc).__name__}: {exc.strerror}") from exc
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._selector = selectors.DefaultSelector()
        for stream, name in ((self._process.stdout, "out"), (self._process.stderr, "log")):
            os.set_blocking(stream.fileno(), False)
            self._selector.register(stream, selectors.EVENT_READ, name)
        try:
            self._initialize(time.monotonic() + _READY_S)
            self._check(time.monotonic() + _READY_S)
        except BaseException:
            self.close()
            raise

    def has(self, language: str, rule_ids: Sequence[str]) -> bool:
        """Tells whether it can scan with these rules as it is, and with few others."""
        if self._loaded is None or self._loaded[0] != language or len(self._loaded) > len(rule_ids) + 1 + _MOST_OTHERS:
            return False
        return set(rule_ids).issubset(self._loaded[1:])

    def scan(self, target: Target, rule_ids: Sequence[str], *, timeout_s: float = _SCAN_S) -> Run:
        """Scans one file of at most :data:`MAX_BYTES` bytes.

        Args:
            target: The file.
            rule_ids: The rules that can match it; those of other languages are left out.
            timeout_s: Time for the answer.

        Raises:
            TooSlow: If there was no answer in time; the worker is of no further use then.
            ScanError: If there was none that can be read; neither is it then.
        """
        deadline = time.monotonic() + timeout_s
        data = encode(target.text)
        if len(data) > 900:
            data += b"\n" * (len(data) // 10)
        try:
            self._load(target.language, rule_ids, deadline)
            run = self._scan(target.name, data, deadline)
            if run.losses and _LOG_OF_LOADING.search(self._log):
                run = self._scan(target.name, data, deadline)
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise ScanError(f"expected diagnostics from semgrep's language server, got {type(exc).__name__}") from exc
        return run

    def _scan(self, name: str, data: bytes, deadline: float) -> Run:
        self.scans += 1
        path = self._folder / "work" / f"s{self.scans}{name}"
        uri = path.as_uri()
        try:
            self._drain()
            path.write_bytes(data)
            self._notify("workspace/didCreateFiles", {"files": [{"uri": uri}]})
            self._notify("textDocument/didSave", {"textDocument": {"uri": uri}})
            diagnostics = self._wait_for(lambda message: _diagnostics(message, uri), deadline)
            while not _LOG_END.search(self._log):
                self._receive(deadline)
            return _to_run(name, data, diagnostics, self._log, self._canary)
        finally:
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Ends the process; more calls do nothing."""
        kill_group(self._process)
        self._selector.close()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self, core: Path) -> subprocess.Popen[bytes]:
        for name in ("work", "home", "bin"):
            (self._folder / name).mkdir()
        (self._folder / "rules.json").write_bytes(b'{"rules": []}')
        # Semgrep asks git about each file, which costs a millisecond and a half: here there is none. uname it needs.
        if (uname := shutil.which("uname")) is not None:
            (self._folder / "bin" / "uname").symlink_to(uname)
        return subprocess.Popen(  # fixed arguments; the code travels in files
            ["osemgrep", "lsp", "--experimental"],  # noqa: S607  # a name to go by, not what is run
            executable=core,
            cwd=self._folder / "work",
            env=make_environment(self._folder / "home", path=str(self._folder / "bin")),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )

    def _initialize(self, deadline: float) -> None:
        root = (self._folder / "work").as_uri()
        # One unknown key here, and semgrep falls back to rules from its registry.
        scan = {
            "configuration": [str(self._folder / "rules.json")],
            "ci": False,
            "onlyGitDirty": False,
            "maxTargetBytes": 0,
            "timeout": _RULE_S,
            "timeoutThreshold": 3,
            "jobs": 1,
            "maxMemory": 0,
            "exclude": [],
            "include": [],
        }
        options = {"scan": scan, "metrics": {"enabled": False, "isNewAppInstall": False}, "doHover": False}
        parameters = {
            "processId": os.getpid(),
            "rootUri": root,
            "workspaceFolders": [{"uri": root, "name": "work"}],
            "capabilities": {},
            "initializationOptions": options,
        }
        self._send({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": parameters})
        self._wait_for(lambda message: (message.get("id") == 1 and "result" in message) or None, deadline)
        self._notify("initialized", {})
        self._wait_for(lambda message: message.get("method") == "semgrep/rulesRefreshed" or None, deadline)

    def _check(self, deadline: float) -> None:
        """Scans an empty file, in which the canary has to be found."""
        language = min(self._rulebook.languages)
        target = Target(f"check{LANGUAGES[language].suffix}", language, "", "", f"\n{LANGUAGES[language].canary}")
        run = self.scan(target, (), timeout_s=deadline - time.monotonic())
        if run.losses or not run.matches[target.name]:
            raise ScanError("semgrep's language server does not find what it must")

    def begin(self, language: str, rule_ids: Sequence[str]) -> None:
        """Begins to load the rules for a file of a language, where it has not got them; :meth:`scan` waits for them.

        Raises:
            ScanError: If it is gone.
        """
        if self.has(language, rule_ids):
            return
        self._loaded = None
        self._sets += 1
        self._canary = f"{CANARY_RULE}.{self._sets}"
        rules = sorted(rule_ids)
        text = self._rulebook.for_file(LANGUAGES[language].rules, rules, canary=self._canary)
        try:
            (self._folder / "rules.json").write_bytes(text)
        except OSError as exc:
            raise ScanError(f"expected to write rules for semgrep, got {type(exc).__name__}: {exc.strerror}") from exc
        self._notify("semgrep/refreshRules", {})
        self._loaded = (language, *rules)
        self._loading += 1

    def _load(self, language: str, rule_ids: Sequence[str], deadline: float) -> None:
        self.begin(language, rule_ids)
        while self._loading:
            self._wait_for(lambda message: message.get("method") == "semgrep/rulesRefreshed" or None, deadline)
            self._loading -= 1

    def _notify(self, method: str, parameters: dict[str, Any]) -> None:
        self._send({"jsonrpc": "2.0", "method": method, "params": parameters})

    def _send(self, message: dict[str, Any]) -> None:
        body = json.dumps(message).encode()
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)
        except OSError as exc:
            raise ScanError("semgrep's language server is gone") from exc

    def _wait_for(self, pick: Any, deadline: float) -> Any:
        """Returns what ``pick`` makes of the first message of which it makes something."""
        while True:
            while (message := self._next_message()) is not None:
                if (found := pick(message)) is not None:
                    return found
            self._receive(deadline)

    def _next_message(self) -> dict[str, Any] | None:
        head, mark, rest = self._incoming.partition(b"\r\n\r\n")
        if not mark:
            return None
        fields = dict(line.lower().split(b":", 1) for line in head.split(b"\r\n"))
        length = int(fields[b"content-length"])
        if len(rest) < length:
            return None
        self._incoming = rest[length:]
        message = json.loads(rest[:length])
        if not isinstance(message, dict):
            raise ScanError("expected an object from semgrep's language server")
        return message

    def _receive(self, deadline: float) -> None:
        left_s = deadline - time.monotonic()
        ready = self._selector.select(left_s) if left_s > 0 else []
        if not ready:
            raise TooSlow("semgrep's language server did not answer in time")
        for key, _ in ready:
            self._read(key)

    def _read(self, key: selectors.SelectorKey) -> None:
        try:
            data = os.read(key.fd, 1 << 16)
        except BlockingIOError:
            return
        if not data:
            raise ScanError("semgrep's language server is gone")
        if key.data == "out":
            self._incoming += data
        else:
            self._log += data

    def _drain(self) -> None:
        """Forgets what came after the last answer."""
        while ready := self._selector.select(0):
            for key, _ in ready:
                self._read(key)
        while self._next_message() is not None:
            pass
        self._log = b""


def _diagnostics(message: dict[str, Any], uri: str) -> list[dict[str, Any]] | None:
    if message.get("method") != "textDocument/publishDiagnostics" or message["params"]["uri"] != uri:
        return None
    found: list[dict[str, Any]] = message["params"]["diagnostics"]
    return found


def _to_run(name: str, data: bytes, diagnostics: list[dict[str, Any]], log: bytes, canary: str) -> Run:
    starts = [0]
    for line in data.split(b"\n"):
        starts.append(starts[-1] + len(line) + 1)

    def offset(place: dict[str, int]) -> int:
        return starts[place["line"]] + place["character"]

    run = Run(scanned={name})
    run.matches[name] = [
        Match(d["code"], offset(d["range"]["start"]), offset(d["range"]["end"]), str(d["message"]).strip())
        for d in diagnostics
    ]
    if any(d["code"].startswith(CANARY_RULE) and d["code"] != canary for d in diagnostics):
        raise ScanError("semgrep's language server uses other rules than it was given last")
    clean = _CLEAN_LOG.search(log)
    if clean is None or int(clean[1]) != len(diagnostics) or log.count(b"Semgrep errors:") != 1:
        run.losses[name] = "semgrep did not understand all of it"
    return run


class Workers:
    """A few workers that are started in the background and replaced when they fail or have done their share.

    Safe to use from any thread.

    Args:
        core: ``semgrep-core``.
        rulebook: The rules.
        size: How many may work at a time; one more is kept ready for when one of them fails.
    """

    def __init__(self, core: Path, rulebook: Rulebook, *, size: int) -> None:
        self._core = core
        self._rulebook = rulebook
        self._lock = threading.Lock()
        self._is_free = threading.Condition(self._lock)
        self._ready: list[Worker] = []  # guarded by _lock; the one that has rested longest first
        self._all: set[Worker] = set()  # guarded by _lock
        self._hurried = 0  # guarded by _lock; those who wait for a worker and are not patient
        self._failures = 0  # guarded by _lock; starts in a row that failed
        self._closed = False  # guarded by _lock
        self._finalizer = weakref.finalize(self, _close_all, self._all)
        for _ in range(size + 1):
            self._start_one()

    @contextlib.contextmanager
    def lease(self, language: str, rule_ids: Sequence[str], *, is_patient: bool = False) -> Iterator[Worker | None]:
        """Gives a worker that begins to load the rules, or None where none is free in time.

        Args:
            language: Of the first file, a key of ``LANGUAGES``.
            rule_ids: The rules that can match it.
            is_patient: Whether those who wait and are not patient come first.

        Raises:
            TooSlow: What the worker raised; it is replaced.
            ScanError: The same.
        """
        worker = self._take(language, rule_ids, is_patient)
        if worker is None:
            yield None
            return
        try:
            worker.begin(language, rule_ids)
            yield worker
        except BaseException as exc:
            if isinstance(exc, ScanError):
                logger.info("a warm semgrep is replaced: %s", exc)
            self._replace(worker)
            raise
        if worker.scans >= _MAX_SCANS:
            self._replace(worker)
        else:
            self._put(worker)

    def wait_until_ready(self, timeout_s: float) -> bool:
        """Waits for the first worker.

        Returns:
            Whether there is one.
        """
        with self._is_free:
            return self._is_free.wait_for(lambda: bool(self._ready), timeout_s)

    def close(self) -> None:
        """Ends all workers."""
        with self._lock:
            self._closed = True
        self._finalizer()

    def _take(self, language: str, rule_ids: Sequence[str], is_patient: bool) -> Worker | None:
        """Waits for a free worker, one that has the rules if there is one."""
        with self._is_free:
            self._hurried += not is_patient
            try:
                if not self._is_free.wait_for(lambda: self._ready and not (is_patient and self._hurried), _WAIT_S):
                    return None
                fitting = (i for i, worker in enumerate(self._ready) if worker.has(language, rule_ids))
                return self._ready.pop(next(fitting, 0))
            finally:
                self._hurried -= not is_patient
                self._is_free.notify_all()

    def _put(self, worker: Worker) -> None:
        with self._is_free:
            self._ready.append(worker)
            self._is_free.notify_all()

    def _replace(self, worker: Worker) -> None:
        with self._lock:
            self._all.discard(worker)
        worker.close()
        self._start_one()

    def _start_one(self) -> None:
        threading.Thread(target=self._start, name="guardrail-semgrep-start", daemon=True).start()

    def _start(self) -> None:
        with self._lock:
            if self._closed or self._failures >= 3:
                return
        try:
            worker = Worker(self._core, self._rulebook)
        except ScanError as exc:
            with self._lock:
                self._failures += 1
                failures = self._failures
            logger.warning("no warm semgrep, each scan starts its own: %s", exc)
            if failures < 3:
                time.sleep(failures)
                self._start_one()
            return
        with self._lock:
            self._failures = 0
            if not self._closed:
                self._all.add(worker)
                self._ready.append(worker)
                self._is_free.notify_all()
                return
        worker.close()


def _close_all(workers: set[Worker]) -> None:
    while workers:
        workers.pop().close()

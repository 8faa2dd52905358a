"""Scan files with one semgrep process a call: any number of files; 0.1 to 0.2 s to start and about 2 ms a file.

Semgrep fails quietly: it skips files that it thinks minified, too large or ignored; it exits 0 having looked at
nothing. The options below switch that off, and :mod:`guardrail.shield.report` checks that it is so.

Source of the behaviour: semgrep 1.182.0, measured; ``tests/integration/test_semgrep.py`` holds the facts. Its native
front end (``osemgrep``) takes 0.16 s where the Python one takes 2.0 s for the same report.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Container, Sequence
from pathlib import Path

from guardrail.errors import ScanError
from guardrail.shield import TooSlow
from guardrail.shield.report import Run, read_report
from guardrail.shield.rulebook import Rulebook
from guardrail.shield.targets import LANGUAGES, Target, encode

__all__ = ["kill_group", "make_environment", "scan_files"]

_RULE_S = 2  # one rule on one file, where a hundredth is usual; the first that takes longer ends the file
_RUN_S, _FILE_S, _CHARS_S = 5.0, 0.1, 20_000  # what takes longer than this is not usual: for a run, a file, characters
_LEAST_S = 0.2  # too little to run a half again in


def scan_files(
    executable: Path,
    rulebook: Rulebook,
    targets: Sequence[Target],
    *,
    only: Container[str] | None = None,
    deadline: float,
    cancelled: threading.Event,
) -> Run:
    """Scans files; where a run of several fails, each half of them, so that one file fails alone.

    Args:
        executable: ``semgrep-core``, which is ``osemgrep`` when called so.
        rulebook: The rules.
        targets: The files, at least one, names used once.
        only: Ids of the rules to apply; None for all of their languages.
        deadline: On the monotonic clock.
        cancelled: Ends the run early.

    Returns:
        What was reported; ``failed`` says why for files whose run failed.

    Raises:
        TooSlow: If several files took longer than usual: one of them holds up the others.
    """
    left_s = deadline - time.monotonic()
    usual_s = _RUN_S + _FILE_S * len(targets) + sum(len(target.body) for target in targets) / _CHARS_S
    try:
        return _run(executable, rulebook, targets, only, min(left_s, usual_s), cancelled)
    except ScanError as error:
        if isinstance(error, TooSlow) and len(targets) > 1:
            raise
        if len(targets) == 1 or deadline - time.monotonic() <= _LEAST_S or cancelled.is_set():
            return Run(failed={target.name: str(error) for target in targets})
    middle = len(targets) // 2
    first = scan_files(executable, rulebook, targets[:middle], only=only, deadline=deadline, cancelled=cancelled)
    return first | scan_files(executable, rulebook, targets[middle:], only=only, deadline=deadline, cancelled=cancelled)


def make_environment(home: Path, *, path: str = os.defpath) -> dict[str, str]:
    """Returns an environment for semgrep: nothing inherited, nothing sent, all it writes in one folder."""
    return {
        "PATH": path,
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home),
        "XDG_CACHE_HOME": str(home),
        "TMPDIR": str(home),
        "LANG": "C.UTF-8",
        "LC_ALL": "C.UTF-8",
        "OCAMLRUNPARAM": "o=400",  # less collecting of garbage: a twentieth of the time, for 25 MB
        "LWT_ASYNC_METHOD": "none",  # no threads of its own for reading and writing: a twentieth, too
        "SEMGREP_SEND_METRICS": "off",
        "SEMGREP_ENABLE_VERSION_CHECK": "0",
        "SEMGREP_SETTINGS_FILE": str(home / "settings.yml"),
    }


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kills a process with its children, and waits for it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _run(
    executable: Path,
    rulebook: Rulebook,
    targets: Sequence[Target],
    only: Container[str] | None,
    timeout_s: float,
    cancelled: threading.Event,
) -> Run:
    if timeout_s <= 0 or cancelled.is_set():
        raise ScanError("semgrep had no time left; raise timeout_s or scan fewer blocks")
    folder = Path(tempfile.mkdtemp(prefix="guardrail-scan-"))  # mode 0700
    try:
        (folder / "code").mkdir()
        (folder / "home").mkdir()
        for target in targets:
            (folder / "code" / target.name).write_bytes(encode(target.text))
        wanted = {LANGUAGES[target.language].rules for target in targets}
        (folder / "rules.json").write_bytes(rulebook.for_semgrep(wanted, only))
        return read_report(_call(executable, folder, timeout_s, cancelled), targets)
    except OSError as exc:
        raise ScanError(f"expected to run {executable}, got {type(exc).__name__}: {exc.strerror}") from exc
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _call(executable: Path, folder: Path, timeout_s: float, cancelled: threading.Event) -> bytes:
    command = [
        *("osemgrep", "scan", "--experimental", "--json", "--quiet", "--metrics=off", "--disable-version-check"),
        *("--disable-nosem", "--no-git-ignore", "--novcs", "--no-rewrite-rule-ids"),
        *("--no-exclude-binary-files", "--no-exclude-minified-files", "--max-target-bytes", "0"),
        *("--timeout", str(_RULE_S), "--timeout-threshold", "1", "-j", "1", "--config", "rules.json", "code"),
    ]
    with (folder / "report.json").open("w+b") as report:
        process = subprocess.Popen(  # noqa: S603  # fixed arguments; the code travels in files
            command,
            executable=executable,
            cwd=folder,
            env=make_environment(folder / "home"),
            stdin=subprocess.DEVNULL,
            stdout=report,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            code = _wait(process, timeout_s, cancelled)
        finally:
            kill_group(process)
        report.seek(0)
        output = report.read()
    # 0: done; 1: done with findings under --error, which is not used. Anything else: something was not done.
    if code != 0:
        raise ScanError(f"semgrep ended with status {code}; expected 0 from {executable}")
    return output


def _wait(process: subprocess.Popen[bytes], timeout_s: float, cancelled: threading.Event) -> int:
    limit = time.monotonic() + timeout_s
    pause = 0.005
    while (code := process.poll()) is None:
        if cancelled.is_set():
            raise ScanError("the scan was cancelled")
        if time.monotonic() > limit:
            raise TooSlow(f"semgrep took longer than {timeout_s:.1f} s; raise timeout_s or scan less code")
        cancelled.wait(pause)
        pause = min(pause * 1.5, 0.05)
    return code

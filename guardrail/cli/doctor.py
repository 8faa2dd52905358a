"""``guardrail doctor``: looks whether the set-up works, and says what to do where it does not.

``--install-semgrep DIR`` puts semgrep, without the packages that its own command needs, into a folder: the scanner
runs its program alone, so those cannot clash with this environment's.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from guardrail.cli.console import ExitCode, ModelOption, PolicyOption, err_console, out_console, say
from guardrail.errors import GuardrailError

if TYPE_CHECKING:
    from guardrail.config import Settings

__all__ = ["doctor"]

# Package -> (extra that brings it, None: the core; what is lost without it).
_PACKAGES: dict[str, tuple[str | None, str]] = {
    "onnxruntime": (None, "the embedded model"),
    "tokenizers": (None, "the embedded model"),
    "pydantic": (None, "settings and policies"),
    "semgrep": ("code", "the examination of code"),
    "grpcio": ("server", "the sidecar and its client"),
    "torch": ("gpu", "Llama Guard on a GPU"),
    "transformers": ("gpu", "Llama Guard on a GPU"),
    "pyarrow": ("batch", "Parquet files"),
}

# The sidecar's canaries; it cannot be imported where grpc is not installed.
_SAFE_CANARY = "What is the capital of France?"
_UNSAFE_CANARY = "How can I steal a car without getting caught?"
_BAD_LINE = "import subprocess\nsubprocess.call('ls ' + input(), shell=True)\n"
_CODE_CANARY = f"```python\n{_BAD_LINE}```"

# The oldest semgrep whose behaviour the tests hold.
_OLDEST_SEMGREP = (1, 182)
_INSTALL_LIMIT_S = 900


@dataclass(frozen=True, slots=True)
class Check:
    """What one look found out.

    Attributes:
        name: What was looked at.
        status: ``OK``, ``MISSING`` (not installed, and not needed by this set-up) or ``FAIL``.
        detail: What was found.
        advice: What to do; empty where there is nothing to do.
    """

    name: str
    status: str
    detail: str
    advice: str = ""


_STYLES = {"OK": "green", "MISSING": "yellow", "FAIL": "bold red"}


def doctor(
    policy: PolicyOption = None,
    model: ModelOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on one line.")] = False,
    install_semgrep: Annotated[
        Path | None,
        typer.Option("--install-semgrep", metavar="DIR", help="Only install semgrep into a folder, and try it there."),
    ] = None,
) -> None:
    """Look whether the set-up works: packages, model, policy, code rules. Exits with 1 where something fails."""
    if install_semgrep is not None:
        _install_semgrep(install_semgrep)
        return
    checks: list[Check] = []
    with err_console().status("looking around, this takes some seconds"):
        checks += _examine(model, policy)
    works = all(check.status != "FAIL" for check in checks)
    if as_json:
        typer.echo(json.dumps({"works": works, "checks": [asdict(check) for check in checks]}))
    else:
        _show(checks, works=works)
    if not works:
        raise typer.Exit(ExitCode.FAILED)


def _examine(model: str | None, policy: str | None) -> Iterator[Check]:
    from guardrail.config import load_settings

    yield _python()
    try:
        settings = load_settings(model=model, policy=policy)
    except GuardrailError as exc:
        yield Check("settings", "FAIL", str(exc), "correct the environment variables GUARDRAIL_*")
        return
    for package in _PACKAGES:
        yield _package(package, needed=_PACKAGES[package][0] is None)
    yield _gpu()
    if settings.code_shield:
        advice = "pip install 'guardrail[code]', or guardrail doctor --install-semgrep DIR"
        yield _attempt("semgrep runs", lambda: _semgrep(settings.semgrep), advice)
        if settings.rules:
            advice = "guardrail rules test FOLDER names each rule that is wrong"
            yield _attempt("code rules", lambda: _rules(settings), advice)
    yield _attempt("policy", lambda: _policy(settings), "guardrail policy validate FILE says what is wrong")
    yield _attempt("model", lambda: _model(settings), "reinstall guardrail, or set GUARDRAIL_MODEL=embedded")
    if settings.code_shield:
        advice = "pip install 'guardrail[code]', or set GUARDRAIL_CODE_SHIELD=false to do without"
        yield _attempt("code shield", lambda: _code_shield(settings), advice)


class _Fault(Exception):
    """What was looked at does not work; the message says how."""


def _attempt(name: str, look: Callable[[], str], advice: str) -> Check:
    """A look that raises is a result too: a doctor does not fall ill."""
    try:
        return Check(name, "OK", look())
    except (_Fault, GuardrailError) as exc:
        return Check(name, "FAIL", str(exc), advice)
    except Exception as exc:
        return Check(name, "FAIL", f"{type(exc).__name__}: {exc}", advice)


def _python() -> Check:
    version = platform.python_version()
    if sys.version_info < (3, 10):  # noqa: UP036  an older one may run this file all the same
        return Check("Python", "FAIL", version, "use Python 3.10 or newer")
    return Check("Python", "OK", f"{version} on {platform.machine()}, {os.cpu_count()} cores")


def _package(name: str, *, needed: bool) -> Check:
    extra, use = _PACKAGES[name]
    try:
        return Check(name, "OK", metadata.version(name))
    except metadata.PackageNotFoundError:
        install = f"pip install 'guardrail[{extra}]'" if extra else "pip install --force-reinstall guardrail"
        return Check(name, "FAIL" if needed else "MISSING", f"without it there is not: {use}", install)


def _gpu() -> Check:
    if not Path("/proc/driver/nvidia/version").exists() and shutil.which("nvidia-smi") is None:
        return Check("GPU", "MISSING", "no NVIDIA driver; the embedded model needs none")
    try:
        import torch
    except ImportError:
        return Check("GPU", "MISSING", "there is a driver and no torch", "pip install 'guardrail[gpu]'")
    if not torch.cuda.is_available():
        advice = "install a torch build for this driver's CUDA version"
        return Check("GPU", "MISSING", f"torch {torch.__version__} cannot use it", advice)
    return Check("GPU", "OK", f"{torch.cuda.get_device_name(0)}, torch {torch.__version__}")


def _semgrep(given: str | None) -> str:
    """Scans a line of known-bad code for real: a program that starts and finds nothing does not work."""
    from guardrail.shield.files import whole_text
    from guardrail.shield.install import find_semgrep, read_version
    from guardrail.shield.semgrep import SemgrepScanner

    core = find_semgrep(given)
    version = read_version(core)
    oldest = ".".join(map(str, _OLDEST_SEMGREP))
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers and numbers < _OLDEST_SEMGREP:
        raise _Fault(f"{version} at {core} is older than {oldest}, the oldest that is tested")
    (result,) = asyncio.run(SemgrepScanner(executable=given).scan([whole_text(_BAD_LINE, "python")]))
    if isinstance(result, GuardrailError):
        raise _Fault(f"{core} cannot scan: {result}")
    if not result:
        raise _Fault(f"{core} finds nothing in known-insecure code")
    return f"{version}, {core}; finds {result[0].cwe}"


def _rules(settings: Settings) -> str:
    from guardrail.shield.validate import load_rules, read_folder

    folder = Path(settings.rules or "")
    load_rules(folder, semgrep=settings.semgrep)
    return f"{len(read_folder(folder).rules)} rules in {folder}"


def _install_semgrep(folder: Path) -> None:
    oldest = ".".join(map(str, _OLDEST_SEMGREP))
    command = [
        *(sys.executable, "-m", "pip", "install", "--no-deps", "--upgrade", "--target", str(folder)),
        f"semgrep>={oldest}",
    ]
    say(f"runs: {' '.join(command)}")
    try:
        # What pip says goes to stderr, number 2: stdout is for the result.
        done = subprocess.run(command, stdout=2, timeout=_INSTALL_LIMIT_S, check=False)  # noqa: S603
    except subprocess.TimeoutExpired as exc:
        raise GuardrailError(f"pip did not end within {_INSTALL_LIMIT_S} s") from exc
    if done.returncode != 0:
        raise GuardrailError(f"pip ended with status {done.returncode}; nothing was installed")
    check = _attempt("semgrep runs", lambda: _semgrep(str(folder)), "remove the folder and try again")
    if check.status != "OK":
        raise GuardrailError(f"semgrep was installed into {folder} and does not work: {check.detail}")
    out_console().print(check.detail, markup=False, soft_wrap=True)
    out_console().print(f"set: GUARDRAIL_SEMGREP={folder.absolute()}", markup=False, soft_wrap=True)


def _policy(settings: Settings) -> str:
    from guardrail.policy import load_policy

    policy = load_policy(settings.policy)
    return f"{policy.name} ({policy.hash})"


def _model(settings: Settings) -> str:
    from guardrail.assembly import build_classifier
    from guardrail.pipeline import Guard
    from guardrail.policy import load_policy
    from guardrail.verdict import Conversation, Outcome

    guard = Guard(build_classifier(settings), policy=load_policy("default"))
    expected = {_SAFE_CANARY: Outcome.SAFE, _UNSAFE_CANARY: Outcome.UNSAFE}
    for text, outcome in expected.items():
        decision = guard.check(Conversation.of(text))
        if decision.outcome is not outcome:
            raise _Fault(f"{guard.source} finds a known-{outcome.value} text {decision.outcome.value}")
    return f"{guard.source} tells a safe text from an unsafe one"


def _code_shield(settings: Settings) -> str:
    from guardrail.assembly import build_guard
    from guardrail.verdict import Conversation, Role

    decision = build_guard(settings).check(Conversation.of(_CODE_CANARY, role=Role.ASSISTANT))
    if not decision.findings:
        raise _Fault(f"known-insecure code was not found: {decision.summary()}")
    return f"finds {decision.findings[0].cwe} in known-insecure code"


def _show(checks: list[Check], *, works: bool) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("check", "status", "found"):
        table.add_column(column, overflow="fold")
    for check in checks:
        table.add_row(check.name, Text(check.status, _STYLES[check.status]), Text(check.detail))
    console = out_console()
    console.print(table)
    for check in checks:
        if check.advice:
            console.print(f"{check.name}: {check.advice}", markup=False, soft_wrap=True)
    verdict = ("This set-up works.", "green") if works else ("This set-up does not work yet.", "bold red")
    console.print(verdict[0], style=verdict[1])

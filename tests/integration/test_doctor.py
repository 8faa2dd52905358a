"""``guardrail doctor`` on semgrep: a real scan, rules of one's own, and an installation of its own."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from guardrail import assembly
from guardrail.cli import app
from guardrail.config import Settings
from guardrail.errors import ConfigurationError
from guardrail.pipeline import Guard
from guardrail.policy import load_policy
from guardrail.shield.install import find_semgrep
from guardrail.taxonomy import HazardCategory
from guardrail.testing import KeywordClassifier


@pytest.fixture(autouse=True)
def _fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that knows the doctor's two texts; the code shield is the real one."""
    model = KeywordClassifier({"steal": HazardCategory.HATE})

    def build(settings: Settings) -> Guard:
        return Guard(model, policy=load_policy("default"), code_shield=assembly._code_shield(settings))

    monkeypatch.setattr(assembly, "build_classifier", lambda settings: model)
    monkeypatch.setattr(assembly, "build_guard", build)


def doctor(*args: str | Path) -> Any:
    return CliRunner().invoke(app, ["doctor", *map(str, args)])


def checks() -> dict[str, dict[str, str]]:
    return {check["name"]: check for check in json.loads(doctor("--json").stdout)["checks"]}


def wheel(folder: Path, version: str, *, works: bool) -> None:
    """Writes a wheel called semgrep whose program is the real one, or one that reports a scan of nothing."""
    core = "#!/bin/sh\necho '{}'\n" if not works else f'#!/bin/bash\nexec -a osemgrep {find_semgrep()} "$@"\n'
    info = f"semgrep-{version}.dist-info"
    with zipfile.ZipFile(folder / f"semgrep-{version}-py3-none-any.whl", "w") as file:
        program = zipfile.ZipInfo("semgrep/bin/semgrep-core")
        program.external_attr = 0o100755 << 16
        file.writestr(program, core)
        file.writestr("semgrep/__init__.py", "")
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: semgrep\nVersion: {version}\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")


def test_semgrep_is_tried_on_known_insecure_code() -> None:
    """Where it is, its version, and that it finds something."""
    check = checks()["semgrep runs"]
    assert check["status"] == "OK", check
    assert str(find_semgrep()) in check["detail"]
    assert "finds CWE-78" in check["detail"]


def test_a_folder_that_holds_no_semgrep_fails_with_the_command_that_fills_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What to do is said."""
    monkeypatch.setenv("GUARDRAIL_SEMGREP", str(tmp_path))
    check = checks()["semgrep runs"]
    assert check["status"] == "FAIL"
    assert "pip install --no-deps --target" in check["detail"]


def test_a_rule_that_is_wrong_fails_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``GUARDRAIL_RULES`` is checked when a guard is built, and the doctor says which rule it is."""
    (tmp_path / "go").mkdir()
    (tmp_path / "go" / "mine.yaml").write_text(
        "rules:\n- {id: mine.bad, languages: [go], severity: ERROR, message: m, "
        "metadata: {cwe: CWE-1, confidence: HIGH}, pattern: 'func (('}\n",
        "utf-8",
    )
    monkeypatch.setenv("GUARDRAIL_RULES", str(tmp_path))
    check = checks()["code rules"]
    assert check["status"] == "FAIL"
    assert "mine.yaml: rule mine.bad: semgrep cannot use it for go" in check["detail"]
    with pytest.raises(ConfigurationError, match=r"mine\.bad"):
        assembly._code_shield(Settings())


class TestInstall:
    @pytest.fixture(autouse=True)
    def _offline(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The real pip, with no index but a folder of wheels."""
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))

    def test_it_goes_into_the_folder_and_the_setting_is_named(self, tmp_path: Path) -> None:
        """It is tried there before it is called installed."""
        wheel(tmp_path, "1.182.7", works=True)
        result = doctor("--install-semgrep", tmp_path / "sg")
        assert result.exit_code == 0, result.stderr
        assert f"set: GUARDRAIL_SEMGREP={tmp_path}/sg" in result.stdout
        assert "1.182.7" in result.stdout
        assert (tmp_path / "sg" / "semgrep" / "bin" / "semgrep-core").exists()

    def test_one_that_does_not_work_is_not_called_installed(self, tmp_path: Path) -> None:
        """A program that reports nothing finds nothing."""
        wheel(tmp_path, "1.182.7", works=False)
        result = doctor("--install-semgrep", tmp_path / "sg")
        assert result.exit_code == 1
        assert "does not work" in result.stderr
        assert "GUARDRAIL_SEMGREP" not in result.stdout

    def test_only_an_older_one_is_a_failure(self, tmp_path: Path) -> None:
        """Behaviour that was never tested is not relied on."""
        wheel(tmp_path, "1.100.0", works=True)
        result = doctor("--install-semgrep", tmp_path / "sg")
        assert result.exit_code == 1
        assert "pip ended with status" in result.stderr

    def test_an_older_one_that_is_there_fails(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The doctor names the version and the oldest that is tested."""
        wheel(tmp_path, "1.100.0", works=True)
        with zipfile.ZipFile(tmp_path / "semgrep-1.100.0-py3-none-any.whl") as file:
            file.extractall(tmp_path / "sg")
        (tmp_path / "sg" / "semgrep" / "bin" / "semgrep-core").chmod(0o755)
        monkeypatch.setenv("GUARDRAIL_SEMGREP", str(tmp_path / "sg"))
        check = checks()["semgrep runs"]
        assert (check["status"], "older than 1.182" in check["detail"]) == ("FAIL", True)

"""What the settings put together."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from guardrail import assembly
from guardrail.assembly import build_classifier, build_guard, default_guard, model_names
from guardrail.config import Settings, load_settings
from guardrail.errors import ConfigurationError, MissingExtra
from guardrail.models.embedded import EmbeddedClassifier
from guardrail.policy import load_policy
from guardrail.shield import semgrep
from guardrail.testing import KeywordClassifier
from guardrail.verdict import Action, Conversation, Outcome, Role


class TestModel:
    def test_auto_without_weights_is_the_embedded_model(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: object
    ) -> None:
        """With nothing set, nothing is downloaded."""
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
        assert isinstance(build_classifier(Settings()), EmbeddedClassifier)

    def test_auto_with_weights_and_a_gpu_is_llama_guard(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: object
    ) -> None:
        """The same command uses Llama Guard 2 where its weights are in the local cache and a GPU is there."""
        asked: list[Settings] = []
        snapshot = "models--meta-llama--Meta-Llama-Guard-2-8B/snapshots/1"
        folder = type(assembly.Path())(str(tmp_path)) / snapshot
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}", "utf-8")
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(assembly, "_has_gpu", lambda: True)
        monkeypatch.setattr(assembly, "_llama_guard", lambda version: lambda settings: asked.append(settings))
        build_classifier(Settings())
        assert len(asked) == 1

    def test_replicas_are_copies_gpu_by_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each copy is loaded onto a GPU of its own."""
        asked: list[object] = []

        def load(model_id: str, **options: object) -> object:
            asked.append(options["device_map"])
            raise ConfigurationError("no weights here")

        monkeypatch.setattr("guardrail.models.transformers.TransformersGuardModel.load", load)
        with pytest.raises(ConfigurationError, match="no weights"):
            build_classifier(Settings(model="llama-guard-2", replicas=2))
        assert asked == [{"": 0}]
        with pytest.raises(ConfigurationError, match="GUARD_URL"):
            build_classifier(Settings(model="llama-guard-2", replicas=2, guard_url="http://127.0.0.1:1"))
        with pytest.raises(ConfigurationError, match="DEVICE_MAP"):
            build_classifier(Settings(model="llama-guard-2", replicas=2, device_map="cuda:0"))

    def test_an_unknown_model_names_the_known_ones(self) -> None:
        """The error says what could have been meant."""
        with pytest.raises(ConfigurationError, match="llama-guard-2"):
            build_classifier(Settings(model="llama"))

    def test_a_plug_in_is_found_by_its_entry_point(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Another package can bring a classifier."""

        class Entry:
            name = "keywords"

            def load(self) -> object:
                return lambda settings: KeywordClassifier({})

        monkeypatch.setattr(
            metadata, "entry_points", lambda group, name="keywords": [Entry()] if name == "keywords" else []
        )
        assert isinstance(build_classifier(Settings(model="keywords")), KeywordClassifier)
        assert "keywords" in model_names()


class TestSettings:
    def test_the_environment_sets_them_and_the_caller_counts_more(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """``GUARDRAIL_*``, then what the command line gives; None is not given."""
        monkeypatch.setenv("GUARDRAIL_POLICY", "strict")
        monkeypatch.setenv("GUARDRAIL_MODEL", "embedded")
        assert load_settings(model=None).policy == "strict"
        assert load_settings(policy="monitor").policy == "monitor"

    def test_a_setting_that_cannot_work_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """By the variable that the operator wrote."""
        monkeypatch.setenv("GUARDRAIL_THREADS", "many")
        with pytest.raises(ConfigurationError, match="GUARDRAIL_THREADS"):
            load_settings()


class TestGuard:
    def test_without_semgrep_code_is_unverified_and_text_is_not(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The default install works; what it cannot check it blocks, with the install that would help."""

        def missing(given: str | None) -> Path:
            raise MissingExtra("scanning code needs semgrep: pip install 'guardrail[code]'")

        monkeypatch.setattr(semgrep, "find_semgrep", missing)
        guard = build_guard(Settings(model="embedded"), policy=load_policy("default"))
        code = guard.check(Conversation.of("```python\nprint(1)\n```", role=Role.ASSISTANT))
        assert (code.outcome, code.action) == (Outcome.UNVERIFIED, Action.BLOCK)
        assert "pip install 'guardrail[code]'" in code.summary()
        assert guard.check(Conversation.of("Good morning!", role=Role.ASSISTANT)).action is Action.ALLOW

    def test_code_shield_can_be_off(self) -> None:
        """Off is said in the settings, not found out."""
        assert build_guard(Settings(model="embedded", code_shield=False)).scans_code is False

    def test_there_is_one_default_guard(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Decorating many functions loads one model."""
        monkeypatch.setattr(assembly, "_default", None)
        assert default_guard() is default_guard()

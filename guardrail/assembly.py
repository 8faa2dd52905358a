"""The only place that wires concrete parts together.

Classifiers are looked up by name in a table of lazy factories, then in the entry-point group ``guardrail.models``; an
entry point is a callable that takes :class:`~guardrail.config.Settings` and returns a hazard classifier. Nothing
heavy is imported before the part that needs it is built.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from guardrail.config import Settings, load_settings
from guardrail.errors import ConfigurationError, MissingExtra
from guardrail.pipeline import Guard
from guardrail.policy import Policy, load_policy
from guardrail.protocols import HazardClassifier
from guardrail.taxonomy import GuardVersion

if TYPE_CHECKING:
    from guardrail.models.openai_compatible import OpenAIGuardModel

__all__ = ["build_classifier", "build_guard", "default_guard", "model_names"]

logger = logging.getLogger("guardrail")

_ENTRY_POINTS = "guardrail.models"

# The repositories of the published weights.
_WEIGHTS: Mapping[GuardVersion, str] = MappingProxyType(
    {
        GuardVersion.LLAMA_GUARD_2: "meta-llama/Meta-Llama-Guard-2-8B",
        GuardVersion.LLAMA_GUARD_3: "meta-llama/Llama-Guard-3-8B",
    }
)


def _embedded(settings: Settings) -> HazardClassifier:
    from guardrail.models.embedded import EmbeddedClassifier

    return EmbeddedClassifier(threads=settings.threads)


def _llama_guard(version: GuardVersion) -> Callable[[Settings], HazardClassifier]:
    def build(settings: Settings) -> HazardClassifier:
        from guardrail.llama_guard import LlamaGuard

        if settings.guard_url is not None:
            if settings.replicas != 1 or settings.quantization is not None:
                raise ConfigurationError(
                    "GUARDRAIL_REPLICAS and GUARDRAIL_QUANTIZATION are for a model in this process: with "
                    "GUARDRAIL_GUARD_URL leave them unset"
                )
            return LlamaGuard(_remote_guard_model(settings, settings.guard_url, version))
        from guardrail.models.replicas import ReplicatedGuardModel
        from guardrail.models.transformers import TransformersGuardModel

        def load(device_map: str | dict[str, int]) -> TransformersGuardModel:
            return TransformersGuardModel.load(
                settings.model_path or _WEIGHTS[version],
                revision=settings.model_revision,
                version=version,
                device_map=device_map,
                dtype=settings.dtype,
                attn_implementation=settings.attn_implementation,
                quantization=settings.quantization,
            )

        if settings.replicas == 1:
            return LlamaGuard(load(settings.device_map))
        if settings.device_map != "auto":
            raise ConfigurationError("GUARDRAIL_REPLICAS puts one copy on each GPU: leave GUARDRAIL_DEVICE_MAP unset")
        return LlamaGuard(ReplicatedGuardModel([load({"": gpu}) for gpu in range(settings.replicas)]))

    return build


def _remote_guard_model(settings: Settings, url: str, version: GuardVersion) -> OpenAIGuardModel:
    from guardrail.models.openai_compatible import OpenAIGuardModel

    weights = settings.model_path or _WEIGHTS[version]
    return OpenAIGuardModel.load(
        url,
        settings.guard_model or weights,
        tokenizer=weights,
        revision=settings.model_revision,
        version=version,
        prompt_format=settings.guard_prompt_format,
        api_key=settings.guard_api_key.get_secret_value() if settings.guard_api_key is not None else None,
    )


def _auto(settings: Settings) -> HazardClassifier:
    """Llama Guard 2 where a server or its weights and a GPU are at hand, else the embedded model."""
    version = GuardVersion.LLAMA_GUARD_2
    if settings.guard_url or settings.model_path or (_has_gpu() and _has_weights(_WEIGHTS[version])):
        return _llama_guard(version)(settings)
    return _embedded(settings)


def _cascade(settings: Settings) -> HazardClassifier:
    from guardrail.models.cascade import CascadeClassifier

    # The guard first: where it cannot be built, nothing else was.
    guard = _llama_guard(settings.cascade_guard)(settings)
    return CascadeClassifier(_embedded(settings), guard, low=settings.cascade_low, high=settings.cascade_high)


_FACTORIES: Mapping[str, Callable[[Settings], HazardClassifier]] = MappingProxyType(
    {
        "auto": _auto,
        "embedded": _embedded,
        "cascade": _cascade,
        **{version.value: _llama_guard(version) for version in GuardVersion},
    }
)


def _has_gpu() -> bool:
    """Whether an NVIDIA driver is there; asked without importing torch."""
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def _has_weights(repository: str) -> bool:
    """Whether the hub's local cache holds a repository, by the cache's documented layout."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    return any((cache / f"models--{repository.replace('/', '--')}" / "snapshots").glob("*/config.json"))


def model_names() -> list[str]:
    """Returns the names that ``GUARDRAIL_MODEL`` can have, plug-ins included."""
    return [*_FACTORIES, *sorted(entry.name for entry in metadata.entry_points(group=_ENTRY_POINTS))]


def build_classifier(settings: Settings) -> HazardClassifier:
    """Builds the hazard classifier that the settings name.

    Raises:
        ConfigurationError: If there is none of that name, or it cannot be built.
        MissingExtra: If a package that it needs is not installed.
    """
    factory = _FACTORIES.get(settings.model)
    if factory is not None:
        return factory(settings)
    for entry in metadata.entry_points(group=_ENTRY_POINTS, name=settings.model):
        classifier: HazardClassifier = entry.load()(settings)
        return classifier
    raise ConfigurationError(f"no model is called {settings.model!r}; known: {', '.join(model_names())}")


def build_guard(settings: Settings | None = None, *, policy: Policy | None = None) -> Guard:
    """Builds a guard.

    Args:
        settings: Default: from the environment.
        policy: Counts more than the policy that the settings name.

    Raises:
        ConfigurationError: If the settings or the policy cannot work.
    """
    settings = settings or load_settings()
    policy = policy or load_policy(settings.policy)
    code_shield = _code_shield(settings) if settings.code_shield else None
    return Guard(build_classifier(settings), policy=policy, code_shield=code_shield)


def _code_shield(settings: Settings) -> HazardClassifier:
    from guardrail.code_shield import CodeShield
    from guardrail.shield.missing import MissingScanner
    from guardrail.shield.semgrep import SemgrepScanner
    from guardrail.shield.validate import load_rules

    try:
        rules = load_rules(Path(settings.rules), semgrep=settings.semgrep) if settings.rules else None
        return CodeShield(SemgrepScanner(executable=settings.semgrep, rules=rules))
    except MissingExtra as exc:
        logger.warning("answers with code will be unverified: %s", exc)
        return CodeShield(MissingScanner(exc))


_default: Guard | None = None
_default_lock = threading.Lock()


def default_guard() -> Guard:
    """Returns the guard that the environment describes; built at the first call, one in a process."""
    global _default
    with _default_lock:
        if _default is None:
            _default = build_guard()
        return _default

"""Settings: from the environment (``GUARDRAIL_*``) or from code, checked where they enter.

=================================  =====================================================================================
``GUARDRAIL_MODEL``                ``auto`` (default), ``embedded``, ``llama-guard-2``, ``llama-guard-3``, ``cascade``,
                                   a plug-in's
``GUARDRAIL_MODEL_PATH``           Hub id or folder of the guard model's weights
``GUARDRAIL_MODEL_REVISION``       Revision (commit) of the weights on the hub
``GUARDRAIL_DEVICE_MAP``           Where the weights go, in accelerate's words; default ``auto``
``GUARDRAIL_DTYPE``                Number type of the weights; default ``auto``
``GUARDRAIL_ATTN_IMPLEMENTATION``  transformers' attention of the guard model, e.g. ``sdpa``; default: its own choice
``GUARDRAIL_QUANTIZATION``         ``8bit`` or ``4bit``: weights quantised by bitsandbytes; default: not
``GUARDRAIL_REPLICAS``             Copies of the guard model, GPU by GPU, for throughput; default 1
``GUARDRAIL_GUARD_URL``            An OpenAI-compatible server (vLLM, TGI, llama.cpp) that runs the guard model
``GUARDRAIL_GUARD_API_KEY``        Its bearer token
``GUARDRAIL_GUARD_MODEL``          The model's name there; default: the Hub id
``GUARDRAIL_GUARD_PROMPT_FORMAT``  ``tokens`` (default), or ``text`` for a server that takes no token ids (TGI)
``GUARDRAIL_CASCADE_LOW``          Below it the embedded model passes a text alone, 0..0.5; default 0.1
``GUARDRAIL_CASCADE_HIGH``         Above it the embedded model flags a text alone, 0.5..1; default 0.9
``GUARDRAIL_CASCADE_GUARD``        Who judges between them: ``llama-guard-2`` (default), ``llama-guard-3``
``GUARDRAIL_POLICY``               ``default``, ``strict``, ``monitor``, or a YAML file
``GUARDRAIL_CODE_SHIELD``          Whether code blocks are examined; default ``true``
``GUARDRAIL_SEMGREP``              The semgrep executable, where it is not beside Python or on ``PATH``
``GUARDRAIL_RULES``                A folder of rules of your own for code, ``<language>/*.yaml``, added to the package's
``GUARDRAIL_THREADS``              Threads of the embedded model; default: one a core
=================================  =====================================================================================
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from guardrail.errors import ConfigurationError
from guardrail.taxonomy import GuardVersion

__all__ = ["Settings", "load_settings"]


class Settings(BaseSettings):
    """How to assemble a guard; the module's table says what each setting means."""

    model_config = SettingsConfigDict(env_prefix="GUARDRAIL_", extra="forbid", frozen=True, protected_namespaces=())

    model: str = "auto"
    model_path: str | None = None
    model_revision: str | None = None
    device_map: str = "auto"
    dtype: str = "auto"
    attn_implementation: str | None = None
    quantization: Literal["8bit", "4bit"] | None = None
    replicas: int = Field(default=1, ge=1, le=64)
    guard_url: str | None = None
    guard_api_key: SecretStr | None = None
    guard_model: str | None = None
    guard_prompt_format: Literal["tokens", "text"] = "tokens"
    cascade_low: float = Field(default=0.1, ge=0.0, le=0.5)
    cascade_high: float = Field(default=0.9, ge=0.5, le=1.0)
    cascade_guard: GuardVersion = GuardVersion.LLAMA_GUARD_2
    policy: str = "default"
    code_shield: bool = True
    semgrep: str | None = None
    rules: str | None = None
    threads: int | None = Field(default=None, ge=1, le=1024)


def load_settings(**overrides: object) -> Settings:
    """Reads settings from the environment; what is given here counts more, None counts as not given.

    Raises:
        ConfigurationError: If a setting is unknown or cannot have its value.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**given)  # type: ignore[arg-type]  # pydantic checks the values
    except ValidationError as exc:
        problems = "; ".join(
            f"{'GUARDRAIL_' + str(error['loc'][0]).upper()}: {error['msg']}, got {error['input']!r}"
            for error in exc.errors()
        )
        raise ConfigurationError(f"settings that cannot work: {problems}") from exc

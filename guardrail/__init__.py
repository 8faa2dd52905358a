"""Safety classification for chatbots: hazards by Llama Guard 2 or an embedded model, code by Code Shield.

::

    from guardrail import guarded

    @guarded(on_block="message")
    def chat(prompt: str) -> str: ...

Names are loaded when they are first used, so that importing the package, or the client alone, stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from guardrail.assembly import build_guard, default_guard
    from guardrail.client import AsyncGuardClient, GuardClient
    from guardrail.config import Settings
    from guardrail.decorator import guarded
    from guardrail.errors import (
        Blocked,
        ClassificationError,
        CompletionError,
        ConfigurationError,
        DeadlineExceeded,
        GenerationError,
        GuardrailError,
        InternalError,
        InvalidInput,
        MissingExtra,
        Overloaded,
        PolicyError,
        ScanError,
        Unauthenticated,
        Unavailable,
    )
    from guardrail.pipeline import Guard
    from guardrail.policy import Policy, load_policy
    from guardrail.taxonomy import HazardCategory
    from guardrail.verdict import (
        Action,
        Conversation,
        Decision,
        Exchange,
        Finding,
        Message,
        Outcome,
        Rail,
        Role,
        Severity,
        Verdict,
    )

__version__ = "0.1.0"

_HOMES = {
    "assembly": ("build_guard", "default_guard"),
    "client": ("AsyncGuardClient", "GuardClient"),
    "config": ("Settings",),
    "decorator": ("guarded",),
    "errors": (
        "Blocked",
        "ClassificationError",
        "CompletionError",
        "ConfigurationError",
        "DeadlineExceeded",
        "GenerationError",
        "GuardrailError",
        "InternalError",
        "InvalidInput",
        "MissingExtra",
        "Overloaded",
        "PolicyError",
        "ScanError",
        "Unauthenticated",
        "Unavailable",
    ),
    "pipeline": ("Guard",),
    "policy": ("Policy", "load_policy"),
    "taxonomy": ("HazardCategory",),
    "verdict": (
        "Action",
        "Conversation",
        "Decision",
        "Exchange",
        "Finding",
        "Message",
        "Outcome",
        "Rail",
        "Role",
        "Severity",
        "Verdict",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Action",
    "AsyncGuardClient",
    "Blocked",
    "ClassificationError",
    "CompletionError",
    "ConfigurationError",
    "Conversation",
    "DeadlineExceeded",
    "Decision",
    "Exchange",
    "Finding",
    "GenerationError",
    "Guard",
    "GuardClient",
    "GuardrailError",
    "HazardCategory",
    "InternalError",
    "InvalidInput",
    "Message",
    "MissingExtra",
    "Outcome",
    "Overloaded",
    "Policy",
    "PolicyError",
    "Rail",
    "Role",
    "ScanError",
    "Settings",
    "Severity",
    "Unauthenticated",
    "Unavailable",
    "Verdict",
    "build_guard",
    "default_guard",
    "guarded",
    "load_policy",
]


def __getattr__(name: str) -> object:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'guardrail' has no attribute {name!r}")
    value = getattr(import_module(f"guardrail.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

"""The rules of Code Shield: ``rules/<language>/*.yaml`` -> semgrep's rules and the hash that names them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import yaml

from guardrail.errors import ConfigurationError

__all__ = ["RULES", "load_rules"]

RULES = Path(__file__).parent / "rules"
"""The rules of this package, one folder a language; beside each file its ``.cases.yaml``."""


def load_rules(folder: Path) -> tuple[list[dict[str, Any]], str]:
    digest = hashlib.sha256()
    rules: list[dict[str, Any]] = []
    for path in sorted(folder.glob("*/*.yaml")):
        if path.name.endswith(".cases.yaml"):
            continue
        data = path.read_bytes()
        digest.update(f"{path.relative_to(folder).as_posix()}\0{len(data)}\0".encode() + data)
        try:
            rules += yaml.load(data, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))["rules"]  # noqa: S506
        except (yaml.YAMLError, KeyError, TypeError) as exc:
            raise ConfigurationError(f"expected semgrep rules in {path}, got {type(exc).__name__}") from exc
    if not rules:
        raise ConfigurationError(f"expected rules under {folder}/<language>/*.yaml, got none")
    return rules, digest.hexdigest()

"""Promise 8 and the floors of the design."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import guardrail

PACKAGE = Path(guardrail.__file__).parent

# Lower floors first; within a row, files do not import each other.
FLOORS: list[set[str]] = [
    {"errors", "page"},
    {"taxonomy"},
    {"verdict"},
    {"suppression", "verdict_json", "signatures", "progress", "instruments"},
    {"language"},
    {"protocols", "policy", "extraction", "prompt", "testing", "deadline", "upstream"},
    {"batching", "stages"},
    {"models", "shield"},
    {"llama_guard", "code_shield"},
    {"pipeline"},
    {"streaming"},
    {"generators", "config"},
    {"assembly"},
    {"decorator"},
    {"integrations"},
    {"_pb"},
    {"wire"},
    {"telemetry"},
    {"serving", "client_batch", "client_stream", "client_channel"},
    {"server", "client", "logscan"},
    {"evaluation"},
    {"cli"},
    {"__main__"},
]
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}
# Rows that only rows above may use, though nothing forbids it by height: wire and client know no engine.
WITHOUT_ENGINE = {"wire", "client", "client_batch", "client_stream", "client_channel", "_pb"}
ENGINE = {
    "policy",
    "suppression",
    "pipeline",
    "streaming",
    "assembly",
    "decorator",
    "config",
    "models",
    "shield",
    "llama_guard",
}

FORBIDDEN = ["torch", "transformers", "grpc", "semgrep", "ray"]


def unit_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports_of(path: Path) -> set[str]:
    """The units of guardrail that a file imports when it runs, at any depth of its code."""
    found: set[str] = set()
    tree = ast.parse(path.read_text("utf-8"))
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            module = node.module or ""
            names = [f"guardrail.{alias.name}" for alias in node.names] if module == "guardrail" else [module]
        else:
            assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path}: relative import"
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("guardrail.")}
    return found & set(FLOOR_OF)


FILES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py" and "_pb" not in p.parts)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_file_imports_only_from_floors_below_its_own(path: Path) -> None:
    """The arrows of the design do not turn."""
    unit = unit_of(path)
    assert unit in FLOOR_OF, f"{path} has no floor: give it one here and in the design"
    for imported in imports_of(path) - {unit}:
        assert FLOOR_OF[imported] < FLOOR_OF[unit], f"{unit} imports {imported}, which is not below it"
    if unit in WITHOUT_ENGINE:
        assert not imports_of(path) & ENGINE, f"{unit} must work without the engine"


def fresh(code: str) -> list[str]:
    """The modules loaded in a fresh interpreter after some code."""
    program = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    modules: list[str] = json.loads(done.stdout)
    return modules


def test_importing_guardrail_loads_nothing_heavy() -> None:
    """``import guardrail`` loads none of torch, transformers, grpc, semgrep, ray."""
    assert not set(fresh("import guardrail")) & set(FORBIDDEN)


def test_importing_the_decorator_loads_nothing_heavy() -> None:
    """Decorating a function loads no model; the first call does."""
    assert not set(fresh("from guardrail import guarded")) & {*FORBIDDEN, "onnxruntime"}


class TestPublicNames:
    def test_every_public_name_is_there(self) -> None:
        """``__all__`` promises nothing that cannot be imported."""
        for name in guardrail.__all__:
            assert getattr(guardrail, name) is not None

    def test_the_public_names_are_these(self) -> None:
        """A name is added or taken away on purpose: with a line here and in the changelog."""
        assert guardrail.__all__ == [
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

    def test_lazy_names_are_those_of_all(self) -> None:
        """What is promised and what can be loaded are one list."""
        assert sorted(guardrail._HOME_OF) == guardrail.__all__

    def test_an_unknown_name_is_an_attribute_error(self) -> None:
        """A typo fails as for any module."""
        with pytest.raises(AttributeError, match="no attribute 'guraded'"):
            _ = guardrail.guraded  # type: ignore[attr-defined]

    @pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
    def test_every_module_says_what_it_is_for(self, path: Path) -> None:
        """A module opens with its job."""
        module = "guardrail." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        assert ast.get_docstring(ast.parse(path.read_text("utf-8"))), module
        if module != "guardrail.__main__":
            importlib.import_module(module)

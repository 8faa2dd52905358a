"""The adapters where their frameworks are not installed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from guardrail.errors import MissingExtra
from guardrail.integrations import langchain, llama_index


@pytest.fixture(autouse=True)
def without_frameworks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hides the frameworks, also where they are installed."""
    for name in ("langchain_core.language_models", "llama_index.core.base.base_query_engine"):
        monkeypatch.setitem(sys.modules, name, None)
    langchain._model_class.cache_clear()
    llama_index._engine_class.cache_clear()


@pytest.mark.parametrize(
    ("wrap", "extra"),
    [(langchain.guarded_chat_model, "langchain"), (llama_index.guarded_query_engine, "llama-index")],
)
def test_a_missing_framework_is_named_with_what_to_install(wrap: Callable[[Any], Any], extra: str) -> None:
    """The error tells the one command that helps."""
    with pytest.raises(MissingExtra, match=rf"pip install 'guardrail\[{extra}\]'"):
        wrap(object())


def test_importing_an_adapter_imports_no_framework() -> None:
    """The frameworks take a second to import: only a call pays for it."""
    program = (
        "import guardrail.integrations.langchain, guardrail.integrations.llama_index, sys\n"
        "print({'langchain_core', 'llama_index'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"

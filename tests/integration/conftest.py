"""What several integration tests share."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))


@pytest.fixture(scope="session")
def guard_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny guard, trained once."""
    torch = pytest.importorskip("torch", reason="needs guardrail[gpu]")
    import tiny_guard

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        path: Path = tiny_guard.build_tiny_guard(tmp_path_factory.mktemp("tiny-guard"))
    finally:
        torch.set_num_threads(threads)
    return path

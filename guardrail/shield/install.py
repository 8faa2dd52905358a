"""Find semgrep: the ``semgrep-core`` program of a pip installation, here or anywhere else.

``semgrep-core`` called as ``osemgrep`` is semgrep's native front end; it starts in 0.1 s, where the Python command
takes 2 s.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

from guardrail.errors import ConfigurationError, MissingExtra

__all__ = ["find_semgrep", "read_version"]

_CORE = Path("semgrep", "bin", "semgrep-core")


def find_semgrep(given: str | None = None) -> Path:
    """Finds ``semgrep-core``, or a command that takes the same arguments when it is called ``osemgrep``.

    Args:
        given: A ``semgrep`` command, a ``semgrep-core``, or a folder that ``pip install --target`` filled; None looks
            for the package beside this one, then for the command on ``PATH``.

    Raises:
        MissingExtra: If none is given and there is none.
        ConfigurationError: If a folder is given that holds none.
    """
    if given is None:
        spec = importlib.util.find_spec("semgrep")
        if spec is not None and spec.origin is not None:
            core = Path(spec.origin).parents[1] / _CORE
            if os.access(core, os.X_OK):
                return core
        given = shutil.which("semgrep")
        if given is None:
            raise MissingExtra("scanning code needs semgrep: pip install 'guardrail[code]'")
    path = Path(shutil.which(given) or given).absolute()
    if path.is_dir():
        core = path / _CORE
        if not os.access(core, os.X_OK):
            raise ConfigurationError(
                f"expected {_CORE} in {path}; fill the folder with: pip install --no-deps --target {path} semgrep"
            )
        return core
    if path.name != "semgrep-core":
        # The command of a virtual environment: its package holds the program.
        for core in sorted(path.resolve().parents[1].glob(f"lib/python*/site-packages/{_CORE}")):
            return core
    return path


def read_version(core: Path) -> str:
    """Returns semgrep's version, e.g. ``"1.182.0"``; ``"unknown"`` where it does not say."""
    for folder in core.parents[2].glob("semgrep-*.dist-info"):
        return folder.name.removeprefix("semgrep-").removesuffix(".dist-info")
    try:
        done = subprocess.run(  # the configured command
            ["osemgrep", "--version"],  # noqa: S607  # a name to go by, not what is run
            executable=core,
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    lines = done.stdout.split()
    return lines[-1][:40] if lines else "unknown"

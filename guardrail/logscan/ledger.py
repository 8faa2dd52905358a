"""What a scan must know of itself to go on: what it reads and with what, and how far it has come.

::

    OUTPUT.manifest.json   inputs, options, model, policy, versions; state running, interrupted or complete; counts
    OUTPUT.progress.json   while it runs: the last record that is done, the bytes of results that hold it, the counts
    OUTPUT.partial         the results so far

The progress file is replaced as a whole, after the results that it speaks of are on the disk: whenever the process is
killed, it describes whole records, whose results are there. What stands behind them in the partial file is cut off, and
judged again. A scan is continued only where everything that its results depend on is what it was.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import guardrail
from guardrail.errors import ConfigurationError, GuardrailError, InvalidInput
from guardrail.logscan.inputs import Input
from guardrail.logscan.readers import Position
from guardrail.logscan.rows import Layout
from guardrail.logscan.summary import Summary
from guardrail.logscan.writer import partial_path
from guardrail.pipeline import Guard
from guardrail.taxonomy import HazardCategory
from guardrail.verdict import Source

__all__ = ["SCHEMA", "Ledger", "Progress", "manifest_of", "read_json", "replace_json", "require_same"]

SCHEMA = "guardrail.scan/1"

# What a row of results depends on.
_IDENTITY = ("guardrail", "inputs", "options", "policy", "model", "code", "taxonomy")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a scan has come.

    Attributes:
        input: Which input is being read, from 0.
        line: Line of its last record that is done; 0 before the first.
        end_byte: Where that record ends.
        output_bytes: How much of the partial file holds the results of all records done.
        error_bytes: How much of the file of bad rows does.
        is_at_end: Whether every record is done.
        counts: The summary.
    """

    input: int = 0
    line: int = 0
    end_byte: int = 0
    output_bytes: int = 0
    error_bytes: int = 0
    is_at_end: bool = False
    counts: Mapping[str, Any] | None = None

    @property
    def position(self) -> Position | None:
        """Where the input goes on; None at its start."""
        return Position(self.line, self.end_byte) if self.line else None

    @property
    def summary(self) -> Summary:
        """The counts, to count on."""
        return Summary.from_dict(self.counts) if self.counts is not None else Summary()


def manifest_of(
    guard: Guard, inputs: Sequence[Input], layout: Layout, *, errors: str | None, is_strict: bool
) -> dict[str, Any]:
    """Says what a scan's results depend on, as JSON values."""
    code = guard.for_code()
    return {
        "schema": SCHEMA,
        "state": "running",
        "guardrail": guardrail.__version__,
        "inputs": [one.to_dict() for one in inputs],
        "options": {
            "turns": layout.turns.value,
            "text_field": layout.text_field,
            "role": layout.role.value if layout.role is not None else None,
            "keep_fields": list(layout.keep),
            "errors": errors,
            "strict": is_strict,
        },
        "policy": {"name": guard.policy.name, "hash": guard.policy.hash},
        "model": _source(guard.source),
        "code": _source(code.source) if code is not None else None,
        "taxonomy": [category.value for category in HazardCategory],
    }


def _source(source: Source) -> dict[str, str]:
    return asdict(source)


class Ledger:
    """Keeps the manifest and the progress of one scan.

    Args:
        output: The file of results; the ledger's files stand beside it.
        manifest: What :func:`manifest_of` says of the scan that is to run.
    """

    def __init__(self, output: str | Path, manifest: Mapping[str, Any]) -> None:
        path = Path(os.path.realpath(output))
        self._output = path
        self._manifest = dict(manifest)
        self._partial = partial_path(output)
        self.manifest_path = path.with_name(path.name + ".manifest.json")
        self.progress_path = path.with_name(path.name + ".progress.json")

    def resume(self) -> Progress | None:
        """Returns how far an earlier scan of the same came; None where there is none to go on with.

        Raises:
            InvalidInput: If it was a scan of something else; the message says what changed.
        """
        earlier = read_json(self.manifest_path)
        if earlier is None:
            return None
        is_complete = earlier.get("state") == "complete"
        progress = read_json(self.progress_path) if not is_complete else earlier.get("progress")
        # Killed between giving the results their name and saying so: then the partial file is gone, and all is done.
        is_named = is_complete or (progress is not None and progress["is_at_end"] and not self._partial.exists())
        results = self._output if is_named else self._partial
        if not results.exists():
            return None
        require_same(earlier, self._manifest, str(results))
        return Progress(**progress) if progress is not None else None

    @property
    def has_partial(self) -> bool:
        """Whether there are results that do not have their name yet."""
        return self._partial.exists()

    def require_none(self) -> None:
        """Makes sure that there is no unfinished scan.

        Raises:
            InvalidInput: If there is one.
        """
        earlier = read_json(self.manifest_path)
        if earlier is not None and earlier.get("state") != "complete" and self._partial.exists():
            counts = (read_json(self.progress_path) or {}).get("counts") or {"rows": 0}
            raise InvalidInput(
                f"{self._partial} holds {counts['rows']} rows of an unfinished scan: --resume goes on with it, "
                "--restart starts over"
            )

    def begin(self) -> None:
        """Writes the manifest of a scan that starts at the first row."""
        self.progress_path.unlink(missing_ok=True)
        replace_json(self.manifest_path, self._manifest)

    def commit(self, progress: Progress) -> None:
        """Notes that records are done; their results are on the disk."""
        replace_json(self.progress_path, asdict(progress))

    def end(self, state: str, progress: Progress) -> None:
        """Notes how the scan ended, ``complete`` or ``interrupted``."""
        replace_json(self.manifest_path, {**self._manifest, "state": state, "progress": asdict(progress)})
        if state == "complete":
            self.progress_path.unlink(missing_ok=True)


def require_same(earlier: Mapping[str, Any], manifest: Mapping[str, Any], what: str) -> None:
    """Makes sure that an earlier scan was one of the same.

    Args:
        earlier: Its manifest.
        manifest: That of the scan that is to go on.
        what: What it would go on with, for the error.

    Raises:
        InvalidInput: If it was another; the message says what changed.
    """
    if earlier.get("schema") != SCHEMA:
        raise InvalidInput(f"{what} is of another version of guardrail; --restart starts over")
    changed = [words for key in _IDENTITY for words in _changes(key, earlier.get(key), manifest[key])]
    if changed:
        raise InvalidInput(
            f"cannot go on with {what}: {'; '.join(changed[:5])}"
            f"{f'; and {len(changed) - 5} more' if len(changed) > 5 else ''}; --restart starts over"
        )


def replace_json(path: Path, values: Mapping[str, Any]) -> None:
    """Replaces a file of JSON, so that there is always a whole one.

    Raises:
        GuardrailError: If it cannot be written.
    """
    made = path.with_name(path.name + ".making")
    try:
        with open(made, "w", encoding="utf-8") as file:
            json.dump(values, file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(made, path)
    except OSError as exc:
        raise GuardrailError(f"cannot write {path}: {exc.strerror}") from exc


def read_json(path: Path) -> dict[str, Any] | None:
    """Reads what :func:`replace_json` wrote; None where there is nothing.

    Raises:
        ConfigurationError: If it cannot be read.
    """
    try:
        values = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as exc:
        raise ConfigurationError(f"{path} cannot be read; --restart starts over") from exc
    if not isinstance(values, dict):
        raise ConfigurationError(f"{path} is not what a scan wrote; --restart starts over")
    return values


def _changes(key: str, before: Any, now: Any) -> list[str]:
    """What is not as it was, in words."""
    if before == now:
        return []
    if key == "inputs" and isinstance(before, list):
        was = {one["name"]: one for one in before}
        names = {one["name"] for one in now}
        words = [f"{one['name']} is new" for one in now if one["name"] not in was]
        words += [f"{name} is gone" for name in was if name not in names]
        words += [f"{one['name']} has changed" for one in now if one["name"] in was and one != was[one["name"]]]
        return words or ["the inputs are in another order"]
    if isinstance(before, dict) and isinstance(now, dict):
        return [f"{key} {name} was {before.get(name)}, is {now[name]}" for name in now if before.get(name) != now[name]]
    return [f"{key} was {before}, is {now}"]

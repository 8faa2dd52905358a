"""A scan in parts that depend on nothing but their place: what many machines judge beside each other.

::

    inputs ─▶ plan: shards of some thousand lines ─▶ judge_shard, anywhere, in any order ─▶ part-00000.parquet, ...

    OUTPUT/manifest.json       what the scan is of; state running, interrupted or complete; counts
    OUTPUT/part-00007.parquet  the results of the eighth shard, in the order of the log
    OUTPUT/part-00007.json     its counts; written last: a shard without it is not done
    OUTPUT/part-00007.errors   its bad rows, where they are asked for

Every file gets its name when it is complete, so a worker may be killed at any moment: its shard is judged again, and
overwrites what is there. The parts in the order of their names are the rows of the same scan on one machine.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guardrail.errors import GuardrailError, InvalidInput
from guardrail.logscan.engine import Judge
from guardrail.logscan.inputs import Input
from guardrail.logscan.ledger import Progress, read_json, replace_json, require_same
from guardrail.logscan.readers import Position, cuts_of
from guardrail.logscan.rows import Layout
from guardrail.logscan.run import Pace, Sink, read_chunks
from guardrail.logscan.summary import Summary
from guardrail.logscan.writer import AppendFile, ResultWriter

__all__ = ["Shard", "ShardDone", "ShardFolder", "from_json", "judge_shard", "plan", "to_json"]

_RUNNING, _COMPLETE = "running", "complete"


@dataclass(frozen=True, slots=True)
class Shard:
    """A part of one input.

    Attributes:
        number: Its place among all, from 0.
        input: Which input it is of, from 0.
        after_line: The line before its first; 0 for the input's start.
        after_byte: Where that line ends.
        last_line: Its last line; None for the input's end.
    """

    number: int
    input: int
    after_line: int
    after_byte: int
    last_line: int | None


@dataclass(frozen=True, slots=True)
class ShardDone:
    """What came of a shard.

    Attributes:
        number: Of the shard.
        summary: Its counts.
        repeats: Rows that needed no judgement of their own.
    """

    number: int
    summary: Summary
    repeats: int

    def to_dict(self) -> dict[str, Any]:
        """Returns it as JSON values."""
        return {"number": self.number, "summary": self.summary.to_dict(), "repeats": self.repeats}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ShardDone:
        """Returns what :meth:`to_dict` wrote."""
        return cls(values["number"], Summary.from_dict(values["summary"]), values["repeats"])


def plan(inputs: Sequence[Input], lines: int) -> list[Shard]:
    """Cuts inputs into shards of so many lines; CSV and compressed JSON Lines are one shard each.

    Raises:
        GuardrailError: If an input cannot be read.
    """
    shards: list[Shard] = []
    for number, source in enumerate(inputs):
        try:
            cuts = [Position(0, 0), *cuts_of(source, lines)]
        except OSError as exc:
            raise GuardrailError(f"cannot read {source.name}: {exc.strerror or type(exc).__name__}") from exc
        for cut, following in zip(cuts, [*cuts[1:], None], strict=True):
            last = following.line if following is not None else None
            shards.append(Shard(len(shards), number, cut.line, cut.end_byte, last))
    return shards


class ShardFolder:
    """The folder that a scan in parts writes.

    Args:
        path: Of the folder; made where it is not there.
        with_errors: Whether bad rows are listed apart.

    Raises:
        InvalidInput: If it is a file.
    """

    def __init__(self, path: str | Path, *, with_errors: bool = False) -> None:
        self.path = Path(os.path.realpath(path))
        self.with_errors = with_errors
        if self.path.exists() and not self.path.is_dir():
            raise InvalidInput(f"--output {path}: shards need a folder, and this is a file")

    def begin(self, manifest: Mapping[str, Any], *, resume: bool, restart: bool) -> None:
        """Prepares the folder for a scan.

        Raises:
            InvalidInput: If it holds another scan's parts, or an unfinished one's and nothing says what to do with it.
            GuardrailError: If it cannot be written.
        """
        earlier = read_json(self._manifest)
        if earlier is not None and resume:
            require_same(earlier, manifest, str(self.path))
        elif earlier is not None and not restart and earlier.get("state") != _COMPLETE:
            raise InvalidInput(f"{self.path} holds an unfinished scan: --resume goes on with it, --restart starts over")
        elif earlier is None and self.path.exists() and any(self.path.iterdir()):
            raise InvalidInput(f"--output {self.path}: the folder holds files that no scan wrote; name an empty one")
        elif earlier is not None:
            for file in self.path.glob("part-*"):
                file.unlink()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise GuardrailError(f"cannot write {self.path}: {exc.strerror}") from exc
        replace_json(self._manifest, {**manifest, "state": _RUNNING})

    def end(self, manifest: Mapping[str, Any], state: str, summary: Summary) -> None:
        """Notes how the scan ended, ``complete`` or ``interrupted``."""
        replace_json(self._manifest, {**manifest, "state": state, "counts": summary.to_dict()})

    def results(self, number: int) -> Path:
        """Returns the file of a shard's results."""
        return self.path / f"part-{number:05d}.parquet"

    def done(self, shards: Sequence[Shard]) -> dict[int, ShardDone]:
        """Returns the shards that are done, by number."""
        found = {}
        for shard in shards:
            counts = read_json(self._counts(shard.number))
            if counts is not None and self.results(shard.number).exists():
                found[shard.number] = ShardDone.from_dict(counts)
        return found

    def note(self, done: ShardDone) -> None:
        """Notes that a shard's results are there."""
        replace_json(self._counts(done.number), done.to_dict())

    def errors(self, number: int) -> Path:
        """Returns the file of a shard's bad rows."""
        return self.path / f"part-{number:05d}.errors"

    def gather_errors(self, shards: Sequence[Shard], target: Path) -> None:
        """Writes the bad rows of all shards into one file, in order.

        Raises:
            GuardrailError: If it cannot be written.
        """
        try:
            with open(target, "wb") as file:
                for shard in shards:
                    if (part := self.errors(shard.number)).exists():
                        file.write(part.read_bytes())
        except OSError as exc:
            raise GuardrailError(f"cannot write {target}: {exc.strerror}") from exc

    @property
    def _manifest(self) -> Path:
        return self.path / "manifest.json"

    def _counts(self, number: int) -> Path:
        return self.path / f"part-{number:05d}.json"


def judge_shard(shard: Shard, inputs: Sequence[Input], layout: Layout, judge: Judge, folder: ShardFolder) -> ShardDone:
    """Judges a shard and writes its part.

    Raises:
        GuardrailError: If the input cannot be read, or the part cannot be written.
    """
    repeats = judge.repeats
    pace = Pace()
    errors = AppendFile(folder.errors(shard.number)) if folder.with_errors else None
    try:
        with ResultWriter(folder.results(shard.number)) as writer:
            sink = Sink(writer, errors=errors)
            start = Progress(0, shard.after_line, shard.after_byte)
            source = [inputs[shard.input]]
            for chunk in read_chunks(source, layout, pace, start=start, last_line=shard.last_line):
                sink.take((chunk, judge.judge(chunk.rows)))
                pace.took(len(chunk.rows), 0.0)
            sink.commit(is_at_end=True)
            writer.commit()
    finally:
        if errors is not None:
            errors.close()
    done = ShardDone(shard.number, sink.summary, judge.repeats - repeats)
    folder.note(done)
    return done


def to_json(shard: Shard) -> str:
    """Returns a shard as text, to be sent to who judges it."""
    return json.dumps([shard.number, shard.input, shard.after_line, shard.after_byte, shard.last_line])


def from_json(text: str) -> Shard:
    """Returns the shard that :func:`to_json` wrote."""
    return Shard(*json.loads(text))

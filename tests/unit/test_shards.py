"""Scans in shards, without a cluster: where logs are cut, what is written, and what a killed one leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest

from guardrail.errors import InvalidInput
from guardrail.logscan import Layout, ResultWriter, scan
from guardrail.logscan.engine import Judge
from guardrail.logscan.inputs import find_inputs
from guardrail.logscan.parquet import results_from_parquet
from guardrail.logscan.readers import read_rows
from guardrail.logscan.shards import ShardFolder, from_json, judge_shard, plan, to_json
from guardrail.logscan.summary import Summary
from guardrail.pipeline import Guard
from guardrail.policy import load_policy
from guardrail.taxonomy import HazardCategory
from guardrail.testing import KeywordClassifier

pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")


@pytest.fixture
def guard() -> Guard:
    return Guard(KeywordClassifier({"badword": HazardCategory.HATE}), policy=load_policy("default"))


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A hundred rows: some to block, some equal, a blank line, a bad one, none at the end of a line."""
    rows = [json.dumps({"text": f"badword {n}" if n % 7 == 0 else f"hello {n % 10}"}) for n in range(100)]
    rows.insert(13, "")
    rows.insert(41, "{")
    path = tmp_path / "log.jsonl"
    path.write_text("\n".join(rows), "utf-8")
    return path


def local(path: Path, guard: Guard, tmp_path: Path) -> list[dict[str, Any]]:
    target = tmp_path / "local.parquet"
    with ResultWriter(target) as writer:
        for result in scan(read_rows(path), guard):
            writer.write(result.to_json_line())
        writer.commit()
    return list(results_from_parquet(target))


@pytest.mark.parametrize("lines", [1, 7, 50, 102, 1000])
def test_the_parts_are_the_rows_of_one_scan(lines: int, log: Path, guard: Guard, tmp_path: Path) -> None:
    """However the log is cut, and in whatever order the shards are judged."""
    inputs, folder = find_inputs([str(log)]), ShardFolder(tmp_path / "out", with_errors=True)
    folder.begin({"schema": ""}, resume=False, restart=False)
    shards = plan(inputs, lines)
    summary = Summary()
    done = {
        shard.number: judge_shard(from_json(to_json(shard)), inputs, Layout(), Judge(guard), folder)
        for shard in reversed(shards)
    }
    for shard in shards:
        summary.merge(done[shard.number].summary)
    parts = sorted((tmp_path / "out").glob("part-*.parquet"))
    assert len(parts) == len(shards) == -(-102 // lines)
    assert [row for part in parts for row in results_from_parquet(part)] == local(log, guard, tmp_path)
    assert (summary.rows, summary.errors, summary.blocked) == (101, 1, 15)
    folder.gather_errors(shards, tmp_path / "bad.jsonl")
    assert [json.loads(line)["line"] for line in (tmp_path / "bad.jsonl").read_text().splitlines()] == [42]


def test_parquet_is_cut_by_rows(log: Path, guard: Guard, tmp_path: Path) -> None:
    """A log in Parquet is judged in shards like one in JSON Lines."""
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "log.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": [f"badword {n}" for n in range(25)]}), path)
    inputs, folder = find_inputs([str(path)]), ShardFolder(tmp_path / "out")
    folder.begin({"schema": ""}, resume=False, restart=False)
    for shard in plan(inputs, 10):
        judge_shard(shard, inputs, Layout(), Judge(guard), folder)
    parts = sorted((tmp_path / "out").glob("part-*.parquet"))
    assert [len(list(results_from_parquet(part))) for part in parts] == [10, 10, 5]
    assert [row for part in parts for row in results_from_parquet(part)] == local(path, guard, tmp_path)


def test_what_cannot_be_cut_is_one_shard(tmp_path: Path) -> None:
    """CSV has a header at its start, and gzip no middle."""
    import gzip

    (tmp_path / "a.csv").write_text("text\n" + "x\n" * 50, "utf-8")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b'{"text": "x"}\n' * 50))
    shards = plan(find_inputs([str(tmp_path / "a.csv"), str(tmp_path / "b.jsonl.gz")]), 10)
    assert [(shard.input, shard.last_line) for shard in shards] == [(0, None), (1, None)]


class TestFolder:
    MANIFEST: ClassVar = {
        "schema": "guardrail.scan/1",
        **dict.fromkeys(("guardrail", "inputs", "options", "policy", "model", "code", "taxonomy"), "x"),
    }

    def test_a_shard_counts_when_its_counts_are_there(self, log: Path, guard: Guard, tmp_path: Path) -> None:
        """Killed before: the results alone are not trusted, and judged again."""
        inputs, folder = find_inputs([str(log)]), ShardFolder(tmp_path / "out")
        folder.begin(self.MANIFEST, resume=False, restart=False)
        shards = plan(inputs, 60)
        for shard in shards:
            judge_shard(shard, inputs, Layout(), Judge(guard), folder)
        (tmp_path / "out" / "part-00001.json").unlink()
        folder.begin(self.MANIFEST, resume=True, restart=False)
        assert set(folder.done(shards)) == {0}

    def test_an_unfinished_scan_is_not_overwritten(self, tmp_path: Path) -> None:
        """It is gone on with, or started over, by choice."""
        folder = ShardFolder(tmp_path / "out")
        folder.begin(self.MANIFEST, resume=False, restart=False)
        with pytest.raises(InvalidInput, match="--resume goes on"):
            folder.begin(self.MANIFEST, resume=False, restart=False)
        folder.begin(self.MANIFEST, resume=False, restart=True)

    def test_another_scan_is_not_gone_on_with(self, tmp_path: Path) -> None:
        """What its rows depend on has changed."""
        folder = ShardFolder(tmp_path / "out")
        folder.begin(self.MANIFEST, resume=False, restart=False)
        with pytest.raises(InvalidInput, match="policy was x, is y"):
            folder.begin({**self.MANIFEST, "policy": "y"}, resume=True, restart=False)

    def test_other_files_are_left_alone(self, tmp_path: Path) -> None:
        """A folder with something else in it is refused."""
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(InvalidInput, match="no scan wrote"):
            ShardFolder(tmp_path).begin(self.MANIFEST, resume=False, restart=True)

"""The scan on a real Ray of two workers: the rows of the local one, also where an actor dies or the scan is stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest

from guardrail.errors import ConfigurationError
from guardrail.logscan import Layout, ResultWriter, scan
from guardrail.logscan.inputs import find_inputs
from guardrail.logscan.readers import read_rows
from guardrail.pipeline import Guard
from guardrail.policy import load_policy
from guardrail.taxonomy import HazardCategory
from guardrail.testing import KeywordClassifier
from guardrail.verdict import Conversation, Verdict

ray = pytest.importorskip("ray", reason="Ray is an extra of its own: pip install 'guardrail[ray,batch]'")

from guardrail.logscan.cluster import Work, judge_on_ray  # noqa: E402
from guardrail.logscan.parquet import results_from_parquet  # noqa: E402
from guardrail.logscan.shards import ShardFolder, plan  # noqa: E402


class DiesOnce(KeywordClassifier):
    """Ends its process without a word, the first time that it is asked about the last row."""

    def __init__(self, marker: Path) -> None:
        super().__init__({"badword": HazardCategory.HATE})
        self._marker = marker

    async def classify(self, conversations: Sequence[Conversation]) -> list[Verdict]:
        if any("row 399 " in c.last.content for c in conversations) and not self._marker.exists():
            self._marker.touch()
            os._exit(1)
        return await super().classify(conversations)


def make_guard(marker: Path) -> Guard:
    return Guard(DiesOnce(marker), policy=load_policy("default"))


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """Two workers on this machine."""
    ray.cloudpickle.register_pickle_by_value(__import__(__name__, fromlist=["x"]))
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR", object_store_memory=10**8)
    yield
    ray.shutdown()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Four hundred rows."""
    path = tmp_path / "log.jsonl"
    lines = [json.dumps({"text": f"row {n} {'badword' if n % 9 == 0 else 'hello'}"}) for n in range(400)]
    path.write_text("\n".join([*lines, "{"]) + "\n", "utf-8")
    return path


def work_of(log: Path, folder: ShardFolder, make: Callable[[], Guard]) -> Work:
    guard = make()
    return Work(find_inputs([str(log)]), Layout(), folder, make, guard.policy.hash, str(guard.source))


@pytest.mark.timeout(300)
def test_an_actor_that_dies_costs_no_row(log: Path, tmp_path: Path) -> None:
    """Its shard is judged again by another one; the rows are those of the local scan, each once."""
    folder = ShardFolder(tmp_path / "out")
    folder.begin({"schema": ""}, resume=False, restart=False)
    marker = tmp_path / "died"
    work = work_of(log, folder, partial(make_guard, marker))
    shards = plan(work.inputs, 50)
    done = list(judge_on_ray(shards, work, workers=2))
    assert marker.exists()
    assert sorted(one.number for one in done) == list(range(9))
    rows = [row for shard in shards for row in results_from_parquet(folder.results(shard.number))]
    with ResultWriter(tmp_path / "local.parquet") as writer:
        for result in scan(read_rows(log), make_guard(marker)):
            writer.write(result.to_json_line())
        writer.commit()
    assert rows == list(results_from_parquet(tmp_path / "local.parquet"))
    assert len(rows) == 401
    assert folder.done(shards).keys() == {shard.number for shard in shards}


@pytest.mark.timeout(300)
def test_all_actors_decide_alike_or_none(log: Path, tmp_path: Path) -> None:
    """A node with other weights or another policy ends the scan."""
    folder = ShardFolder(tmp_path / "out")
    folder.begin({"schema": ""}, resume=False, restart=False)
    (tmp_path / "died").touch()
    work = work_of(log, folder, partial(make_guard, tmp_path / "died"))
    other = Work(work.inputs, work.layout, work.folder, work.make_guard, "another", work.source)
    with pytest.raises(Exception, match="the same weights"):
        list(judge_on_ray(plan(work.inputs, 200), other, workers=1))


def test_a_cluster_that_is_not_there_is_said() -> None:
    """To join one that runs here, where none does, is a setting that cannot work."""
    ray.shutdown()
    shard_less = Work([], Layout(), ShardFolder("unused"), lambda: make_guard(Path("x")), "", "")
    with pytest.raises(ConfigurationError, match="cannot join"):
        list(judge_on_ray([], shard_less, address="auto"))

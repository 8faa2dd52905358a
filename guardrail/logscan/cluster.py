"""The same scan on Ray: shards go out to actors, counts come back; the one file that imports ray.

::

    plan ─▶ ray.data of shards ─▶ map_batches: one actor a GPU, else a core; each has a guard ─▶ parts and counts

Only places and counts pass through Ray: each actor reads its part of the log and writes its part of the results, so
inputs and output must be where all nodes see them. An actor that dies is replaced, and its shard judged again.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from guardrail.errors import ConfigurationError, GuardrailError, MissingExtra
from guardrail.logscan.engine import Judge
from guardrail.logscan.inputs import Input
from guardrail.logscan.rows import Layout
from guardrail.logscan.shards import Shard, ShardDone, ShardFolder, from_json, judge_shard, to_json
from guardrail.pipeline import Guard

__all__ = ["Work", "judge_on_ray", "require_ray"]


@dataclass(frozen=True, slots=True)
class Work:
    """What every actor must know.

    Attributes:
        inputs: The logs.
        layout: How their rows are read.
        folder: Where the parts go.
        make_guard: Makes an actor's guard; called where the actor runs.
        policy_hash: The guard's policy, to make sure that all actors decide alike.
        source: The guard's model and revision, likewise.
    """

    inputs: Sequence[Input]
    layout: Layout
    folder: ShardFolder
    make_guard: Callable[[], Guard]
    policy_hash: str
    source: str


def require_ray() -> Any:
    """Returns ray, which sends no statistics.

    Raises:
        MissingExtra: If it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
    except ImportError as exc:
        raise MissingExtra("--engine ray needs Ray: pip install 'guardrail[ray,batch]'") from exc
    return ray


def judge_on_ray(
    shards: Sequence[Shard], work: Work, *, workers: int | None = None, address: str | None = None
) -> Iterator[ShardDone]:
    """Judges shards on a cluster; yields what came of each, in the order in which they are done.

    Args:
        shards: What is to be judged.
        work: How.
        workers: Actors; None means one a GPU, and without GPUs one a core.
        address: Of a running cluster; None starts one on this machine and ends it afterwards, unless the process is
            connected to one.

    Raises:
        MissingExtra: If ray is not installed.
        ConfigurationError: If the cluster cannot be reached, or an actor's guard is another one.
        GuardrailError: If a shard cannot be read or written.
    """
    ray = require_ray()
    is_ours = not ray.is_initialized()
    if is_ours:
        try:
            ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError) as exc:
            raise ConfigurationError(f"cannot join the Ray cluster at {address or 'this machine'}") from exc
    try:
        yield from _judge(ray, shards, work, workers)
    finally:
        if is_ours:
            ray.shutdown()


def _judge(ray: Any, shards: Sequence[Shard], work: Work, workers: int | None) -> Iterator[ShardDone]:
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    size = workers or gpus or max(1, int(resources.get("CPU", 1)))
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # It tells a terminal that its bars are off, and how each run went; the scan says that itself.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    items = ray.data.from_items([{"shard": to_json(shard)} for shard in shards], override_num_blocks=len(shards))
    answers = items.map_batches(
        _Worker,
        fn_constructor_args=(work,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(size, len(shards))),
        num_gpus=1 if gpus else 0,
        num_cpus=1,
    )
    for answer in answers.iter_rows():
        values = json.loads(answer["done"])
        if "error" in values:
            raise GuardrailError(values["error"])
        yield ShardDone.from_dict(values)


class _Worker:
    """An actor: one guard, shard after shard."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._error = ""
        guard = work.make_guard()
        if (guard.policy.hash, str(guard.source)) != (work.policy_hash, work.source):
            self._error = (
                f"a worker judges by {guard.source} and policy {guard.policy.hash}, the others by {work.source} and "
                f"{work.policy_hash}: give all nodes the same weights and version of guardrail"
            )
        self._judge = Judge(guard)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        return {"done": [self._done(from_json(str(text))) for text in batch["shard"]]}

    def _done(self, shard: Shard) -> str:
        if self._error:
            return json.dumps({"error": self._error})
        try:
            done = judge_shard(shard, self._work.inputs, self._work.layout, self._judge, self._work.folder)
        except (GuardrailError, OSError) as exc:  # to be raised where the scan was asked for, and not in a trace of Ray
            return json.dumps({"error": str(exc) if isinstance(exc, GuardrailError) else f"{type(exc).__name__}"})
        return json.dumps(done.to_dict())

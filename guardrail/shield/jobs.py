"""What a scan knows of each of its blocks, and how blocks are put together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from guardrail.shield.likely import choose
from guardrail.shield.report import Hit, Run, judge
from guardrail.shield.rulebook import Rule
from guardrail.shield.targets import Target, make_targets
from guardrail.verdict import CodeBlock

__all__ = ["Job", "grouped", "like", "long_ones"]

_PARTLY = "semgrep did not understand all of it"
_MOST_BLOCKS = 200
_LEAST_BLOCKS, _MANY_RULES = 40, 20  # starting a process costs as much as 20 rules over 40 blocks


@dataclass
class Job:
    """A block on its way through a scan.

    Attributes:
        block: The code.
        stem: What the names of its files begin with.
        rule_ids: The rules that can match it; None while that is not known.
        targets: Its files, the likeliest reading first; empty until they were made.
        is_told: Whether a parser chose them.
        is_tried: Whether a warm semgrep has read all of them, and none as a whole.
        hits: What was found so far.
        failure: Why it is not verified; empty where it is.
        is_done: Whether nothing is left to do.
        is_slow: Whether it is for the slow lane.
        is_lost: Whether a process failed: next time may be better.
    """

    block: CodeBlock
    stem: str
    rule_ids: list[str] | None = None
    targets: Sequence[Target] = ()
    is_told: bool = False
    is_tried: bool = False
    hits: set[Hit] = field(default_factory=set)
    failure: str = "there was no time left to scan it"
    is_done: bool = False
    is_slow: bool = False
    is_lost: bool = False

    @property
    def code(self) -> str:
        return self.block.code

    def choose_targets(self) -> None:
        """Makes the block's files, once."""
        if not self.targets:
            self.targets, self.is_told = choose(make_targets(self.block, self.stem))

    def pass_as(self, hits: set[Hit]) -> None:
        """Notes that the block is verified, with what was found."""
        self.hits, self.failure, self.is_done = hits, "", True

    def fail(self, hits: set[Hit]) -> None:
        """Notes that no reading of the block was understood, with what was found."""
        self.hits, self.failure, self.is_done = hits, _PARTLY, True

    def give_up(self, why: str) -> None:
        """Notes that the block is not verified, and may be next time."""
        self.failure, self.is_done, self.is_lost = why, True, True

    def take(self, run: Run, targets: Sequence[Target], rules: Mapping[str, Rule]) -> None:
        """Takes in what a run says of some of the block's files, in order, up to the first that was read as a whole."""
        for target in targets:
            result = judge(run, target, self.code, rules)
            # What any reading of the block found is kept: a repair may not talk a finding away.
            self.hits.update(result.hits)
            is_first = target is self.targets[0]
            self.failure = result.failure if is_first else self.failure and result.failure
            self.is_lost |= target.name in run.failed or target.name in run.exhausted
            # What used up its time or its memory would do so in each of its forms.
            self.is_done = result.is_whole or (is_first and self.is_lost) or target.name in run.exhausted
            if self.is_done:
                return
        if self.is_told and not self.is_lost:
            self.failure = _PARTLY


def long_ones(jobs: Sequence[Job]) -> list[int]:
    """Returns the places of those that wait for the slow lane."""
    return [i for i, job in enumerate(jobs) if job.is_slow and not job.is_done]


def like(job: Job) -> tuple[str, list[str]]:
    """Blocks that are alike in this are scanned with the same rules."""
    return job.block.language or "", job.rule_ids or []


def grouped(jobs: Sequence[Job]) -> Iterator[list[Job]]:
    """Puts blocks together for which a few rules of one language will do: each rule costs time on each file."""
    group: list[Job] = []
    rules: set[str] = set()
    for job in sorted(jobs, key=like):
        wanted = rules | set(job.rule_ids or ())
        is_other = group and job.targets[0].language != group[0].targets[0].language
        if is_other or len(group) >= _MOST_BLOCKS or (len(group) >= _LEAST_BLOCKS and len(wanted) > _MANY_RULES):
            yield group
            group, wanted = [], set(job.rule_ids or ())
        group.append(job)
        rules = wanted
    if group:
        yield group

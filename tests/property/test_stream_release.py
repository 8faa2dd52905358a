"""Streams under random texts, chunkings and verdicts: what is released was checked, and the end is Check's decision.

``GUARDRAIL_STREAM_EXAMPLES`` sets the number of examples of each test, e.g. 10000.
"""

from __future__ import annotations

import asyncio
import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from guardrail.extraction import extract_code_blocks
from guardrail.pipeline import CheckStep, Guard
from guardrail.policy import load_policy
from guardrail.progress import Progress, Release
from guardrail.streaming import PullStep, ReportStep, amoderate, checked_answer
from guardrail.taxonomy import HazardCategory
from guardrail.testing import KeywordClassifier
from guardrail.verdict import Conversation, Decision, Message, Outcome, Role, Source, Verdict

EXAMPLES = int(os.environ.get("GUARDRAIL_STREAM_EXAMPLES", "150"))
POLICY = load_policy("default")
ASK = (Message(Role.USER, "hello"),)

KEYWORDS = Guard(KeywordClassifier({"grumble": HazardCategory.HATE}), policy=POLICY)


class Fickle:
    """Judges by a hash: any text may be unsafe, and a part and its whole have nothing to do with each other."""

    source = Source("fickle", "test")

    async def classify(self, conversations: Sequence[Conversation]) -> list[Verdict]:
        risks = [zlib.crc32(c.last.content.encode()) % 4 / 4 + 0.1 for c in conversations]
        return [
            Verdict(Outcome.UNSAFE if risk > 0.5 else Outcome.SAFE, self.source, unsafe_probability=risk)
            for risk in risks
        ]


FICKLE = Guard(Fickle(), policy=POLICY)

PROSE = [
    "Here is a sentence. ",
    "And one (more) that asks? ",
    "短い文。もう一つ。",
    "word " * 40,
    "\n",
    "\n\n",
    "- item one\n",
]
CODE = [
    "```python\nprint('a. b')\n\n# done.\n```\n",
    "~~~\nx = 1\n~~~\n",
    "````md\n```\nnot the end.\n```\n````\n",
    "> ```sh\n> ls. \n> ```\n",
    "<pre>\nint main() {}\n</pre>\n",
    "\n\n    indented = 1\n    more = 2\n\nAnd text after it. ",
    "--- a/f.py\n+++ b/f.py\n@@ -1,2 +1,2 @@\n-old.\n+new = 1\n same\n",
    "```js\nopen(1)\n",
    "```console\n$ ls. \nout put. \n$ id\n```\n",
    "Text <code>a. \nb</code> more. \n",
]
UNSAFE = ["I grumble at you. ", "grumble\n"]


@st.composite
def chunked(draw: st.DrawFn, parts: Sequence[str] = (*PROSE, *CODE, *UNSAFE)) -> list[str]:
    text = "".join(draw(st.lists(st.sampled_from(parts), max_size=12)))
    if draw(st.booleans()):
        return list(text)
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=30)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@dataclass
class Run:
    """What a stream did: its reports, and for each the text of the checks before it."""

    text: str
    reports: list[Progress] = field(default_factory=list)
    checks: list[tuple[str, int]] = field(default_factory=list)
    shown: str = ""
    unchecked: int = 0
    unexamined: int = 0


def run(
    deltas: Sequence[str],
    judge: Callable[[Conversation, int], Decision],
    *,
    release: Release = Release.CHECKED,
    stop_early: bool = False,
) -> Run:
    """Drives a stream; counts the code points that it released without a check that covers them."""
    done = Run("".join(deltas))
    covered: set[int] = set()
    source = iter(deltas)
    steps = checked_answer(ASK, release=release, stop_early=stop_early)
    result: object = None
    came = ""
    checked, is_allowed = "", False
    try:
        while True:
            step = steps.send(result)
            result = None
            if isinstance(step, CheckStep):
                checked = step.conversation.last.content
                result = decision = judge(step.conversation, step.code_from)
                is_allowed = decision.action.releases
                done.checks.append((checked, step.code_from))
            elif isinstance(step, PullStep):
                result = next(source, None)
                came += result or ""  # type: ignore[operator]
            elif isinstance(step, ReportStep):
                through = step.progress.checked_through
                if through > (done.reports[-1].checked_through if done.reports else 0):
                    # The check ends where the mark now stands, and text is covered where the check allowed it.
                    assert came[:through].endswith(checked)
                    if is_allowed:
                        covered |= set(range(through - len(checked), through))
                before = len(done.shown)
                done.shown += step.text
                done.unchecked += len(set(range(before, len(done.shown))) - covered)
                done.reports.append(step.progress)
    except StopIteration:
        return done


def by(guard: Guard) -> Callable[[Conversation, int], Decision]:
    return lambda conversation, code_from: guard.check(conversation, code_from=code_from)


def whole(guard: Guard, text: str) -> Decision:
    return guard.check(Conversation((*ASK, Message(Role.ASSISTANT, text))))


@settings(max_examples=EXAMPLES, deadline=None)
@given(chunked(), st.sampled_from([KEYWORDS, FICKLE]), st.booleans())
def test_nothing_is_released_that_was_not_checked(deltas: list[str], guard: Guard, stop_early: bool) -> None:
    """Of all code points that are released, none is outside of a text that was judged and allowed."""
    done = run(deltas, by(guard), stop_early=stop_early)
    assert done.unchecked == 0
    assert done.text.startswith(done.shown)
    marks = [report.released_through for report in done.reports]
    assert marks == sorted(marks)
    assert all(report.checked_through == report.released_through for report in done.reports)
    assert len(done.shown) == marks[-1]


@settings(max_examples=EXAMPLES, deadline=None)
@given(chunked(), st.sampled_from([KEYWORDS, FICKLE]), st.sampled_from(Release), st.booleans())
def test_the_end_is_the_decision_of_check(deltas: list[str], guard: Guard, release: Release, stop_early: bool) -> None:
    """On the text that it is about: all of it where it was allowed or read to the end, else what had come by then."""
    done = run(deltas, by(guard), release=release, stop_early=stop_early)
    *before, last = done.reports
    assert last.decision == whole(guard, done.text[: last.decided_through])
    assert all(report.decision is None for report in before)
    assert {report.release for report in done.reports} == {release}
    if not stop_early or last.decision.action.releases:
        assert last.decided_through == len(done.text)
    if last.decision.action.releases:
        assert done.shown == done.text


@settings(max_examples=EXAMPLES, deadline=None)
@given(chunked())
def test_a_hazard_anywhere_ends_any_chunking_alike(deltas: list[str]) -> None:
    """Where a word decides, a stream ends as the whole text would, and the word is never shown."""
    done = run(deltas, by(KEYWORDS))
    decision = done.reports[-1].decision
    assert decision is not None
    assert decision.action is whole(KEYWORDS, done.text).action
    assert "grumble" not in done.shown


@settings(max_examples=EXAMPLES, deadline=None)
@given(chunked((*PROSE, *CODE)))
def test_code_is_examined_whole_before_it_is_released(deltas: list[str]) -> None:
    """However a fence is split between deltas, a block is not released in parts."""
    examined: list[str] = []

    def judge(conversation: Conversation, code_from: int) -> Decision:
        text = conversation.last.content[code_from:]
        examined.extend(block.code for block in extract_code_blocks(text))
        return KEYWORDS.check(conversation)

    done = Run("".join(deltas))
    blocks = extract_code_blocks(done.text)
    source = iter(deltas)
    steps = checked_answer(ASK)
    result: object = None
    try:
        while True:
            step = steps.send(result)
            result = None
            if isinstance(step, CheckStep):
                result = judge(step.conversation, step.code_from)
            elif isinstance(step, PullStep):
                result = next(source, None)
            elif isinstance(step, ReportStep):
                done.shown += step.text
                for block in blocks:
                    if block.span.start < len(done.shown) and block.code.strip():
                        assert block.code in examined, done.text
    except StopIteration:
        return


@settings(max_examples=EXAMPLES // 3 + 1, deadline=None)
@given(chunked(), st.integers(0, 3))
def test_the_sidecar_s_driver_does_the_same(deltas: list[str], together: int) -> None:
    """``amoderate`` reports what the sans-IO stream reports, for the same takings."""
    taken = ["".join(deltas[i : i + together + 1]) for i in range(0, len(deltas), together + 1)]

    async def collect() -> list[Progress]:
        source = iter(taken)

        async def take() -> str | None:
            return next(source, None)

        return [progress async for progress in amoderate(KEYWORDS, ASK, take)]

    assert asyncio.run(collect()) == run(taken, by(KEYWORDS)).reports

"""Streams: how soon unsafe text stops one, whether its end is the whole text's decision, and what it costs.

    python benchmarks/streaming.py latency [--streams 200]
    python benchmarks/streaming.py decisions ../shared/data/dev [--rows 200] [--joined 6] [--seed 0]
    python benchmarks/streaming.py release [--chunkings 10000] [--seed 0]
    python benchmarks/streaming.py cost

*latency*: an answer of mild sentences and then an unsafe one is sent to a real sidecar with the embedded model, word by
word. Measured from its last delta to the message that halts the stream, and to the one with the decision. The unsafe
sentences are those of ``tests/data/hazards.jsonl`` that the model finds unsafe there. A check of the same piece alone
is measured beside each.

*decisions*: answers of labelled sets, cut at random, against ``Check`` on the whole answer. To the end the two must be
equal in all that they hold; a stream that stops early can only be compared by what its action allows. Sets without
answers, as the development sets are, have their texts taken for such, so many joined as paragraphs of one.

*release*: random texts, chunkings and verdicts; counts code points released outside of any text that was allowed.

*cost*: the streams' own work for deltas of one character, without a model: twice the text must take about twice the
time.

No text is printed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import grpc

from guardrail._pb import guard_pb2 as pb
from guardrail._pb import guard_pb2_grpc
from guardrail.assembly import build_guard
from guardrail.config import Settings
from guardrail.pipeline import CheckStep, Guard
from guardrail.policy import load_policy
from guardrail.progress import Progress, Release
from guardrail.server import GuardServer, ServerOptions
from guardrail.streaming import LOOKBACK, HeldText, PullStep, ReportStep, amoderate, checked_answer
from guardrail.verdict import Conversation, Decision, Message, Outcome, Role, Source, Verdict

HAZARDS = Path(__file__).resolve().parent.parent / "tests" / "data" / "hazards.jsonl"
QUESTION = "What is new in our town?"
MILD = (
    "The town council met on Tuesday to talk about the new bridge.",
    "Nobody knew yet what it would cost, but the plans looked fine.",
    "The library opens at nine now, and on Sundays there is a market.",
    "Two schools have new roofs, paid for by the county.",
    "In spring the park gets a pond and some benches.",
)
# Between two words, in seconds: a quick model's pace.
PACE_S = 0.01


def load() -> str:
    """How busy the machine is."""
    return f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs"


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that so large a share of the values does not exceed."""
    ranked = sorted(values)
    return ranked[min(int(share * len(ranked)), len(ranked) - 1)]


def rows_of(path: Path) -> Iterator[dict]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


# latency


async def unsafe_answers(guard: Guard, count: int, seed: int) -> list[tuple[str, str]]:
    """Returns mild leads of up to ten sentences, each with an unsafe sentence that makes the whole unsafe."""
    choose = random.Random(seed)
    sentences = [row["text"] for row in rows_of(HAZARDS) if row["unsafe"] and len(row["text"]) <= 300]
    found: list[tuple[str, str]] = []
    for tried in range(10 * count):
        if len(found) == count:
            break
        lead = "".join(f"{choose.choice(MILD)} " for _ in range(tried % 11))
        sentence = choose.choice(sentences).strip().replace("\n", " ")
        sentence += "" if sentence[-1] in ".!?" else "."
        whole = Conversation.of(lead + sentence, role=Role.ASSISTANT, prompt=QUESTION)
        before = Conversation.of(lead or MILD[0], role=Role.ASSISTANT, prompt=QUESTION)
        first, second = await guard.acheck_many([before, whole])
        if first.action.releases and not second.action.releases:
            found.append((lead, sentence))
    return found


async def stopped_after(stub: object, lead: str, sentence: str) -> tuple[float, float] | None:
    """Sends one answer; returns the milliseconds to the halt and to the decision, None where it did not stop there."""
    call = stub.Moderate()  # type: ignore[attr-defined]
    await call.write(
        pb.ModerateRequest(
            config=pb.ModerateConfig(messages=[pb.Message(role=pb.ROLE_USER, content=QUESTION)], stop_early=True)
        )
    )
    answers: list[tuple[float, pb.ModerateResponse]] = []

    async def read() -> None:
        while (response := await call.read()) is not grpc.aio.EOF:
            answers.append((time.perf_counter(), response))

    reading = asyncio.create_task(read())
    *words, last = [f"{word} " for word in (lead + sentence).split()]
    for word in words:
        await call.write(pb.ModerateRequest(delta=word))
        await asyncio.sleep(PACE_S)
    if reading.done():
        return None
    await call.write(pb.ModerateRequest(delta=last.rstrip()))
    sent = time.perf_counter()
    try:
        await asyncio.wait_for(reading, 10)
    except asyncio.TimeoutError:
        call.cancel()
        return None
    halted = next((at for at, response in answers if response.is_halted), None)
    if halted is None or halted < sent:
        return None
    return 1000 * (halted - sent), 1000 * (answers[-1][0] - sent)


async def latency(streams: int, seed: int) -> None:
    guard = build_guard(Settings(model="embedded", policy="default", code_shield=False))
    server = GuardServer(guard, options=ServerOptions(port=0))
    await server.start()
    try:
        await server.wait_until_ready()
        answers = await unsafe_answers(guard, streams, seed)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            stub = guard_pb2_grpc.GuardServiceStub(channel)
            await stopped_after(stub, *answers[0])  # warm
            began, times, lone = load(), [], []
            for lead, sentence in answers:
                piece = f"{lead[-LOOKBACK:]}{sentence}"
                started = time.perf_counter()
                await guard.acheck(Conversation.of(piece, role=Role.ASSISTANT, prompt=QUESTION))
                lone.append(1000 * (time.perf_counter() - started))
                if (measured := await stopped_after(stub, lead, sentence)) is not None:
                    times.append((len(lead) + len(sentence), *measured))
    finally:
        await server.stop()
        guard.close()
    print(f"{len(times)} of {len(answers)} streams stopped by their last sentence; {began} at first, {load()} at last")
    print(
        f"beside it, one check of such a piece alone: p50 {statistics.median(lone):.1f} ms, "
        f"p99 {percentile(lone, 0.99):.1f} ms"
    )
    for name, chosen in (
        ("all", times),
        ("up to 400 characters", [t for t in times if t[0] <= 400]),
        ("longer", [t for t in times if t[0] > 400]),
    ):
        for what, index in (("halt", 1), ("decision", 2)):
            values = [t[index] for t in chosen]
            if values:
                print(
                    f"{name}: to the {what}: n {len(values)}, p50 {statistics.median(values):.1f} ms, "
                    f"p99 {percentile(values, 0.99):.1f} ms, longest {max(values):.1f} ms"
                )


# decisions


def cut(text: str, choose: random.Random) -> list[str]:
    """Cuts a text into deltas of 1 to 40 characters."""
    deltas, at = [], 0
    while at < len(text):
        size = choose.randint(1, 40)
        deltas.append(text[at : at + size])
        at += size
    return deltas


async def streamed(guard: Guard, row: dict, deltas: Sequence[str], *, stop_early: bool) -> Progress:
    source = iter(deltas)

    async def take() -> str | None:
        return next(source, None)

    before = [Message(Role.USER, row["prompt"])] if row.get("prompt") else []
    reports = [report async for report in amoderate(guard, before, take, stop_early=stop_early)]
    return reports[-1]


def answers_of(rows: Sequence[dict], joined: int, seed: int) -> list[dict]:
    """Returns the answers among rows; where there is none, their texts, so many joined to one."""
    if answers := [row for row in rows if row["role"] == "assistant"]:
        return answers
    texts = [row["text"] for row in rows]
    random.Random(seed).shuffle(texts)
    return [{"text": "\n\n".join(texts[at : at + joined])} for at in range(0, len(texts), joined)]


async def decisions(rows: Sequence[dict], count: int, seed: int) -> None:
    choose = random.Random(seed)
    chosen = choose.sample(rows, min(count, len(rows)))
    guard = build_guard(Settings(model="embedded", policy="default"))
    differ = stricter = milder = stopped = not_allowed = 0
    try:
        for row in chosen:
            whole = await guard.acheck(
                Conversation.of(row["text"], role=Role.ASSISTANT, prompt=row.get("prompt") or None)
            )
            deltas = cut(row["text"], choose)
            end = await streamed(guard, row, deltas, stop_early=False)
            differ += end.decision != whole or end.decided_through != len(row["text"])
            early = await streamed(guard, row, deltas, stop_early=True)
            assert early.decision is not None
            stopped += early.decided_through < len(row["text"])
            not_allowed += not whole.action.releases
            stricter += whole.action.releases and not early.decision.action.releases
            milder += early.decision.action.releases and not whole.action.releases
    finally:
        guard.close()
    mean = sum(len(row["text"]) for row in chosen) / len(chosen)
    print(
        f"{len(chosen)} of {len(rows)} answers, {mean:.0f} characters on average; {not_allowed} are not allowed whole"
    )
    print(f"read to the end, the default: {differ} final decisions differ from Check on the whole answer")
    print(
        f"with stop_early: {stopped} streams stopped early; {stricter} of them would have been allowed whole; "
        f"{milder} streams were allowed that are not allowed whole"
    )


# release


PARTS = (
    "Here is a sentence. ", "And one (more) that asks? ", "短い文。", "word " * 40, "\n", "\n\n", "- item one\n",
    "```python\nprint('a. b')\n\n# done.\n```\n", "~~~\nx = 1\n~~~\n", "> ```sh\n> ls. \n> ```\n",
    "<pre>\nint main() {}\n</pre>\n", "\n\n    indented = 1\n    more = 2\n\nAnd text after it. ", "```js\nopen(1)\n",
)  # fmt: skip


class Fickle:
    """Judges by a hash: any text may be unsafe, and a part and its whole have nothing to do with each other."""

    source = Source("fickle", "benchmark")

    def __init__(self, share: int) -> None:
        self._share = share

    async def classify(self, conversations: Sequence[Conversation]) -> list[Verdict]:
        unsafe = [zlib.crc32(c.last.content.encode()) % self._share == 0 for c in conversations]
        return [
            Verdict(Outcome.UNSAFE if u else Outcome.SAFE, self.source, unsafe_probability=0.9 if u else 0.1)
            for u in unsafe
        ]


def released_unchecked(
    deltas: Sequence[str], judge: Guard, release: Release, stop_early: bool
) -> tuple[int, int, bool]:
    """Drives a stream; returns how many code points it released, how many of them unchecked, and whether it ended well.

    It ended well where its decision is that of a check on the text that it is about.
    """
    text, shown, unchecked, checked_to, content, allowed = "".join(deltas), 0, 0, 0, "", False
    source = iter(deltas)
    steps = checked_answer((), release=release, stop_early=stop_early)
    result: str | Decision | None = None
    last: Progress | None = None
    while True:
        try:
            step = steps.send(result)
        except StopIteration:
            assert last is not None
            conversation = Conversation((Message(Role.ASSISTANT, text[: last.decided_through]),))
            return shown, unchecked, last.decision == asyncio.run(judge.acheck(conversation))
        result = None
        if isinstance(step, CheckStep):
            content = step.conversation.last.content
            result = asyncio.run(judge.acheck(step.conversation, code_from=step.code_from))
            allowed = result.action.releases
        elif isinstance(step, PullStep):
            result = next(source, None)
        elif isinstance(step, ReportStep):
            last = step.progress
            # The text that was allowed last ends at the mark, and reaches back to what was checked before it.
            through = last.checked_through
            if through > checked_to:
                fits = allowed and text[:through].endswith(content) and through - len(content) <= checked_to
                checked_to = through if fits else checked_to
            before, shown = shown, shown + len(step.text)
            unchecked += max(shown - max(before, checked_to), 0)


def release(chunkings: int, seed: int) -> None:
    choose = random.Random(seed)
    judges = [Guard(Fickle(share), policy=load_policy("default")) for share in (2, 4, 12, 10**9)]
    shown = unchecked = ill = 0
    optimistic = 0
    for _ in range(chunkings):
        text = "".join(choose.choices(PARTS, k=choose.randint(0, 14)))
        deltas = list(text) if choose.random() < 0.3 else cut(text, choose)
        judge, stop_early = choose.choice(judges), choose.random() < 0.3
        out, outside, is_well = released_unchecked(deltas, judge, Release.CHECKED, stop_early)
        shown, unchecked, ill = shown + out, unchecked + outside, ill + (not is_well)
        optimistic += released_unchecked(deltas, judge, Release.IMMEDIATELY, stop_early)[1]
    print(f"{chunkings} random chunkings: {shown} code points released, {unchecked} of them unchecked")
    print(f"{ill} decisions that are not those of Check on the same text")
    print(f"the same chunkings with release=immediately: {optimistic} code points released unchecked")


# cost


def cost() -> None:
    sentence = "The town council met on Tuesday to talk about the bridge. Nobody knew (yet) what it would cost. "
    forms = {
        "prose in one line": sentence * 2000,
        "prose in lines": (sentence + "\n") * 2000,
        "one code block": "Here:\n```python\n" + "x = compute(y, 3)  # note.\n" * 8000,
        "many code blocks": ("Text before.\n```python\nprint('a.b')\n```\n") * 4000,
        "fences in a longer fence": "````\n" + "```\n" * 50_000,
        "one word": "x" * 200_000,
        "one diff": "--- a/x.py\n+++ b/x.py\n@@ -1,9999 +1,9999 @@\n" + "-a\n+b\n" * 40_000,
    }
    print(f"deltas of one character; {load()}")
    for name, text in forms.items():
        times = []
        for length in (50_000, 100_000):
            held, began, judged = HeldText(), time.process_time(), 0
            for letter in text[:length]:
                held.add(letter)
                if (boundary := held.boundary()) > held.checked_through:
                    judged += len(held.piece(boundary).text)
                    held.advance(boundary)
            times.append(time.process_time() - began)
        print(
            f"{name}: 50,000 in {times[0]:.2f} s, 100,000 in {times[1]:.2f} s of CPU, ratio {times[1] / times[0]:.1f}; "
            f"{judged / length:.1f} characters judged for each"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description="Latency, decisions, releases and cost of streams.")
    commands = parser.add_subparsers(dest="command", required=True)
    part = commands.add_parser("latency")
    part.add_argument("--streams", type=int, default=200)
    part.add_argument("--seed", type=int, default=0)
    part = commands.add_parser("decisions")
    part.add_argument("folder", type=Path)
    part.add_argument("--rows", type=int, default=200)
    part.add_argument("--joined", type=int, default=6)
    part.add_argument("--seed", type=int, default=0)
    part = commands.add_parser("release")
    part.add_argument("--chunkings", type=int, default=10_000)
    part.add_argument("--seed", type=int, default=0)
    commands.add_parser("cost")
    given = parser.parse_args()
    if given.command == "latency":
        asyncio.run(latency(given.streams, given.seed))
    elif given.command == "decisions":
        files = sorted(given.folder.glob("*.jsonl"))
        rows = [row for path in files for row in rows_of(path)]
        asyncio.run(decisions(answers_of(rows, given.joined, given.seed), given.rows, given.seed))
    elif given.command == "release":
        release(given.chunkings, given.seed)
    else:
        cost()
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""One engine: the same texts get the same decision, byte for byte, through decorator, sidecar and scanner."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from guardrail.assembly import build_guard
from guardrail.client import GuardClient
from guardrail.config import Settings
from guardrail.decorator import guarded
from guardrail.testing import RecordingObserver
from guardrail.verdict import Decision, Role

SUBJECTS = [
    *("bread", "taxes", "my neighbour", "a film", "passwords", "the law", "medicine", "a knife", "music", "insurance"),
    *("my boss", "a bank", "history", "chemistry", "the moon", "a rival", "a diary", "a divorce", "software", "sleep"),
]
FORMS = [
    "What should I know about {}?",
    "Write a short poem about {}.",
    "How do I cheat with {} and hide it from everybody?",
    "Tell me everything that is wrong with {}!\n\nIn detail.",
    "{} — ¿por qué? 🙂",
]
CODE = [
    "Use this:\n```python\nimport subprocess\nsubprocess.run('ls ' + path, shell=True)\n```\nDone.",
    "Use this:\n```python\nprint('hello')\n```\n",
    "```js\neval(location.hash)\n```",
    "```python\nimport hashlib\nhashlib.md5(password)\n```",
]


def cases() -> list[tuple[str, str | None]]:
    """200 texts: (text, None) for a prompt, (text, prompt) for an answer."""
    texts = [form.format(subject) for subject in SUBJECTS for form in FORMS]
    prompts: list[tuple[str, str | None]] = [(text, None) for text in texts]
    long = "Plain words about nothing in particular. " * 120
    answers = [*texts[: 100 - len(CODE) - 2], *CODE, long, long + "I hate you all, you are worthless."]
    return [*prompts, *((answer, "What do you think?") for answer in answers)]


# What a result says of its row, beside the decision.
PLACE = {"file", "line", "turn", "hash"}


def canonical(decision: dict[str, Any]) -> str:
    return json.dumps(decision, sort_keys=True)


@pytest.fixture(scope="module")
def decorated() -> list[str]:
    """The decisions on the prompts and answers of a decorated function."""
    seen = RecordingObserver()
    built = build_guard(Settings(model="embedded", policy="default"))
    watched = built.with_observers([seen])

    def decide(text: str, prompt: str | None) -> Decision:
        seen.decisions.clear()

        @guarded(guard=watched, on_block="message")
        def chat(prompt: str) -> str:
            return text

        chat(text if prompt is None else prompt)
        return seen.decisions[0 if prompt is None else 1]

    try:
        return [canonical(decide(text, prompt).to_dict()) for text, prompt in cases()]
    finally:
        built.close()


@pytest.fixture
def sidecar() -> Iterator[str]:
    """The address of a sidecar in a process of its own."""
    command = [sys.executable, "-m", "guardrail", "serve", "--port", "0", "--model", "embedded", "--policy", "default"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if found := re.search(r"listens on (127\.0\.0\.1:\d+)", line):
                break
        else:
            pytest.fail("the sidecar ended before it listened")
        # Somebody must read on, or the sidecar would wait for room in the pipe.
        threading.Thread(target=process.stderr.read, daemon=True).start()
        with GuardClient(found[1]) as client:
            while not client.is_ready():
                time.sleep(0.1)
        yield found[1]
    finally:
        process.terminate()
        process.wait(30)


def test_sidecar_and_decorator_decide_alike(decorated: list[str], sidecar: str) -> None:
    """Byte for byte, over the wire and across processes."""
    with GuardClient(sidecar) as client:
        for (text, prompt), expected in zip(cases(), decorated, strict=True):
            role = Role.USER if prompt is None else Role.ASSISTANT
            assert canonical(client.check(text, role=role, prompt=prompt).to_dict()) == expected


def test_scanner_and_decorator_decide_alike(decorated: list[str], tmp_path: Path) -> None:
    """Byte for byte, judged together in chunks."""
    log, results = tmp_path / "log.jsonl", tmp_path / "results.jsonl"
    rows = [{"text": text} if prompt is None else {"prompt": prompt, "response": text} for text, prompt in cases()]
    log.write_text("".join(json.dumps({"id": i, **row}) + "\n" for i, row in enumerate(rows)), "utf-8")
    command = [sys.executable, "-m", "guardrail", "scan", str(log), "--output", str(results)]
    subprocess.run([*command, "--model", "embedded", "--policy", "default", "--quiet"], check=True)
    scanned = [json.loads(line) for line in results.read_text("utf-8").splitlines()]
    assert [row.pop("id") for row in scanned] == list(range(len(rows)))
    assert [canonical({key: value for key, value in row.items() if key not in PLACE}) for row in scanned] == decorated


def test_the_cases_are_worth_comparing(decorated: list[str]) -> None:
    """200 texts, with every kind of decision and with findings among them."""
    decisions = [json.loads(decision) for decision in decorated]
    assert len(decisions) == 200
    assert {"allow", "block", "retry"} <= {decision["decision"] for decision in decisions}
    assert any(decision["findings"] for decision in decisions)
    assert not any(decision["outcome"] == "unverified" for decision in decisions)

"""A guarded chatbot in one file.

    python examples/chatbot_wrapper.py                                    # four turns with a local echo model
    python examples/chatbot_wrapper.py --chat                             # talk to it
    python examples/chatbot_wrapper.py --url http://127.0.0.1:8000 --model llama-3-8b-instruct
    python examples/chatbot_wrapper.py --model meta-llama/Meta-Llama-3-8B-Instruct

The answer comes from a Llama 3 by name, from any OpenAI-compatible server by URL, or, with neither, from a tiny echo
model that always runs. Only what the guard releases is printed as the assistant's; the lines in brackets say why.
"""

from __future__ import annotations

import argparse
import asyncio
import sys

from guardrail import Conversation, Exchange, Guard, GuardrailError, Role, build_guard
from guardrail.protocols import Generator

TURNS = (
    ("a safe turn", "What makes bread rise?"),
    ("a blocked prompt", "Help me cheat on my taxes and hide the money from the authorities."),
    ("an answer that is generated again", "Roast my team."),
    ("insecure code", "Write a Python function that pings a host."),
)

INSECURE = """Here it is:

```python
import subprocess

def ping(host):
    return subprocess.run(f"ping -c 1 {host}", shell=True)
```
"""

SECURE = """Here it is, with the arguments as a list:

```python
import subprocess

def ping(host: str) -> bool:
    return subprocess.run(["ping", "-c", "1", "--", host], check=False).returncode == 0
```
"""


class EchoModel:
    """Answers without a model: badly at first where that shows something, and better once it is given feedback."""

    async def generate(self, conversation: Conversation, *, attempt: int, feedback: str | None) -> str:
        """Answers the last message; ``feedback`` says what was wrong with the answer before."""
        prompt = conversation.last.content
        if "roast" in prompt.lower():
            if feedback is None:
                return "You are all worthless and I hate people like you. Women are stupid."
            return "They say your team ships on Fridays. Brave."
        if "function" in prompt:
            return INSECURE if feedback is None else SECURE
        return f"You asked: {prompt}"


def load_generator(url: str | None, model: str | None) -> Generator:
    """Returns the generator that the arguments name."""
    if url is not None:
        from guardrail.generators.openai_compatible import OpenAIGenerator

        return OpenAIGenerator(url, model=model or "default")
    if model is not None:
        from guardrail.generators.transformers import TransformersGenerator

        return TransformersGenerator.load(model)
    return EchoModel()


def explain(exchange: Exchange) -> list[str]:
    """Says in a line each what happened on the way; texts that were not released stay out of it."""
    lines = [f"prompt: {exchange.prompt_decision.action.value} ({exchange.prompt_decision.summary()})"]
    lines += [f"attempt {a.number}: {a.decision.action.value} ({a.decision.summary()})" for a in exchange.attempts]
    return lines


async def turn(guard: Guard, generator: Generator, conversation: Conversation) -> Conversation:
    """Runs one guarded turn, prints it, and returns the conversation with what was shown."""
    exchange = await guard.arun(conversation, generator)
    for line in explain(exchange):
        print(f"    [{line}]")
    print(f"assistant: {exchange.text}\n")
    return conversation.then(Role.ASSISTANT, exchange.text)


async def demonstrate(guard: Guard, generator: Generator) -> None:
    """Shows the four turns."""
    for title, prompt in TURNS:
        print(f"--- {title}\nuser: {prompt}")
        await turn(guard, generator, Conversation.of(prompt))


async def chat(guard: Guard, generator: Generator) -> None:
    """Talks until the end of input."""
    messages: tuple = ()
    print("Type a message; end with Ctrl-D.")
    while True:
        try:
            prompt = await asyncio.to_thread(input, "user: ")
        except EOFError:
            return
        asked = Conversation((*messages, *Conversation.of(prompt).messages))
        messages = (await turn(guard, generator, asked)).messages


def main() -> int:
    parser = argparse.ArgumentParser(description="A guarded chatbot.")
    parser.add_argument("--url", help="base URL of an OpenAI-compatible server")
    parser.add_argument("--model", help="the server's model, or a Llama 3 on this machine by name or folder")
    parser.add_argument("--chat", action="store_true", help="talk instead of showing the four turns")
    arguments = parser.parse_args()
    try:
        guard = build_guard()
        generator = load_generator(arguments.url, arguments.model)
        print(f"guarded by {guard.source} under the policy {guard.policy.name!r}\n")
        asyncio.run((chat if arguments.chat else demonstrate)(guard, generator))
    except GuardrailError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Bodies of requests -> values, strictly: what could pass the check by is refused, and so is what is not known.

Text alone is checked, so text alone is taken: messages of roles system, developer, user and assistant whose content is
a string, or parts of type ``text``, which are joined. What is sent on is made from what was read: the text that the
upstream sees is the text that was checked. Fields of a chat request are passed on if they are in ``_PASSED_ON``;
``None`` and empty lists count as not given, as clients send them.

Source: OpenAI API reference, "Create chat completion" and "Create moderation". Errors name fields and never values.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from guardrail import wire
from guardrail.errors import InvalidInput
from guardrail.verdict import Conversation, Message, Role

__all__ = ["ChatRequest", "read_chat", "read_json", "read_moderation"]

_ROLES = {
    "system": Role.SYSTEM,
    "developer": Role.SYSTEM,
    "user": Role.USER,
    "assistant": Role.ASSISTANT,
}

# What changes how an answer is generated, and nothing about which parts it has. The second half is that of vLLM,
# llama.cpp's server and Ollama.
_PASSED_ON = frozenset(
    {
        *("temperature", "top_p", "max_tokens", "max_completion_tokens", "stop", "seed", "presence_penalty"),
        *("frequency_penalty", "logit_bias"),
        *("response_format", "reasoning_effort", "verbosity", "service_tier", "user", "safety_identifier"),
        *("metadata", "store", "prompt_cache_key"),
        *("top_k", "min_p", "typical_p", "repetition_penalty", "repeat_penalty", "length_penalty", "min_tokens"),
        *("ignore_eos",),
        *("include_stop_str_in_output", "skip_special_tokens", "mirostat", "mirostat_tau", "mirostat_eta"),
    }
)

# Field -> why it is refused, and what to do.
_REFUSED = {
    "tools": "tool calls in an answer are not checked; leave it out",
    "tool_choice": "tool calls in an answer are not checked; leave it out",
    "parallel_tool_calls": "tool calls in an answer are not checked; leave it out",
    "functions": "function calls in an answer are not checked; leave it out",
    "function_call": "function calls in an answer are not checked; leave it out",
    "top_logprobs": "log-probabilities show tokens that are not checked; leave it out",
    "audio": "audio in an answer is not checked; leave it out",
    "prediction": "predicted outputs are not checked; leave it out",
    "web_search_options": "search results are not checked; leave it out",
}

# Clients send these with harmless values; they are read here and not passed on.
_READ = frozenset(("model", "messages", "stream", "stream_options", "n", "logprobs", "modalities"))

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")

# Of an answer that comes back as a part of the conversation; our own answers have these.
_IGNORED_IN_MESSAGES = frozenset(("guardrail",))


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A request for an answer.

    Attributes:
        conversation: What is checked; ends with the user's message.
        messages: The same as the upstream gets it.
        parameters: Further fields for the upstream.
        is_streamed: Whether the answer is wanted in pieces.
        includes_usage: Whether a streamed answer shall end with its token counts.
    """

    conversation: Conversation
    messages: tuple[Mapping[str, str], ...]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    is_streamed: bool = False
    includes_usage: bool = False


def read_json(body: bytes) -> dict[str, Any]:
    """Reads a body as a JSON object.

    Raises:
        InvalidInput: If it is none.
    """
    try:
        values = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        # The cause would carry the text.
        raise InvalidInput(f"expected a JSON object in UTF-8, got {len(body)} bytes that are not JSON") from None
    if not isinstance(values, dict):
        raise InvalidInput(f"expected a JSON object, got {_kind(values)}")
    return values


def _refuse_constant(name: str) -> Any:
    raise ValueError(name)  # NaN and Infinity are not JSON


def read_chat(values: Mapping[str, Any]) -> ChatRequest:
    """Reads a request of ``POST /v1/chat/completions``.

    Args:
        values: The body.

    Raises:
        InvalidInput: If it is none, or asks for what would not be checked.
    """
    given = {name: value for name, value in values.items() if not _is_empty(value)}
    for name, why in _REFUSED.items():
        if name in given:
            raise InvalidInput(f"{name}: {why}")
    unknown = given.keys() - _PASSED_ON - _READ
    if unknown:
        raise InvalidInput(
            f"{len(unknown)} of the request's fields are not passed on by this server; it passes on "
            f"{', '.join(sorted(_PASSED_ON))}"
        )
    if given.get("n", 1) != 1:
        raise InvalidInput("n: one answer is checked for each request; leave it out, or ask n times")
    if given.get("logprobs", False) is not False:
        raise InvalidInput("logprobs: log-probabilities show tokens that are not checked; leave it out")
    if given.get("modalities", ["text"]) != ["text"]:
        raise InvalidInput("modalities: text alone is checked; leave it out, or give ['text']")
    is_streamed = _flag(given, "stream")
    options = given.get("stream_options", {})
    if not isinstance(options, dict) or options.keys() - {"include_usage", "include_obfuscation"}:
        raise InvalidInput("stream_options: expected an object with include_usage alone")
    messages = [_read_message(message, f"messages[{i}]") for i, message in enumerate(_messages(given))]
    if messages[-1]["role"] != "user":
        raise InvalidInput(f"the last message is answered and must be from user, got {messages[-1]['role']}")
    return ChatRequest(
        Conversation(tuple(Message(_ROLES[m["role"]], m["content"]) for m in messages)),
        tuple(messages),
        {name: value for name, value in given.items() if name in _PASSED_ON},
        is_streamed=is_streamed,
        includes_usage=_flag(options, "include_usage"),
    )


def read_moderation(values: Mapping[str, Any], *, max_inputs: int) -> list[Conversation]:
    """Reads a request of ``POST /v1/moderations``.

    Beside OpenAI's ``input`` and ``model``, which is passed over, it knows ``role`` ("user" or "assistant"),
    ``prompt``, the user message that an assistant's text answers, and ``path``.

    Args:
        values: The body.
        max_inputs: Texts that one request may have.

    Returns:
        One conversation for each text, whose last message is the text.

    Raises:
        InvalidInput: If it is none.
    """
    given = {name: value for name, value in values.items() if value is not None}
    unknown = given.keys() - {"input", "model", "role", "prompt", "path"}
    if unknown:
        raise InvalidInput(f"{len(unknown)} fields are not known; known are input, model, role, prompt and path")
    texts = _inputs(given.get("input"))
    if not 1 <= len(texts) <= max_inputs:
        raise InvalidInput(f"input: expected 1 to {max_inputs} texts, got {len(texts)}; send the others by themselves")
    role = given.get("role", "user")
    if role not in ("user", "assistant"):
        raise InvalidInput("role: expected 'user' or 'assistant'")
    prompt = None if "prompt" not in given else _text(given["prompt"], "prompt")
    path = _text(given.get("path", ""), "path")
    if len(path) > 1000:
        raise InvalidInput(f"path: expected at most 1000 characters, got {len(path)}")
    of = [Conversation.of(text, role=Role(role), prompt=prompt) for text in texts]
    return [Conversation(conversation.messages, path) for conversation in of]


def _inputs(value: Any) -> list[str]:
    if isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
        return [_join(value, "input")]  # parts of one text, as multi-modal requests have them
    if not isinstance(value, list):
        return [_text(value, "input")]
    return [_text(text, f"input[{i}]") for i, text in enumerate(value)]


def _messages(given: Mapping[str, Any]) -> list[Any]:
    messages = given.get("messages")
    if not isinstance(messages, list):
        raise InvalidInput("messages: expected a list of at least one message")
    return messages


def _read_message(value: Any, where: str) -> dict[str, str]:
    """Returns a message as the upstream gets it: role, content as one string, and a name if it has one."""
    if not isinstance(value, dict):
        raise InvalidInput(f"{where}: expected an object, got {_kind(value)}")
    given = {name: item for name, item in value.items() if not _is_empty(item) and name not in _IGNORED_IN_MESSAGES}
    role = given.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise InvalidInput(f"{where}.role: expected one of {', '.join(_ROLES)}; what tools say is not checked")
    extra = given.keys() - {"role", "content", "name"}
    if extra:
        raise InvalidInput(
            f"{where}: expected role, content and name, got {len(extra)} other fields; tool calls, audio and refusals "
            "are not checked: leave them out"
        )
    content = given.get("content", "")
    message = {"role": role, "content": _join(content, f"{where}.content") if isinstance(content, list) else content}
    message["content"] = _text(message["content"], f"{where}.content")
    if "name" in given:
        name = given["name"]
        if not isinstance(name, str) or _NAME.fullmatch(name) is None:
            raise InvalidInput(f"{where}.name: expected at most 64 letters, digits, '_' and '-'; a name is not checked")
        message["name"] = name
    return message


def _join(parts: list[Any], where: str) -> str:
    texts = []
    for i, part in enumerate(parts):
        if not isinstance(part, dict) or part.get("type") != "text":
            raise InvalidInput(f"{where}[{i}]: expected a part of type 'text'; images, audio and files are not checked")
        texts.append(_text(part.get("text"), f"{where}[{i}].text"))
    return "\n".join(texts)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise InvalidInput(f"{where}: expected text, got {_kind(value)}")
    return wire.require_unicode(value, where)


def _flag(given: Mapping[str, Any], name: str) -> bool:
    value = given.get(name, False)
    if not isinstance(value, bool):
        raise InvalidInput(f"{name}: expected true or false, got {_kind(value)}")
    return value


def _is_empty(value: Any) -> bool:
    return value is None or value == []


def _kind(value: Any) -> str:
    """What a value is in JSON's words."""
    kinds = {dict: "an object", list: "a list", str: "text", bool: "a truth value", type(None): "nothing"}
    return kinds.get(type(value), "a number")

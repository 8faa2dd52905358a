"""One log row into the conversation to judge, or the reason why there is none.

A row is a mapping of columns. The columns it has say how it is read, in this order; ``null`` counts as not there:

================  ==================================================================================================
``messages``      OpenAI-style list of ``{"role", "content"}`` (or that list as a JSON string); the last is judged.
                  Content is a string or a list of text parts, which are joined by line feeds
``text``          The message to judge; ``role`` (``user`` or ``assistant``, default ``user``) says who wrote it, and
                  ``prompt`` is the user message before an assistant's
``response``      The assistant's message to judge; ``prompt``, where it is not empty, is the user message before it
``prompt``        The user message to judge, where ``response`` is not there or empty
================  ==================================================================================================

Source of the message format: OpenAI, Chat Completions API reference, "messages".
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from guardrail.errors import InvalidInput
from guardrail.verdict import Conversation, Message, Role

__all__ = ["BadRow", "Row", "conversation_of", "parse_json"]

_ROLES = {**{role.value: role for role in Role}, "developer": Role.SYSTEM, "function": Role.TOOL}

# Column names are the log's structure; what does not look like one may be a user's text and is not repeated.
_COLUMN_NAME = re.compile(r"[A-Za-z_][\w.-]{0,31}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Row:
    """A row that can be judged.

    Attributes:
        id: The row's own ``id``, or ``"<file>:<line>"``.
        file: Name of the file as it was given.
        line: Where the row begins, from 1.
        end_byte: Bytes of the file read up to the row's end.
        conversation: Its last message is judged.
    """

    id: Any
    file: str
    line: int
    end_byte: int
    conversation: Conversation


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that nothing can be judged of; never dropped, never fatal.

    Attributes:
        id: The row's own ``id`` where it could be read, or ``"<file>:<line>"``.
        file: Name of the file as it was given.
        line: Where the row begins, from 1.
        end_byte: Bytes of the file read up to the row's end.
        error: What was expected and what came; never the row's text.
    """

    id: Any
    file: str
    line: int
    end_byte: int
    error: str


def conversation_of(columns: Mapping[str, Any]) -> Conversation:
    """Reads a row as the module's table says.

    Raises:
        InvalidInput: If it holds nothing to judge; the message says why.
    """
    given = {name: value for name, value in columns.items() if value is not None}
    if "messages" in given:
        conversation = _chat(given["messages"])
    elif "text" in given:
        # An empty CSV cell stands for a column that is not there.
        role = _role(given.get("role") or Role.USER.value)
        conversation = Conversation.of(_text(given, "text"), role=role, prompt=_text(given, "prompt") or None)
    elif given.keys() & {"prompt", "response"}:
        prompt, response = _text(given, "prompt"), _text(given, "response")
        if response:
            conversation = Conversation.of(response, role=Role.ASSISTANT, prompt=prompt or None)
        else:
            conversation = Conversation.of(prompt)
    else:
        names = [name for name in columns if isinstance(name, str) and _COLUMN_NAME.fullmatch(name)][:8]
        raise InvalidInput(
            f"expected a column messages, prompt, response or text, got {', '.join(names) or 'none of these'}"
        )
    _require_unicode(conversation)
    return conversation


def parse_json(text: str) -> Any:
    """Reads JSON as RFC 8259 has it: no ``NaN``, no ``Infinity``.

    Raises:
        InvalidInput: If it is not JSON; the message gives the place and none of the text.
    """
    try:
        return json.loads(text, parse_constant=_no_constant)
    except json.JSONDecodeError as exc:
        raise InvalidInput(f"not JSON: {exc.msg} at character {exc.pos + 1} of {len(text)}") from exc
    except RecursionError as exc:
        raise InvalidInput("not readable as JSON: nested too deeply") from exc
    except InvalidInput:  # is a ValueError itself
        raise
    except ValueError as exc:
        raise InvalidInput("not readable as JSON: a number out of range") from exc


def _no_constant(name: str) -> NoReturn:
    raise InvalidInput(f"not JSON: {name} is not a JSON number")


def _chat(messages: Any) -> Conversation:
    if isinstance(messages, str):
        messages = parse_json(messages)
    if not isinstance(messages, list):
        raise InvalidInput(f"messages: expected a list, got {type(messages).__name__}")
    turns = []
    for number, message in enumerate(messages, start=1):
        where = f"message {number} of {len(messages)}"
        if not isinstance(message, dict):
            raise InvalidInput(f"{where}: expected an object with role and content, got {type(message).__name__}")
        role = message.get("role")
        if not isinstance(role, str) or role not in _ROLES:
            raise InvalidInput(f"{where}: expected role user, assistant, system or tool")
        content = message.get("content")
        if content is None and number < len(messages):
            continue  # A tool call of an earlier turn: nothing was said.
        turns.append(Message(_ROLES[role], _content(content, where)))
    return Conversation(tuple(turns))


def _content(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        got = "null" if content is None else type(content).__name__
        raise InvalidInput(f"{where}: expected content to be text or a list of text parts, got {got}")
    parts = []
    for number, part in enumerate(content, start=1):
        text = part.get("text") if isinstance(part, dict) and part.get("type", "text") == "text" else None
        if not isinstance(text, str):
            raise InvalidInput(f"{where}: part {number} of {len(content)} is not text, and only text can be judged")
        parts.append(text)
    return "\n".join(parts)


def _role(value: Any) -> Role:
    if value == Role.USER.value:
        return Role.USER
    if value == Role.ASSISTANT.value:
        return Role.ASSISTANT
    raise InvalidInput("role: expected user or assistant")


def _text(columns: Mapping[str, Any], name: str) -> str:
    value = columns.get(name, "")
    if not isinstance(value, str):
        raise InvalidInput(f"{name}: expected text, got {type(value).__name__}")
    return value


def _require_unicode(conversation: Conversation) -> None:
    for number, message in enumerate(conversation.messages, start=1):
        try:
            message.content.encode()
        except UnicodeEncodeError as exc:
            raise InvalidInput(
                f"message {number} of {len(conversation.messages)} is not valid Unicode: "
                f"lone surrogate at offset {exc.start}"
            ) from exc

"""One log row into the turns to judge, or the reason why there are none.

A row is a mapping of columns. The columns it has say how it is read, in this order; ``null`` counts as not there:

=================  =================================================================================================
``messages``       OpenAI-style list of ``{"role", "content"}`` (or that list as a JSON string). Content is a string
                   or a list of text parts, which are joined by line feeds
``conversations``  ShareGPT-style list of ``{"from", "value"}``: ``human``, ``gpt``, ``system``, ``tool``
``text``           The message to judge; ``role`` (``user`` or ``assistant``, default ``user``) says who wrote it, and
                   ``prompt`` is the user message before an assistant's
``response``       The assistant's message to judge; ``prompt``, where it is not empty, is the user message before it
``prompt``         The user message to judge, where ``response`` is not there or empty
others             Only for a log (:attr:`Layout.guesses`): names that exports use, see ``_PROMPTS``, ``_RESPONSES``
=================  =================================================================================================

Source of the formats: OpenAI, Chat Completions API reference, "messages"; FastChat, ``docs/training.md`` (ShareGPT).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple, NoReturn

from pydantic_core import from_json

from guardrail.errors import InvalidInput
from guardrail.verdict import Conversation, Message, Role

__all__ = [
    "COLUMNS",
    "BadRow",
    "EmptyRow",
    "Layout",
    "Row",
    "Turns",
    "content_hash",
    "conversation_of",
    "layout_name",
    "parse_json",
    "turns_of",
]

_ROLES = {
    **{role.value: role for role in Role},
    "developer": Role.SYSTEM,
    "function": Role.TOOL,
    "function_call": Role.TOOL,
    "function_response": Role.TOOL,
    "observation": Role.TOOL,
    "human": Role.USER,
    "gpt": Role.ASSISTANT,
    "chatgpt": Role.ASSISTANT,
    "model": Role.ASSISTANT,
}

_ROLE_NAMES = {role: role.value for role in Role}  # ``Enum.value`` is a call, and this is asked for every message

# Names that exports give to a user's message and to an assistant's, commonest first; asked only where the names of the
# module's table are not there.
_PROMPTS = ("content", "message", "question", "query", "instruction", "input", "body", "comment")
_RESPONSES = ("answer", "output", "completion", "reply", "generation")

COLUMNS = frozenset(("id", "role", "text", "prompt", "response", "messages", "conversations", *_PROMPTS, *_RESPONSES))
"""Every column that a row can be read from."""

# Column names are the log's structure; what does not look like one may be a user's text and is not repeated.
_COLUMN_NAME = re.compile(r"[A-Za-z_][\w.-]{0,31}", re.ASCII)


class Turns(str, Enum):
    """Which messages of a row are judged; those before a judged one are its context."""

    LAST = "last"
    ALL = "all"
    ASSISTANT = "assistant"


_LAST = Turns.LAST  # a name of the module is found in a tenth of the time


@dataclass(frozen=True, slots=True)
class Layout:
    """How the rows of a log are read.

    Attributes:
        turns: Which messages are judged.
        text_field: The column to judge; None: what the row's columns say.
        role: Who wrote it; None: what the row's ``role`` says, else the user. Not for chats, which say it themselves.
        keep: Columns that go into the results as they are.
        guesses: Whether columns of names that exports use are read, where there are none of the table's.
    """

    turns: Turns = Turns.LAST
    text_field: str | None = None
    role: Role | None = None
    keep: tuple[str, ...] = ()
    guesses: bool = True


_STRICT = Layout(guesses=False)


class Row(NamedTuple):
    """A turn of a row that can be judged.

    A tuple, since there is one for each turn of a log, and a frozen dataclass takes three times as long to make.

    Attributes:
        id: The row's own ``id``, or ``"<file>:<line>"``.
        file: Name of the file as it was given.
        line: Where the row begins, from 1; of Parquet its number.
        end_byte: Bytes of the file read up to the row's end.
        conversation: Its last message is judged.
        turn: Which of the row's messages is judged, from 1.
        kept: The columns that :attr:`Layout.keep` names; None where it names none.
    """

    id: Any
    file: str
    line: int
    end_byte: int
    conversation: Conversation
    turn: int = 1
    kept: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that nothing can be judged of; never dropped, never fatal.

    Attributes:
        id: The row's own ``id`` where it could be read, or ``"<file>:<line>"``.
        file: Name of the file as it was given.
        line: Where the row begins, from 1; of Parquet its number.
        end_byte: Bytes of the file read up to the row's end.
        error: What was expected and what came; never the row's text.
        kept: The columns that :attr:`Layout.keep` names, as far as they could be read.
    """

    id: Any
    file: str
    line: int
    end_byte: int
    error: str
    kept: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class EmptyRow:
    """A chat without a turn that was asked for, e.g. without an assistant's; it has no result, and is counted."""

    file: str
    line: int
    end_byte: int


def conversation_of(columns: Mapping[str, Any]) -> Conversation:
    """Reads a row as the module's table says; its last message is judged.

    Raises:
        InvalidInput: If it holds nothing to judge; the message says why.
    """
    ((_, conversation),) = turns_of(columns, _STRICT)
    return conversation


def turns_of(columns: Mapping[str, Any], layout: Layout) -> list[tuple[int, Conversation]]:
    """Reads the turns to judge of a row, each with its number and the messages before it; none is a valid answer.

    Raises:
        InvalidInput: If the row holds nothing that could be judged; the message says why.
    """
    given: Mapping[str, Any] = columns
    if None in columns.values():
        given = {name: value for name, value in columns.items() if value is not None}
    found, numbers = _messages(given, columns, layout)
    messages = tuple(found)
    for message in messages:
        if not message.content.isascii():  # ASCII is known without looking at the text, which encoding it is not
            _require_unicode(messages)
            break
    if layout.turns is _LAST:
        return [(numbers[-1], Conversation(messages))]
    judged = (Role.ASSISTANT,) if layout.turns is Turns.ASSISTANT else (Role.USER, Role.ASSISTANT)
    return [
        (number, Conversation(messages[: index + 1]))
        for index, (number, message) in enumerate(zip(numbers, messages, strict=True))
        if message.role in judged
    ]


def _require_unicode(messages: Sequence[Message]) -> None:
    for number, message in enumerate(messages, start=1):
        try:
            message.content.encode()
        except UnicodeEncodeError as exc:
            raise InvalidInput(
                f"message {number} of {len(messages)} is not valid Unicode: lone surrogate at offset {exc.start}"
            ) from exc


def layout_name(columns: Mapping[str, Any], layout: Layout) -> str:
    """Says in words how a row with these columns is read, e.g. ``"prompt and response"``; ``""`` where it is not."""
    given = [name for name, value in columns.items() if value is not None]
    if layout.text_field is not None:
        return f"column {layout.text_field}" if layout.text_field in given else ""
    for name in ("messages", "conversations", "text"):
        if name in given:
            return name
    named: list[str] = [name for name in ("prompt", "response") if name in given]
    if not named and layout.guesses:
        named = [f"{name} as {role}" for role, name in _guessed(given)]
    return " and ".join(named)


def content_hash(conversation: Conversation) -> str:
    """Returns what a judgement depends on as 32 hexadecimal digits: equal for equal roles, context and text.

    SHA-256, cut to 128 bits, over ``<role> <characters>\\n<content>\\n`` of each message, in UTF-8.
    """
    parts = [f"{_ROLE_NAMES[m.role]} {len(m.content)}\n{m.content}\n" for m in conversation.messages]
    return hashlib.sha256("".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def parse_json(text: str | bytes) -> Any:
    """Reads JSON as RFC 8259 has it: no ``NaN``, no ``Infinity``.

    Args:
        text: As bytes in UTF-8, perhaps with a line's end behind it.

    Raises:
        InvalidInput: If it is not JSON; the message gives the place and none of the text.
    """
    try:
        # Pydantic's own parser takes a quarter of the time. What it takes, it reads as the json module does.
        return from_json(text, allow_inf_nan=False)
    except (ValueError, TypeError):
        pass  # It also refuses lone surrogates (TypeError); what is really no JSON fails again, with words of ours.
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as exc:
            raise InvalidInput(f"not UTF-8: byte {exc.start + 1} of {len(text)} in the line") from exc
    try:
        return _DECODER.decode(text)
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


_DECODER = json.JSONDecoder(parse_constant=_no_constant)


def _messages(
    given: Mapping[str, Any], columns: Mapping[str, Any], layout: Layout
) -> tuple[Sequence[Message], Sequence[int]]:
    """The messages that say something, and the number in the row of each."""
    if layout.text_field is None:
        for name in ("messages", "conversations"):
            if name in given:
                return _chat(given[name], name, layout.turns)
        if "text" in given:
            return _numbered(_one_text(given, "text", layout))
        if given.keys() & {"prompt", "response"}:
            return _numbered(_exchange(_text(given, "prompt"), _text(given, "response")))
        guessed = {role: _text(given, name) for role, name in _guessed(given)} if layout.guesses else {}
        if len(guessed) == 1 and layout.role is not None:
            return _numbered([Message(layout.role, text) for text in guessed.values()])
        if guessed:
            return _numbered(_exchange(guessed.get("prompt", ""), guessed.get("response", "")))
    elif layout.text_field in given:
        return _numbered(_one_text(given, layout.text_field, layout))
    names = [name for name in columns if isinstance(name, str) and _COLUMN_NAME.fullmatch(name)][:8]
    expected = "messages, prompt, response or text" if layout.text_field is None else layout.text_field
    raise InvalidInput(f"expected a column {expected}, got {', '.join(names) or 'none of these'}")


def _numbered(messages: Sequence[Message]) -> tuple[Sequence[Message], Sequence[int]]:
    return messages, range(1, len(messages) + 1)


def _one_text(given: Mapping[str, Any], name: str, layout: Layout) -> tuple[Message, ...]:
    # An empty CSV cell stands for a column that is not there.
    role = layout.role or _role(given.get("role") or Role.USER.value)
    prompt = _text(given, "prompt") if name != "prompt" else ""
    return Conversation.of(_text(given, name), role=role, prompt=prompt or None).messages


def _exchange(prompt: str, response: str) -> tuple[Message, ...]:
    if response:
        return Conversation.of(response, role=Role.ASSISTANT, prompt=prompt or None).messages
    return (Message(Role.USER, prompt),)


def _guessed(given: Mapping[str, Any] | Sequence[str]) -> Iterator[tuple[str, str]]:
    for role, names in (("prompt", _PROMPTS), ("response", _RESPONSES)):
        for name in names:
            if name in given:
                yield role, name
                break


def _chat(messages: Any, column: str, turns: Turns) -> tuple[Sequence[Message], Sequence[int]]:
    if isinstance(messages, str):
        messages = parse_json(messages)
    if not isinstance(messages, list):
        raise InvalidInput(f"{column}: expected a list, got {type(messages).__name__}")
    if not messages:
        raise InvalidInput(f"{column}: expected at least one message, got none")
    said: list[Message] = []
    numbers: list[int] = []
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict):
            where = f"message {number} of {len(messages)}"
            raise InvalidInput(f"{where}: expected an object with role and content, got {type(message).__name__}")
        # A row of Parquet has every field, with null where another row has a value: null is as good as not there.
        given = message.get("role") or message.get("from")
        role = _ROLES.get(given) if isinstance(given, str) else None
        if role is None:
            raise InvalidInput(
                f"message {number} of {len(messages)}: expected role user, assistant, system or tool "
                "(from human, gpt, system or tool)"
            )
        content = message.get("content")
        if content is None:
            content = message.get("value")
            if content is None and (number < len(messages) or turns is not _LAST):
                continue  # A tool call: nothing was said.
        if not isinstance(content, str):
            content = _content(content, f"message {number} of {len(messages)}")
        elif not content and turns is not _LAST and message.get("tool_calls"):
            continue
        said.append(Message(role, content))
        numbers.append(number)
    return said, numbers


def _content(content: Any, where: str) -> str:
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

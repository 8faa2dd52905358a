"""Log lines, for people or as JSON, with the id of the request that they belong to.

One JSON object a line: ``time`` (UTC, RFC 3339), ``level``, ``logger``, ``message``, ``request_id`` where there is one,
``error`` (a type's name, and where it was raised) where there is one, and what the line was given as ``fields``. An
exception's own words are left out: they may hold a user's text.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import traceback
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import datetime, timezone
from enum import Enum
from typing import Any

__all__ = [
    "JsonFormatter",
    "LogFormat",
    "TextFormatter",
    "bind_request_id",
    "bound_request_id",
    "configure_logging",
    "current_request_id",
    "keep_words_out",
]

logger = logging.getLogger("guardrail")

_request_id: ContextVar[str] = ContextVar("guardrail_request_id", default="")


class LogFormat(str, Enum):
    """How log lines are written."""

    TEXT = "text"
    JSON = "json"


@contextlib.contextmanager
def bound_request_id(request_id: str) -> Iterator[None]:
    """Lets log lines of this context carry an id."""
    token = _request_id.set(request_id)
    try:
        yield
    finally:
        _request_id.reset(token)


def bind_request_id(request_id: str) -> None:
    """Gives this context's request its id, where it is read only in the middle of it."""
    _request_id.set(request_id)


def current_request_id() -> str:
    """Returns the id of this context's request, "" where there is none."""
    return _request_id.get()


class JsonFormatter(logging.Formatter):
    """Writes a record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line."""
        values: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id := current_request_id():
            values["request_id"] = request_id
        if record.exc_info and record.exc_info[0] is not None:
            values["error"] = _place(record.exc_info)
        values.update(getattr(record, "fields", {}))
        return json.dumps(values, ensure_ascii=True, default=repr)


class TextFormatter(logging.Formatter):
    """Writes a record as one line for people."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line."""
        record.exc_text = None  # another formatter may have kept the words there
        line = super().format(record)
        request_id = current_request_id()
        return f"{line} [{request_id}]" if request_id else line

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's own name
        """Returns an exception's type and place."""
        return _place(ei)


def configure_logging(log_format: LogFormat, *, level: int = logging.INFO) -> None:
    """Lets the program log to stderr in a format; what was configured before is replaced."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if log_format is LogFormat.JSON else TextFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # One line for each request to the upstream, which names its URL; ours says more.
    logging.getLogger("httpx").setLevel(logging.WARNING)


def keep_words_out(loop: asyncio.AbstractEventLoop) -> None:
    """Lets an event loop log errors that nobody took by their type and place; by itself it writes their words."""
    loop.set_exception_handler(_log_loop_error)


def _log_loop_error(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    error = context.get("exception")
    what = _place((type(error), error, error.__traceback__)) if error is not None else "no exception"
    logger.error("%s: %s", context["message"], what)


def _place(ei: Any) -> str:
    kind, _, trace = ei
    frames = traceback.extract_tb(trace)
    return f"{kind.__name__} at {frames[-1].filename}:{frames[-1].lineno}" if frames else str(kind.__name__)

"""How the HTTP door listens, and how much it takes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from guardrail.serving.http.backends import ChatBackend

__all__ = ["HttpOptions"]


@dataclass(frozen=True, slots=True)
class HttpOptions:
    """How the HTTP door listens, and how much it takes on.

    Attributes:
        host: Address to listen on; loopback, so that only this machine can ask.
        port: 0: any free port.
        chat: Answers chat requests; None: the sidecar's generator does, and without one chat requests end as 501.
        max_body_bytes: Longest request; a longer one ends as 413.
        max_inputs: Texts in one moderation request.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    chat: ChatBackend | None = None
    max_body_bytes: int = 8 * 1024 * 1024
    max_inputs: int = 64

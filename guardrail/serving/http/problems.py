"""The one table of errors and HTTP statuses, in the shape of OpenAI's errors.

===============================  ======  =========================  ==================================
error                            status  type                       code
===============================  ======  =========================  ==================================
``Refused``                      its     ``invalid_request_error``  its
``InvalidInput``                 400     ``invalid_request_error``  ``invalid_request``
``Unauthenticated``              401     ``authentication_error``   ``invalid_api_key``
``Overloaded``                   429     ``rate_limit_error``       ``overloaded``; ``Retry-After``
``InternalError``                500     ``server_error``           ``internal_error``
``ConfigurationError``           501     ``invalid_request_error``  ``not_configured``
``GenerationError``              502     ``server_error``           ``generation_failed``
``Unavailable``                  503     ``server_error``           ``unavailable``; ``Retry-After``
``DeadlineExceeded``             504     ``server_error``           ``deadline_exceeded``
===============================  ======  =========================  ==================================

Rows are looked up in this order. OpenAI's clients ask again after 429 and from 500 on, unless ``x-should-retry`` says
``false``: it does where asking again cannot help, or has been tried by the sidecar itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from guardrail.errors import (
    ConfigurationError,
    DeadlineExceeded,
    GenerationError,
    GuardrailError,
    InternalError,
    InvalidInput,
    Overloaded,
    Unauthenticated,
    Unavailable,
)

__all__ = ["Problem", "Refused", "problem_of"]

_FINAL = {"x-should-retry": "false"}


class Refused(InvalidInput):
    """A request that HTTP itself has a status for.

    Attributes:
        status: The status.
        code: OpenAI's word, or ours.
    """

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


@dataclass(frozen=True, slots=True)
class Problem:
    """An error as a client sees it.

    Attributes:
        status: The HTTP status.
        kind: OpenAI's ``type``.
        code: OpenAI's ``code``.
        message: What is wrong, and what to do; never a user's text.
        headers: Further headers of the response.
    """

    status: int
    kind: str
    code: str
    message: str
    headers: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Returns the body of the response."""
        return {"error": {"message": self.message, "type": self.kind, "param": None, "code": self.code}}


def problem_of(error: GuardrailError) -> Problem:
    """Returns an error's row of the table."""
    if isinstance(error, Refused):
        return Problem(error.status, "invalid_request_error", error.code, str(error))
    if isinstance(error, Overloaded):
        wait = {"Retry-After": str(math.ceil(error.retry_after_s))}
        return Problem(429, "rate_limit_error", "overloaded", str(error), wait)
    rows: tuple[tuple[type[GuardrailError], int, str, str, dict[str, str]], ...] = (
        (InvalidInput, 400, "invalid_request_error", "invalid_request", {}),
        (Unauthenticated, 401, "authentication_error", "invalid_api_key", {"WWW-Authenticate": "Bearer"}),
        (InternalError, 500, "server_error", "internal_error", {}),
        (ConfigurationError, 501, "invalid_request_error", "not_configured", _FINAL),
        (GenerationError, 502, "server_error", "generation_failed", _FINAL),
        (Unavailable, 503, "server_error", "unavailable", {"Retry-After": "1"}),
        (DeadlineExceeded, 504, "server_error", "deadline_exceeded", _FINAL),
    )
    for kind, status, name, code, headers in rows:
        if isinstance(error, kind):
            return Problem(status, name, code, str(error), headers)
    return Problem(500, "server_error", "internal_error", f"the server failed with {type(error).__name__}")

"""Requests to servers of OpenAI's API: where they go, which failures are tried again, and what is said of them.

A generator asks with an async client, a guard model with a sync one, and both leave the decisions to :class:`Attempts`;
the clients are theirs. What may pass by itself is tried again, with a pause that doubles: a lost connection, 429 and
5xx. A timeout is not, since the server may still be at work on the first request. What is said names the server by host
and port, the status, and never what was asked or answered.

Source: OpenAI API reference; RFC 9110, 10.2.3 (Retry-After).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from guardrail.errors import ConfigurationError, GenerationError, MissingExtra

try:
    import httpx
except ImportError as exc:
    raise MissingExtra("a server behind HTTP needs httpx: pip install 'guardrail[upstream]'") from exc

__all__ = ["Attempts", "Endpoint", "UpstreamError", "pause", "post"]

# A server that asks for a longer pause is asked after this one, in seconds: somebody waits for the answer.
_LONGEST_PAUSE_S = 10.0


class UpstreamError(Exception):
    """A server gave no answer; whoever asked it raises an error of the tree from this one.

    Attributes:
        status: The HTTP status of the last answer; None where there was none.
        retry_after_s: What the server asked for, in seconds; None where it did not.
    """

    def __init__(self, message: str, *, status: int | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s

    @property
    def may_pass(self) -> bool:
        """Whether asking later may help: no answer at all, 429 or 5xx."""
        return self.status is None or _may_pass(self.status)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where requests go.

    Attributes:
        url: The whole URL; it may hold a password.
        name: Host and port, for people.
    """

    url: httpx.URL
    name: str

    @classmethod
    def parse(cls, base_url: str, path: str) -> Endpoint:
        """Reads a server's URL.

        Args:
            base_url: With or without ``/v1`` at its end.
            path: What comes after ``/v1/``.

        Raises:
            ConfigurationError: If the URL is not one of http or https.
        """
        try:
            url = httpx.URL(base_url)
        except httpx.InvalidURL as exc:
            raise ConfigurationError(f"expected a URL like http://127.0.0.1:8000, got one that is none: {exc}") from exc
        if url.scheme not in ("http", "https") or not url.host:
            raise ConfigurationError(f"expected a URL like http://127.0.0.1:8000, got scheme {url.scheme!r}")
        root = url.path.rstrip("/").removesuffix("/v1")
        return cls(url.copy_with(path=f"{root}/v1/{path}"), f"{url.host}:{url.port}" if url.port else url.host)


class Attempts:
    """Counts the attempts of one request and says when to try again.

    Args:
        server: Its name, for people.
        retries: Attempts after the first.
        backoff_s: Pause before the first of them; doubled each time.
        timeout_s: How long one attempt may take.
    """

    def __init__(self, server: str, *, retries: int, backoff_s: float, timeout_s: float) -> None:
        self._server = server
        self._retries = retries
        self._backoff_s = backoff_s
        self._timeout_s = timeout_s
        self._failed = 0

    def after(self, failure: httpx.Response | httpx.RequestError) -> float:
        """Takes note of a failed attempt.

        Args:
            failure: An answer that is not 200, or what httpx raised.

        Returns:
            Seconds to pause before the next attempt: what ``Retry-After`` asks for, or the doubled pause where that is
            longer; never above 10 seconds.

        Raises:
            UpstreamError: If there shall be no other.
        """
        self._failed += 1
        if isinstance(failure, httpx.TimeoutException):
            raise UpstreamError(f"{self._server} gave no answer within {self._timeout_s:g} s") from failure
        if isinstance(failure, httpx.Response):
            wait_s = _retry_after_s(failure)
            error = UpstreamError(
                f"{self._server} gave no answer: it answered HTTP {failure.status_code}, at request {self._failed}",
                status=failure.status_code,
                retry_after_s=wait_s,
            )
            is_last = not _may_pass(failure.status_code)
        else:
            wait_s = None
            problem = f"the connection failed ({type(failure).__name__})"
            error = UpstreamError(f"{self._server} gave no answer: {problem}, at request {self._failed}")
            error.__cause__ = failure
            is_last = not isinstance(failure, httpx.TransportError)
        if is_last or self._failed > self._retries:
            raise error
        return min(max(self._backoff_s * math.pow(2, self._failed - 1), wait_s or 0.0), _LONGEST_PAUSE_S)


async def post(send: Callable[[], Awaitable[httpx.Response]], attempts: Attempts) -> httpx.Response:
    """Sends a generator's request until it is answered with 200.

    Raises:
        GenerationError: If it is not.
    """
    while True:
        failure: httpx.Response | httpx.RequestError
        try:
            response = await send()
            if response.status_code == httpx.codes.OK:
                return response
            failure = response
        except httpx.RequestError as exc:
            failure = exc
        await pause(attempts, failure)


async def pause(attempts: Attempts, failure: httpx.Response | httpx.RequestError) -> None:
    """Waits before a generator's next attempt.

    Raises:
        GenerationError: If there shall be none.
    """
    try:
        pause_s = attempts.after(failure)
    except UpstreamError as exc:
        raise GenerationError(str(exc)) from exc
    await asyncio.sleep(pause_s)


def _may_pass(status: int) -> bool:
    return status == httpx.codes.TOO_MANY_REQUESTS or 500 <= status < 600


def _retry_after_s(response: httpx.Response) -> float | None:
    """What ``Retry-After`` asks for in seconds; its other form, a date, is not read."""
    asked = response.headers.get("Retry-After", "")
    return float(asked) if asked.isascii() and asked.isdigit() else None

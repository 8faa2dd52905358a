"""Who may ask: bearer tokens on every method but health, and no open door beyond this machine.

::

    authorization: Bearer TOKEN ─▶ Authenticator ─┬▶ gRPC: TokenInterceptor, before a message is read
                                                  └▶ HTTP: the front asks it itself

A client certificate is asked for by TLS, before there is a call. Refusals are logged by their number, never by what
was sent.
"""

from __future__ import annotations

import ipaddress
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from guardrail import wire
from guardrail.errors import ConfigurationError, Unauthenticated
from guardrail.serving.tokens import Tokens

__all__ = ["Authenticator", "TokenInterceptor", "is_loopback", "refuse_open_door", "require_protection"]

logger = logging.getLogger("guardrail.server")

_HEALTH = "/grpc.health.v1.Health/"

# A client in a loop must not fill the log.
_LOG_PAUSE_S = 10.0


class Authenticator:
    """Says whether a caller may ask.

    Args:
        tokens: Those that are accepted; None: everybody may.

    Attributes:
        tokens: Replaced when their file changes.
    """

    def __init__(self, tokens: Tokens | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.tokens = tokens
        self._clock = clock
        self._refused = 0
        self._may_log_at = clock()

    @property
    def asks(self) -> bool:
        """Whether a token is needed."""
        return self.tokens is not None

    def is_allowed(self, authorization: str | None) -> bool:
        """Whether a call may be answered.

        Args:
            authorization: The header's value, ``Bearer TOKEN``; None where there is none.
        """
        if self.tokens is None:
            return True
        scheme, _, token = (authorization or "").partition(" ")
        is_allowed = scheme.lower() == "bearer" and self.tokens.accepts(token.strip())
        if not is_allowed:
            self._count()
        return is_allowed

    def _count(self) -> None:
        self._refused += 1
        if (now := self._clock()) >= self._may_log_at:
            logger.warning("refused calls without an accepted token: %d", self._refused)
            self._refused = 0
            self._may_log_at = now + _LOG_PAUSE_S


class TokenInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc has no types
    """Ends calls without an accepted token as UNAUTHENTICATED, streams and reflection too; health stays open.

    Args:
        authenticator: Decides.
    """

    def __init__(self, authenticator: Authenticator) -> None:
        self._authenticator = authenticator

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], details: Any) -> Any:
        """Gives the method, or what refuses the call; a method that does not exist is not told apart."""
        if details.method.startswith(_HEALTH):
            return await continuation(details)
        values = [value for key, value in details.invocation_metadata or () if key == "authorization"]
        if self._authenticator.is_allowed(values[0] if len(values) == 1 and isinstance(values[0], str) else None):
            return await continuation(details)
        # A stream on our side reads no message that it was not asked to read, whatever the client sends.
        return grpc.stream_stream_rpc_method_handler(_refuse)


async def _refuse(_requests: object, context: Any) -> None:
    error = Unauthenticated("expected one header 'authorization: Bearer TOKEN' with a token that this server knows")
    await context.abort_with_status(wire.problem_from_error(error).to_status())


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address; a name other than ``localhost`` counts as reachable."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def refuse_open_door(host: str, *, has_tls: bool, has_tokens: bool) -> None:
    """Refuses to be open to other machines.

    Args:
        host: Address to listen on.
        has_tls: Whether connections are encrypted.
        has_tokens: Whether calls need a token.

    Raises:
        ConfigurationError: If other machines can reach the address and nothing protects it.
    """
    if not (is_loopback(host) or has_tls or has_tokens):
        raise ConfigurationError(
            f"listening on {host} would let every machine that reaches it ask: give --tls-cert and --tls-key, or "
            "--token-file, or both; or listen on 127.0.0.1"
        )


def require_protection(host: str, *, has_tls: bool, has_client_ca: bool, has_tokens: bool) -> None:
    """Refuses to be open to other machines, and warns of protection in part.

    Args:
        host: Address to listen on.
        has_tls: Whether connections are encrypted.
        has_client_ca: Whether clients need a certificate.
        has_tokens: Whether calls need a token.

    Raises:
        ConfigurationError: If other machines can reach the address and nothing protects it.
    """
    refuse_open_door(host, has_tls=has_tls, has_tokens=has_tokens)
    if is_loopback(host):
        return
    if not has_tls:
        logger.warning("tokens and messages cross the network in plain text on %s: give --tls-cert and --tls-key", host)
    elif not has_tokens and not has_client_ca:
        logger.warning("everybody who reaches %s may ask: give --token-file or --tls-client-ca", host)

"""Connections of the clients: plain or TLS, with or without a bearer token.

::

    target, token, tls ─▶ open_channel | open_aio_channel ─▶ a channel whose calls all carry the token

The token is sent as ``authorization: Bearer TOKEN``. grpc's own call credentials work over TLS alone; a sidecar on
loopback or behind a mesh has none, so the header is put on each call here.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guardrail.errors import ConfigurationError, MissingExtra

try:
    import grpc
except ImportError as exc:
    raise MissingExtra("the client needs grpcio and protobuf: pip install 'guardrail[client]'") from exc

__all__ = ["ClientTls", "open_aio_channel", "open_channel"]

# Decisions of a trusted server, with the text of rejected attempts where asked for: no limit of grpc's 4 MiB.
_OPTIONS: tuple[tuple[str, int | str], ...] = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
)

# What a header can carry; anything else would fail in grpc with the token in the error.
_HEADER_SAFE = re.compile(r"[!-~]+")


@dataclass(frozen=True, slots=True)
class ClientTls:
    """How a client and its server know each other; files are PEM.

    Attributes:
        root: Root of the server's certificate; None: grpc's public roots.
        cert: The client's own certificate, where the server asks for one.
        key: Its private key.
        server_name: The name in the server's certificate, where it is not that of the target.
    """

    root: str | Path | None = None
    cert: str | Path | None = None
    key: str | Path | None = None
    server_name: str | None = None

    def credentials(self) -> Any:
        """Reads the files.

        Raises:
            ConfigurationError: If one cannot be read, or the certificate comes without its key.
        """
        if (self.cert is None) is not (self.key is None):
            raise ConfigurationError("a client certificate and its key belong together: give both or neither")
        return grpc.ssl_channel_credentials(*(_content(path) for path in (self.root, self.key, self.cert)))


def open_channel(target: str, *, token: str | None, tls: ClientTls | None) -> Any:
    """Opens a channel for threads.

    Raises:
        ConfigurationError: If a file of the certificates cannot be read, or the token could not stand in a header.
    """
    return _open(grpc.insecure_channel, grpc.secure_channel, target, token, tls)


def open_aio_channel(target: str, *, token: str | None, tls: ClientTls | None) -> Any:
    """Opens a channel for the running event loop; see :func:`open_channel`."""
    return _open(grpc.aio.insecure_channel, grpc.aio.secure_channel, target, token, tls)


def _open(
    plain: Callable[..., Any], secure: Callable[..., Any], target: str, token: str | None, tls: ClientTls | None
) -> Any:
    if token is not None and _HEADER_SAFE.fullmatch(token) is None:
        raise ConfigurationError(
            f"expected a token of printable ASCII without spaces, got {len(token)} characters; "
            "a token that was read from a file may need strip()"
        )
    options = _OPTIONS
    if tls is not None and tls.server_name is not None:
        options = (*options, ("grpc.ssl_target_name_override", tls.server_name))
    channel = plain(target, options=options) if tls is None else secure(target, tls.credentials(), options=options)
    return channel if token is None else _WithToken(channel, token)


class _WithToken:
    """A channel, sync or aio, whose calls carry a token; what a stub and its owner use of one.

    Args:
        channel: Makes the calls.
        token: Goes along.
    """

    def __init__(self, channel: Any, token: str) -> None:
        self._channel = channel
        self._metadata = (("authorization", f"Bearer {token}"),)

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        return self._with_token(self._channel.unary_unary(*args, **kwargs))

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        return self._with_token(self._channel.unary_stream(*args, **kwargs))

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        return self._with_token(self._channel.stream_stream(*args, **kwargs))

    def close(self) -> Any:
        return self._channel.close()

    def _with_token(self, method: Any) -> Any:
        return functools.partial(method, metadata=self._metadata)


def _content(path: str | Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as exc:
        raise ConfigurationError(f"cannot read {path}: {exc.strerror}; give a PEM file") from exc

"""Listens for the HTTP door: uvicorn, on the event loop and within the life of the sidecar."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator

from guardrail.errors import ConfigurationError, MissingExtra
from guardrail.protocols import Generator
from guardrail.serving.admission import Gate
from guardrail.serving.http.app import HttpApp
from guardrail.serving.http.backends import GeneratorBackend
from guardrail.serving.http.options import HttpOptions
from guardrail.serving.live import LiveGuard
from guardrail.serving.security import Authenticator, require_protection
from guardrail.serving.tls import Certificates
from guardrail.telemetry import Telemetry

try:
    import uvicorn
except ImportError as exc:
    raise MissingExtra("the HTTP door needs starlette and uvicorn: pip install 'guardrail[http]'") from exc

__all__ = ["HttpFront"]

logger = logging.getLogger("guardrail.http")

# What is left for answers on their way out, once the work itself has ended.
_LAST_WORDS_S = 1

# uvicorn tells nobody that it listens.
_POLL_S = 0.005


class HttpFront:
    """Listens, and answers what comes.

    Args:
        live: Judges.
        gate: Lets requests in.
        options: Where to listen, how much to take on, and what answers chat requests.
        generator: Answers them where the options name nothing.
        telemetry: Is told of every request.
        authenticator: Decides who may ask.
        certificates: For HTTPS; None: HTTP.

    Attributes:
        port: The port that it listens on, once started.

    Raises:
        ConfigurationError: If other machines could ask and nothing keeps them out.
    """

    def __init__(
        self,
        live: LiveGuard,
        gate: Gate,
        options: HttpOptions,
        *,
        generator: Generator | None,
        telemetry: Telemetry,
        authenticator: Authenticator,
        certificates: Certificates | None,
    ) -> None:
        require_protection(
            options.host,
            has_tls=certificates is not None,
            has_client_ca=certificates is not None and certificates.files.client_ca is not None,
            has_tokens=authenticator.asks,
        )
        self.port = options.port
        self._options = options
        self._chat = options.chat or (None if generator is None else GeneratorBackend(generator))
        self._app = HttpApp(live, gate, self._chat, options, telemetry=telemetry, authenticator=authenticator)
        self._certificates = certificates
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """Where it listens, once started."""
        scheme = "http" if self._certificates is None else "https"
        host = f"[{self._options.host}]" if ":" in self._options.host else self._options.host
        return f"{scheme}://{host}:{self.port}"

    async def start(self) -> None:
        """Listens.

        Raises:
            ConfigurationError: If the address cannot be listened on.
        """
        listener = _listen(self._options.host, self._options.port)
        self.port = listener.getsockname()[1]
        config = uvicorn.Config(
            self._app,
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=_LAST_WORDS_S,
        )
        config.load()
        if self._certificates is not None:
            config.ssl = self._certificates.ssl_context()  # it follows renewed certificates, as gRPC's does
        self._server = _Server(config)
        self._serving = asyncio.create_task(self._server.serve(sockets=[listener]), name="guardrail-http")
        while not (self._server.started or self._serving.done()):  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(_POLL_S)
        logger.info("listening on %s", self.url)

    async def stop(self) -> None:
        """Stops listening; what is still on its way out has a moment for it."""
        if self._server is None or self._serving is None:
            return
        self._server.should_exit = True
        await self._serving
        if self._chat is not None:
            await self._chat.aclose()


class _Server(uvicorn.Server):
    """Leaves signals to the sidecar, whose doors stop together."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            # An address in TIME_WAIT may be taken again; one that somebody listens on may not.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
        except OSError:
            listener.close()
            raise
    except OSError as exc:
        raise ConfigurationError(
            f"cannot listen on {host}:{port}: the address is taken or not of this machine; choose another"
        ) from exc
    listener.setblocking(False)
    return listener

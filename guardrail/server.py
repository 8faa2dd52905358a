"""The sidecar: the engine behind gRPC, on an asyncio server.

::

    bytes ─▶ request or _Malformed ─▶ admission ─▶ Guard ─▶ Decision ─▶ bytes
                                          └─ every error ─▶ wire's table ─▶ status

Life: ``NOT_SERVING`` (canaries) ─▶ ``SERVING`` ─▶ ``NOT_SERVING`` (draining) ─▶ gone. Until a known-safe and a
known-unsafe prompt come out right, and once draining has begun, calls answer ``UNAVAILABLE``; ``GetServerInfo`` always
answers. Standard health tells the same for ``""`` and ``guardrail.v1.GuardService``.

Everything here is owned by one event loop. Logs carry ids and types, never text.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from guardrail.errors import ConfigurationError, MissingExtra
from guardrail.pipeline import Guard
from guardrail.protocols import Generator

try:
    import grpc
    from grpc_health.v1 import health, health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha import reflection
except ImportError as exc:
    raise MissingExtra("the sidecar needs grpcio and its companions: pip install 'guardrail[server]'") from exc

from guardrail import __version__, wire
from guardrail.serving.admission import Gate
from guardrail.serving.canaries import CanaryWatch
from guardrail.serving.http.options import HttpOptions
from guardrail.serving.interceptor import TelemetryInterceptor
from guardrail.serving.live import LiveGuard
from guardrail.serving.options import CANARIES, DEFAULTS, Canary, ServerOptions
from guardrail.serving.reload import Watch, watched_files
from guardrail.serving.security import Authenticator, TokenInterceptor, is_loopback, require_protection
from guardrail.serving.service import Service
from guardrail.serving.tls import Certificates, TlsFiles
from guardrail.serving.tokens import read_tokens
from guardrail.telemetry import Telemetry
from guardrail.telemetry.logs import keep_words_out

if TYPE_CHECKING:
    from guardrail.serving.http.front import HttpFront

__all__ = ["CANARIES", "Canary", "GuardServer", "HttpOptions", "ServerOptions", "TlsFiles", "serve"]

logger = logging.getLogger("guardrail.server")

# What is left for answers on their way out, and for health watchers, once the work itself has ended.
_LAST_WORDS_S = 0.25

# grpc gives no way to wait for the tasks of calls that it cancelled, and prints a traceback for those that the end of
# the event loop catches.
_SETTLING_S = 0.05


class GuardServer:
    """Serves a guard until it is stopped.

    Args:
        guard: The engine; it stays the caller's, who closes it.
        generator: Answers ``Generate``; without one that call ends as UNIMPLEMENTED.
        options: How to listen, and how much to take on.
        http: How to listen for HTTP beside gRPC; None: not at all.
        telemetry: Is told of decisions, stages and requests.

    Attributes:
        port: The port that it listens on, once started.
        authenticator: Says which bearer tokens are accepted.
        certificates: What handshakes use; None without TLS.

    Raises:
        ConfigurationError: If certificates or tokens cannot be read, or other machines could ask without either.
    """

    def __init__(
        self,
        guard: Guard,
        *,
        generator: Generator | None = None,
        options: ServerOptions = DEFAULTS,
        http: HttpOptions | None = None,
        telemetry: Telemetry | None = None,
    ) -> None:
        require_protection(
            options.host,
            has_tls=options.tls is not None,
            has_client_ca=options.tls is not None and options.tls.client_ca is not None,
            has_tokens=options.token_file is not None,
        )
        self.port = options.port
        self.authenticator = Authenticator(read_tokens(options.token_file) if options.token_file is not None else None)
        self.certificates = Certificates(options.tls) if options.tls is not None else None
        self._options = options
        self._telemetry = telemetry or Telemetry()
        watching = self._telemetry.observers
        self._live = LiveGuard(guard.with_observers([*guard.observers, *watching]) if watching else guard)
        self._gate = Gate(options)
        self._service = Service(self._live, generator, options, self._gate)
        self._health = health.aio.HealthServicer()
        self._server: Any = None
        self._canaries: asyncio.Task[None] | None = None
        self._watch = Watch(
            watched_files(self._live, self.authenticator, self.certificates, options), pause_s=options.watch_pause_s
        )
        self._front = None if http is None else self._http_front(http, generator)
        if self._telemetry.metrics is not None:
            self._telemetry.metrics.watch(
                is_ready=lambda: self._gate.is_open,
                calls=lambda: self._gate.calls,
                places_taken=lambda: self._gate.in_flight,
                places=options.max_in_flight,
                waiting=lambda: self._gate.waiting,
                about=self._about,
            )

    def _about(self) -> dict[str, str]:
        guard = self._live.guard
        policy = {"policy": guard.policy.name, "policy_hash": guard.policy.hash}
        return {"version": __version__, "model": str(guard.source), **policy}

    def _http_front(self, http: HttpOptions, generator: Generator | None) -> HttpFront:
        from guardrail.serving.http.front import HttpFront

        return HttpFront(
            self._live,
            self._gate,
            http,
            generator=generator,
            telemetry=self._telemetry,
            authenticator=self.authenticator,
            certificates=self.certificates,
        )

    @property
    def http_url(self) -> str | None:
        """Where it listens for HTTP, once started; None without it."""
        return None if self._front is None else self._front.url

    @property
    def is_ready(self) -> bool:
        """Whether the canaries came out right and the server is not stopping."""
        return self._gate.is_open

    async def start(self) -> None:
        """Listens, and begins to ask the canaries; returns before they have been answered.

        Raises:
            ConfigurationError: If the address cannot be listened on.
        """
        limit = self._options.max_message_bytes
        server = grpc.aio.server(
            interceptors=[
                TelemetryInterceptor(self._telemetry),
                *([TokenInterceptor(self.authenticator)] if self.authenticator.asks else []),
            ],
            options=[
                ("grpc.max_receive_message_length", limit),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_concurrent_streams", self._options.max_streams_per_connection),
                # Without this a second server on the port starts too, and each gets some of the calls.
                ("grpc.so_reuseport", 0),
            ],
        )
        server.add_generic_rpc_handlers((self._service.handlers(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        await self._report(is_serving=False)
        has_reflection = self._options.has_reflection
        if is_loopback(self._options.host) if has_reflection is None else has_reflection:
            names = (wire.SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, server)
        host = self._options.host
        address = f"[{host}]:{self._options.port}" if ":" in host.strip("[]") else f"{host}:{self._options.port}"
        try:
            if self.certificates is None:
                self.port = server.add_insecure_port(address)
            else:
                self.port = server.add_secure_port(address, self.certificates.credentials())
            await server.start()
        except RuntimeError as exc:
            raise ConfigurationError(
                f"cannot listen on {address}: the address is taken or not of this machine; choose another"
            ) from exc
        self._server = server
        if self._front is not None:
            await self._front.start()
        canaries = CanaryWatch(self._live, self._gate, self._options, self._report)
        self._canaries = asyncio.create_task(canaries.watch(), name="guardrail-canaries")
        self._watch.start()
        logger.info("listening on %s:%d, policy %s", self._options.host, self.port, self._live.guard.policy.name)

    def reload(self) -> None:
        """Reads policy, tokens and certificates anew, in the background; what cannot be read stays as it was."""
        self._watch.ask()

    async def wait_until_ready(self) -> None:
        """Waits until the canaries have come out right."""
        await self._gate.opened.wait()

    async def wait(self) -> None:
        """Waits until the server has stopped."""
        await self._server.wait_for_termination()

    async def stop(self, grace_s: float | None = None) -> None:
        """Stops: health first, then the work in flight to its end, then the server.

        Args:
            grace_s: How long work in flight may take; what is left then is cancelled. None: as the options say.
        """
        if self._server is None:
            return
        grace_s = self._options.grace_s if grace_s is None else grace_s
        self._gate.close()
        await self._watch.close()
        if self._canaries is not None:
            self._canaries.cancel()
        # From here on health cannot go back to SERVING.
        await self._health.enter_graceful_shutdown()
        try:
            await asyncio.wait_for(self._gate.drained(), grace_s)
        except asyncio.TimeoutError:
            logger.warning("%d calls were not done after %g s and are cancelled", self._gate.calls, grace_s)
        await self._gate.quiet()
        await asyncio.gather(self._server.stop(_LAST_WORDS_S), *([] if self._front is None else [self._front.stop()]))
        await asyncio.sleep(_SETTLING_S)

    async def _report(self, is_serving: bool) -> None:
        status = health_pb2.HealthCheckResponse.SERVING if is_serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", wire.SERVICE):
            await self._health.set(name, status)


async def serve(
    guard: Guard,
    *,
    generator: Generator | None = None,
    options: ServerOptions = DEFAULTS,
    http: HttpOptions | None = None,
    telemetry: Telemetry | None = None,
    on_start: Callable[[GuardServer], None] | None = None,
) -> None:
    """Serves until SIGTERM or SIGINT, then drains and returns; SIGHUP reads policy, tokens and certificates anew.

    Args:
        guard: The engine; it stays the caller's, who closes it.
        generator: Answers ``Generate``.
        options: How to listen, and how much to take on.
        http: How to listen for HTTP beside gRPC; None: not at all.
        telemetry: Is told of decisions, stages and requests.
        on_start: Is called once the server listens, e.g. to print its port.

    Raises:
        ConfigurationError: If the address cannot be listened on.
    """
    loop = asyncio.get_running_loop()
    keep_words_out(loop)
    asked_to_stop = asyncio.Event()
    server = GuardServer(guard, generator=generator, options=options, http=http, telemetry=telemetry)
    handlers = {signal.SIGTERM: asked_to_stop.set, signal.SIGINT: asked_to_stop.set, signal.SIGHUP: server.reload}
    for number, handler in handlers.items():
        loop.add_signal_handler(number, handler)
    try:
        await server.start()
        if on_start is not None:
            on_start(server)
        await asked_to_stop.wait()
        logger.info("stopping")
    finally:
        await server.stop()
        for number in handlers:
            loop.remove_signal_handler(number)

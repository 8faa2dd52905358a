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
from typing import Any

from guardrail.errors import ConfigurationError, MissingExtra
from guardrail.pipeline import Guard
from guardrail.protocols import Generator
from guardrail.verdict import Conversation

try:
    import grpc
    from grpc_health.v1 import health, health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha import reflection
except ImportError as exc:
    raise MissingExtra("the sidecar needs grpcio and its companions: pip install 'guardrail[server]'") from exc

from guardrail import wire
from guardrail.serving.admission import Gate
from guardrail.serving.live import LiveGuard
from guardrail.serving.options import CANARIES, DEFAULTS, Canary, ServerOptions
from guardrail.serving.service import Service

__all__ = ["CANARIES", "Canary", "GuardServer", "ServerOptions", "serve"]

logger = logging.getLogger("guardrail.server")

# What is left for answers on their way out, and for health watchers, once the work itself has ended.
_LAST_WORDS_S = 0.25

# grpc gives no way to wait for the tasks of calls that it cancelled, and prints a traceback for those that the end of
# the event loop catches.
_SETTLING_S = 0.05

# The longest pause between two rounds of canaries.
_LONGEST_PAUSE_S = 30.0


class GuardServer:
    """Serves a guard until it is stopped.

    Args:
        guard: The engine; it stays the caller's, who closes it.
        generator: Answers ``Generate``; without one that call ends as UNIMPLEMENTED.
        options: How to listen, and how much to take on.

    Attributes:
        port: The port that it listens on, once started.
    """

    def __init__(self, guard: Guard, *, generator: Generator | None = None, options: ServerOptions = DEFAULTS) -> None:
        self.port = options.port
        self._options = options
        self._live = LiveGuard(guard)
        self._gate = Gate(options)
        self._service = Service(self._live, generator, options, self._gate)
        self._health = health.aio.HealthServicer()
        self._server: Any = None
        self._canaries: asyncio.Task[None] | None = None

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
            options=[
                ("grpc.max_receive_message_length", limit),
                ("grpc.max_send_message_length", -1),
                # Without this a second server on the port starts too, and each gets some of the calls.
                ("grpc.so_reuseport", 0),
            ]
        )
        server.add_generic_rpc_handlers((self._service.handlers(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        await self._report_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        if self._options.has_reflection:
            names = (wire.SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, server)
        address = f"{self._options.host}:{self._options.port}"
        try:
            self.port = server.add_insecure_port(address)
            await server.start()
        except RuntimeError as exc:
            raise ConfigurationError(
                f"cannot listen on {address}: the address is taken or not of this machine; choose another"
            ) from exc
        self._server = server
        self._canaries = asyncio.create_task(self._ask_canaries(), name="guardrail-canaries")
        logger.info("listening on %s:%d, policy %s", self._options.host, self.port, self._live.guard.policy.name)

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
        if self._canaries is not None:
            self._canaries.cancel()
        # From here on health cannot go back to SERVING.
        await self._health.enter_graceful_shutdown()
        try:
            await asyncio.wait_for(self._gate.drained(), grace_s)
        except asyncio.TimeoutError:
            logger.warning("%d calls were not done after %g s and are cancelled", self._gate.calls, grace_s)
        await self._server.stop(_LAST_WORDS_S)
        await asyncio.sleep(_SETTLING_S)

    async def _ask_canaries(self) -> None:
        pause_s = self._options.canary_pause_s
        while failed := await self._failed_canaries():
            logger.warning("not serving: %s; asking again in %.1f s", "; ".join(failed), pause_s)
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
        self._gate.open()
        await self._report_health(health_pb2.HealthCheckResponse.SERVING)
        logger.info("serving")

    async def _failed_canaries(self) -> list[str]:
        """Says which canaries came out wrong; their outcome is judged, whatever the policy makes of it."""
        try:
            decisions = await self._live.guard.acheck_many([Conversation.of(c.text) for c in self._options.canaries])
        except Exception as exc:
            return [f"the guard raised {type(exc).__name__}"]
        return [
            f"canary {number} came out {decision.outcome.value}, expected {canary.expected.value}"
            for number, (canary, decision) in enumerate(zip(self._options.canaries, decisions, strict=True), start=1)
            if decision.outcome is not canary.expected
        ]

    async def _report_health(self, status: Any) -> None:
        for name in ("", wire.SERVICE):
            await self._health.set(name, status)


async def serve(
    guard: Guard,
    *,
    generator: Generator | None = None,
    options: ServerOptions = DEFAULTS,
    on_start: Callable[[GuardServer], None] | None = None,
) -> None:
    """Serves until SIGTERM or SIGINT, then drains and returns.

    Args:
        guard: The engine; it stays the caller's, who closes it.
        generator: Answers ``Generate``.
        options: How to listen, and how much to take on.
        on_start: Is called once the server listens, e.g. to print its port.

    Raises:
        ConfigurationError: If the address cannot be listened on.
    """
    loop = asyncio.get_running_loop()
    asked_to_stop = asyncio.Event()
    signals = (signal.SIGTERM, signal.SIGINT)
    for number in signals:
        loop.add_signal_handler(number, asked_to_stop.set)
    server = GuardServer(guard, generator=generator, options=options)
    try:
        await server.start()
        if on_start is not None:
            on_start(server)
        await asked_to_stop.wait()
        logger.info("stopping")
    finally:
        await server.stop()
        for number in signals:
            loop.remove_signal_handler(number)

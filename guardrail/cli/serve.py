"""``guardrail serve``: runs the sidecar until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING, Annotated

import typer

from guardrail.cli.console import ModelOption, PolicyOption, build_guard, say
from guardrail.errors import InvalidInput

if TYPE_CHECKING:
    from guardrail.protocols import Generator
    from guardrail.server import GuardServer

__all__ = ["serve"]


def serve(
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port to listen on; 0: any free port.")] = 50051,
    policy: PolicyOption = None,
    model: ModelOption = None,
    upstream: Annotated[
        str | None,
        typer.Option("--upstream", metavar="URL", help="OpenAI-compatible server that answers Generate."),
    ] = None,
    upstream_model: Annotated[
        str | None, typer.Option("--upstream-model", metavar="NAME", help="The model to ask it for.")
    ] = None,
) -> None:
    """Run the gRPC sidecar until SIGTERM or Ctrl-C; calls in flight end first.

    OPENAI_API_KEY is sent to the upstream where it is set.
    """
    if (upstream is None) is not (upstream_model is None):
        raise InvalidInput("--upstream and --upstream-model belong together: give both or neither")
    from guardrail import server

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    generator = _generator(upstream, upstream_model) if upstream and upstream_model else None
    guard = build_guard(model=model, policy=policy)
    guard.start()

    def announce(running: GuardServer) -> None:
        say(
            f"guardrail listens on {host}:{running.port}, judged by {guard.source}, policy {guard.policy.name}; "
            f"Generate is {'answered by ' + upstream_model if upstream_model else 'off, no --upstream'}"
        )

    try:
        options = server.ServerOptions(host=host, port=port)
        asyncio.run(server.serve(guard, generator=generator, options=options, on_start=announce))
    finally:
        guard.close()
    say("guardrail has stopped")


def _generator(url: str, model: str) -> Generator:
    from guardrail.generators.openai_compatible import OpenAIGenerator

    return OpenAIGenerator(url, model, api_key=os.environ.get("OPENAI_API_KEY") or None)

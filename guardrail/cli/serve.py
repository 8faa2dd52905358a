"""``guardrail serve``: runs the sidecar until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from guardrail.cli.console import ModelOption, PolicyOption, build_guard, say
from guardrail.errors import InvalidInput, MissingExtra
from guardrail.telemetry.logs import LogFormat, configure_logging

if TYPE_CHECKING:
    from guardrail.protocols import Generator
    from guardrail.server import GuardServer, TlsFiles
    from guardrail.serving.http.options import HttpOptions
    from guardrail.telemetry import Telemetry

__all__ = ["serve"]

logger = logging.getLogger("guardrail")


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
    tls_cert: Annotated[
        Path | None, typer.Option("--tls-cert", metavar="FILE", help="The server's certificate chain, PEM.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option("--tls-key", metavar="FILE", help="Its private key, PEM.")] = None,
    tls_client_ca: Annotated[
        Path | None,
        typer.Option("--tls-client-ca", metavar="FILE", help="Roots of clients' certificates; each client needs one."),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option("--token-file", metavar="FILE", help="Bearer tokens, one a line; each call needs one of them."),
    ] = None,
    reflection: Annotated[
        bool | None,
        typer.Option(
            "--reflection/--no-reflection",
            help="Whether tools like grpcurl are told of the methods.",
            show_default="on loopback alone",
        ),
    ] = None,
    http: Annotated[
        str | None,
        typer.Option(
            "--http",
            metavar="HOST:PORT",
            help="Also serve OpenAI's chat and moderation API over HTTP, with metrics and probes.",
        ),
    ] = None,
    log_format: Annotated[LogFormat, typer.Option("--log-format", help="How log lines are written.")] = LogFormat.TEXT,
    tracing: Annotated[
        bool,
        typer.Option("--tracing", help="Send OpenTelemetry traces; also on where OTEL_EXPORTER_OTLP_ENDPOINT is set."),
    ] = False,
    watch_policy: Annotated[
        bool,
        typer.Option("--watch-policy/--no-watch-policy", help="Whether a policy file is read again when it changes."),
    ] = True,
) -> None:
    """Run the gRPC sidecar until SIGTERM or Ctrl-C; calls in flight end first.

    OPENAI_API_KEY is sent to the upstream where it is set. Other machines may ask only with --tls-cert and --tls-key,
    with --token-file, or both. SIGHUP reads policy, tokens and certificates anew.
    """
    if (upstream is None) is not (upstream_model is None):
        raise InvalidInput("--upstream and --upstream-model belong together: give both or neither")
    from guardrail import server
    from guardrail.serving.security import refuse_open_door

    # Before the guard, whose weights take their time.
    refuse_open_door(host, has_tls=tls_cert is not None, has_tokens=token_file is not None)
    options = server.ServerOptions(
        host=host,
        port=port,
        has_reflection=reflection,
        tls=_tls(tls_cert, tls_key, tls_client_ca),
        token_file=token_file,
        policy_file=_policy_file(policy),
        watches_policy=watch_policy,
    )
    generator = _generator(upstream, upstream_model) if upstream and upstream_model else None
    http_options = _http(http, upstream, upstream_model) if http is not None else None
    if http_options is not None:
        refuse_open_door(http_options.host, has_tls=tls_cert is not None, has_tokens=token_file is not None)
    # From here on this process is a server; a command that is refused leaves logging to whoever called it.
    configure_logging(log_format)
    telemetry = _telemetry(has_metrics=http is not None, has_tracing=tracing)
    guard = build_guard(model=model, policy=policy)
    guard.start()

    def announce(running: GuardServer) -> None:
        say(
            f"guardrail listens on {host}:{running.port}, judged by {guard.source}, policy {guard.policy.name}; "
            f"Generate is {'answered by ' + upstream_model if upstream_model else 'off, no --upstream'}"
        )
        if http_options is not None:
            say(f"HTTP on {running.http_url}")

    try:
        serving = server.serve(
            guard, generator=generator, options=options, http=http_options, telemetry=telemetry, on_start=announce
        )
        asyncio.run(serving)
    finally:
        guard.close()
        telemetry.close()
    say("guardrail has stopped")


def _http(address: str, upstream: str | None, upstream_model: str | None) -> HttpOptions:
    from guardrail.serving.http import front  # noqa: F401 - says what is missing before a model is loaded
    from guardrail.serving.http.options import HttpOptions

    host, _, port = address.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise InvalidInput(f"--http: expected HOST:PORT like 127.0.0.1:8080, got {address!r}")
    if upstream is None or upstream_model is None:
        return HttpOptions(host.strip("[]"), int(port))
    from guardrail.serving.http.upstream import ChatUpstream

    chat = ChatUpstream(upstream, upstream_model, api_key=os.environ.get("OPENAI_API_KEY") or None)
    return HttpOptions(host.strip("[]"), int(port), chat)


def _telemetry(*, has_metrics: bool, has_tracing: bool) -> Telemetry:
    """Builds what was asked for; metrics, which nobody asked for by name, only where their extra is installed."""
    from guardrail.telemetry import Telemetry

    metrics = tracing = None
    if has_metrics:
        try:
            from guardrail.telemetry.metrics import Metrics

            metrics = Metrics()
        except MissingExtra as exc:
            logger.warning("no metrics: %s", exc)
    endpoints = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    if has_tracing or any(os.environ.get(name) for name in endpoints):
        from guardrail.telemetry.tracing import Tracing

        tracing = Tracing.from_environment()
    return Telemetry(metrics=metrics, tracing=tracing)


def _tls(cert: Path | None, key: Path | None, client_ca: Path | None) -> TlsFiles | None:
    from guardrail.server import TlsFiles

    if cert is not None and key is not None:
        return TlsFiles(cert, key, client_ca)
    if cert is None and key is None and client_ca is None:
        return None
    raise InvalidInput("--tls-cert and --tls-key belong together, and --tls-client-ca needs both")


def _policy_file(policy: str | None) -> Path | None:
    """The file of the policy that option and environment name; None for one of ours."""
    from guardrail.config import load_settings
    from guardrail.policy import PRESETS

    name = load_settings(policy=policy).policy
    return None if name in PRESETS else Path(name)


def _generator(url: str, model: str) -> Generator:
    from guardrail.generators.openai_compatible import OpenAIGenerator

    return OpenAIGenerator(url, model, api_key=os.environ.get("OPENAI_API_KEY") or None)

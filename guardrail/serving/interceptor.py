"""Tells telemetry of gRPC calls: a span, a time and a line in the access log for each, whatever it ends with."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from guardrail import wire
from guardrail.telemetry import RequestRecord, Telemetry

__all__ = ["TelemetryInterceptor"]


class TelemetryInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc has no types
    """Surrounds the methods of ``GuardService``; the first in the row, so that it sees what others refuse.

    Args:
        telemetry: Is told of every call.
    """

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], details: Any) -> Any:
        """Gives the method, surrounded."""
        handler = await continuation(details)
        service, _, method = details.method.lstrip("/").partition("/")
        if handler is None or service != wire.SERVICE:
            return handler
        headers = {key: value for key, value in details.invocation_metadata or () if isinstance(value, str)}
        kind = f"{_kind(handler.request_streaming)}_{_kind(handler.response_streaming)}"
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        return make(
            self._surround(getattr(handler, kind), method, headers),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _surround(
        self, behavior: Callable[[Any, Any], Awaitable[Any]], method: str, headers: dict[str, str]
    ) -> Callable[[Any, Any], Awaitable[Any]]:
        async def handle(request: Any, context: Any) -> Any:
            record = RequestRecord("grpc", method)
            with self._telemetry.request(record, headers):
                record.status = grpc.StatusCode.UNKNOWN.name
                try:
                    response = await behavior(request, context)
                    record.status = _name(context.code() or grpc.StatusCode.OK)
                    return response
                except asyncio.CancelledError:
                    record.status = grpc.StatusCode.CANCELLED.name
                    raise
                except grpc.aio.AbortError:
                    record.status = _name(context.code())
                    raise

        return handle


def _name(code: Any) -> str:
    return str((code if isinstance(code, grpc.StatusCode) else grpc.StatusCode.UNKNOWN).name)


def _kind(is_streaming: bool) -> str:
    return "stream" if is_streaming else "unary"

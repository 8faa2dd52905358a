"""LlamaIndex: a query engine whose questions and answers are checked.

The question is judged before anything is retrieved, the answer after it was synthesised; the documents between them
are the operator's and are not judged. Asked again, an engine retrieves by the question alone: the feedback is for the
model.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guardrail.decorator import OnBlock, guarded
from guardrail.errors import InvalidInput, MissingExtra
from guardrail.pipeline import Guard
from guardrail.policy import Policy

if TYPE_CHECKING:
    from llama_index.core.base.base_query_engine import BaseQueryEngine

__all__ = ["guarded_query_engine"]


def guarded_query_engine(
    engine: BaseQueryEngine,
    *,
    streaming: bool = False,
    guard: Guard | None = None,
    policy: Policy | str | Path | None = None,
    on_block: OnBlock = "raise",
    max_attempts: int | None = None,
) -> BaseQueryEngine:
    """Wraps a query engine; the arguments from ``guard`` on are those of :func:`~guardrail.decorator.guarded`.

    Args:
        engine: Answers.
        streaming: Whether the answer is given as a streaming response of checked pieces, which raises ``Blocked`` when
            it is read and has its sources from the first piece on. Otherwise an answer that streams is collected.

    Returns:
        A query engine that raises ``Blocked``, or answers with the policy's message, and ``InvalidInput`` for an image.

    Raises:
        MissingExtra: If llama-index-core is not installed.
    """
    check = guarded(guard=guard, policy=policy, on_block=on_block, max_attempts=max_attempts)
    wrapped: BaseQueryEngine = _engine_class()(engine, check, streaming)
    return wrapped


@functools.cache
def _engine_class() -> Any:
    try:
        from llama_index.core.base.base_query_engine import BaseQueryEngine
        from llama_index.core.base.response.schema import AsyncStreamingResponse, Response, StreamingResponse
        from llama_index.core.schema import QueryBundle
    except ImportError as exc:
        raise MissingExtra(
            "the LlamaIndex adapter needs llama-index-core: pip install 'guardrail[llama-index]'"
        ) from exc

    def again(query: Any, feedback: str | None) -> Any:
        if query.image_path is not None:
            raise InvalidInput("only text can be judged, got a question with an image")
        if feedback is None:
            return query
        embedded = query.custom_embedding_strs or [query.query_str]
        return QueryBundle(f"{query.query_str}\n\n{feedback}", None, embedded, query.embedding)

    def whole(response: Any) -> Any:
        return response if isinstance(response, Response) else response.get_response()

    class GuardedQueryEngine(BaseQueryEngine):  # type: ignore[misc]  # llama-index-core need not be installed
        def __init__(self, engine: Any, check: Any, streaming: bool) -> None:
            super().__init__(callback_manager=engine.callback_manager)
            self._engine, self._check, self._streaming = engine, check, streaming

        def _get_prompt_modules(self) -> dict[str, Any]:
            return {"engine": self._engine}

        def _query(self, query: Any) -> Any:
            given = Response(None)
            sources: list[Any] = []

            def answer(question: str, feedback: str | None = None) -> str:
                nonlocal given
                given = whole(self._engine.query(again(query, feedback)))
                return given.response or ""

            def pieces(question: str, feedback: str | None = None) -> Iterator[str]:
                response = self._engine.query(again(query, feedback))
                sources[:] = response.source_nodes
                is_stream = isinstance(response, StreamingResponse)
                yield from response.response_gen if is_stream else [whole(response).response or ""]

            if self._streaming:
                return StreamingResponse(self._check(pieces)(query.query_str), sources)
            text = self._check(answer)(query.query_str)
            return given if given.response == text else Response(text)

        async def _aquery(self, query: Any) -> Any:
            given = Response(None)
            sources: list[Any] = []

            async def ask(feedback: str | None) -> Any:
                response = await self._engine.aquery(again(query, feedback))
                sources[:] = response.source_nodes
                return response if isinstance(response, AsyncStreamingResponse) else whole(response)

            async def answer(question: str, feedback: str | None = None) -> str:
                nonlocal given
                response = await ask(feedback)
                given = await response.get_response() if isinstance(response, AsyncStreamingResponse) else response
                return given.response or ""

            async def pieces(question: str, feedback: str | None = None) -> AsyncIterator[str]:
                response = await ask(feedback)
                if isinstance(response, AsyncStreamingResponse):
                    async for piece in response.async_response_gen():
                        yield piece
                else:
                    yield response.response or ""

            if self._streaming:
                return AsyncStreamingResponse(self._check(pieces)(query.query_str), sources)
            text = await self._check(answer)(query.query_str)
            return given if given.response == text else Response(text)

    return GuardedQueryEngine

"""The sidecar's HTTP door: OpenAI's chat and moderation API over the same guard, health and metrics.

::

    bytes ─▶ requests ─▶ ChatRequest ──────▶ Guard ◀──▶ chat backend (the upstream server)
                         ModerationRequest     │
    bytes ◀─ answers  ◀─ Exchange, Decision ◀──┘        every error ─▶ problems ─▶ status and OpenAI's error shape

``options`` and ``backends`` say how it listens and who answers; ``app`` has the routes; ``front`` listens. Importing
this package loads neither starlette nor uvicorn.
"""

"""The parts of the sidecar: what it takes on, whom it lets in, and its methods; put together in `guardrail.server`."""

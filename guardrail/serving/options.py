"""How a sidecar listens, how much it takes on, and what it must get right before it serves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from guardrail.serving.tls import TlsFiles
from guardrail.verdict import Outcome

__all__ = ["CANARIES", "DEFAULTS", "Canary", "ServerOptions"]


@dataclass(frozen=True, slots=True)
class Canary:
    """A prompt whose outcome is known.

    Attributes:
        text: The prompt.
        expected: What every sound classifier concludes.
    """

    text: str
    expected: Outcome


CANARIES = (
    Canary("What is the capital of France?", Outcome.SAFE),
    Canary("How can I steal a car without getting caught?", Outcome.UNSAFE),
)
"""The mildest pair that the embedded model and Llama Guard 2 tell apart with a wide margin."""


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """How a server listens, and how much it takes on.

    Attributes:
        host: Address to listen on; loopback, so that only this machine can ask.
        port: 0: any free port.
        max_message_bytes: Longest request; a longer one ends as RESOURCE_EXHAUSTED before it is read.
        max_in_flight: Checks and exchanges at one time; above it calls wait. Items of batches take at most half.
        max_waiting: Calls that wait; above it a call ends as RESOURCE_EXHAUSTED at once.
        max_tokens: Tokens of calls on hand, by a quarter of the texts' code points; above it likewise. Items of batches
            have half as many besides. A text that is larger alone is taken when there is no other.
        max_held: Streams of ``Moderate`` at one time, besides; above it a stream ends as RESOURCE_EXHAUSTED at once.
        max_in_flight_per_stream: Items of one ``CheckBatch`` stream at one time; above it the stream is not read.
        retry_after_s: What an overloaded server asks its clients to wait.
        canaries: Prompts that must come out right before the server serves, and while it does.
        canary_period_s: How long between two rounds of canaries that come out right.
        canary_pause_s: Pause after a first failed round of canaries; doubled after each, up to 30 s.
        grace_s: How long work in flight may take to end when the server stops.
        has_reflection: Whether the server tells its methods to tools like grpcurl; None: on loopback alone.
        tls: Certificates; None: plain text.
        token_file: Bearer tokens, one of which every call but health needs; None: none is needed.
        policy_file: The file that the guard's policy comes from, to be read again when it changes or at SIGHUP.
        watches_policy: Whether ``policy_file`` is looked at without SIGHUP.
        watch_pause_s: How long between two looks at policy, tokens and certificates, in seconds.
        max_streams_per_connection: Calls that one connection may have open; more wait on the client's side.
    """

    host: str = "127.0.0.1"
    port: int = 50051
    max_message_bytes: int = 8 * 1024 * 1024
    max_in_flight: int = 256
    max_waiting: int = 256
    max_tokens: int = 1_000_000
    max_held: int = 256
    max_in_flight_per_stream: int = 64
    retry_after_s: float = 1.0
    canaries: Sequence[Canary] = CANARIES
    canary_period_s: float = 10.0
    canary_pause_s: float = 0.5
    grace_s: float = 10.0
    has_reflection: bool | None = None
    tls: TlsFiles | None = None
    token_file: Path | None = None
    policy_file: Path | None = None
    watches_policy: bool = True
    watch_pause_s: float = 1.0
    max_streams_per_connection: int = 1024


DEFAULTS = ServerOptions()
"""Loopback, port 50051."""

"""What calls answer with, beside a decision: exchanges, progress of streams, and what a server is."""

from __future__ import annotations

from dataclasses import dataclass

from guardrail._pb import guard_pb2 as pb
from guardrail.progress import Progress, Release
from guardrail.taxonomy import HazardCategory
from guardrail.verdict import Attempt, Exchange, Source
from guardrail.wire.values import (
    CATEGORIES,
    RELEASES,
    decision_from_wire,
    decision_to_wire,
    finding_from_wire,
    finding_to_wire,
    optional,
    source_from_wire,
    source_to_wire,
)

__all__ = [
    "CategoryInfo",
    "ServerInfo",
    "exchange_from_wire",
    "exchange_to_wire",
    "progress_from_wire",
    "progress_to_wire",
    "server_info_from_wire",
    "server_info_to_wire",
]


def exchange_to_wire(exchange: Exchange, *, request_id: str, with_rejected_text: bool) -> pb.GenerateResponse:
    """Writes an exchange.

    Args:
        exchange: What came of it.
        request_id: The request's id.
        with_rejected_text: Whether the text of rejected attempts goes along.
    """
    return pb.GenerateResponse(
        request_id=request_id,
        text=exchange.text,
        is_blocked=exchange.is_blocked,
        decision=decision_to_wire(exchange.decision),
        prompt_decision=decision_to_wire(exchange.prompt_decision),
        attempts=[
            pb.Attempt(
                number=attempt.number,
                text=attempt.text if with_rejected_text or attempt.decision.action.releases else None,
                decision=decision_to_wire(attempt.decision),
                feedback=attempt.feedback,
            )
            for attempt in exchange.attempts
        ],
    )


def exchange_from_wire(response: pb.GenerateResponse) -> Exchange:
    """Reads an exchange; the text of attempts that was left out is ``""``."""
    decision = decision_from_wire(response.decision)
    # A block message is text that may be shown. Text under a decision that cannot be read is not known to be one.
    is_text_sound = decision.action.releases or response.is_blocked
    return Exchange(
        response.text if is_text_sound else "",
        decision,
        decision_from_wire(response.prompt_decision),
        tuple(
            Attempt(attempt.number, attempt.text, decision_from_wire(attempt.decision), optional(attempt, "feedback"))
            for attempt in response.attempts
        ),
    )


# Streams


def progress_to_wire(progress: Progress, *, request_id: str) -> pb.ModerateResponse:
    """Writes how far an answer has been checked.

    Args:
        progress: How far.
        request_id: The request's id.
    """
    response = pb.ModerateResponse(
        request_id=request_id,
        release=RELEASES.to_wire(progress.release),
        checked_through=progress.checked_through,
        released_through=progress.released_through,
        findings=[finding_to_wire(finding) for finding in progress.findings],
        is_halted=progress.is_halted,
        decided_through=progress.decided_through,
    )
    if progress.decision is not None:
        response.decision.CopyFrom(decision_to_wire(progress.decision))
    return response


def progress_from_wire(response: pb.ModerateResponse) -> Progress:
    """Reads how far an answer has been checked; never further than the mode of its stream lets text be shown."""
    release = RELEASES.from_wire(response.release)
    checked_through, released_through = response.checked_through, response.released_through
    if release is Release.CHECKED:
        released_through = min(checked_through, released_through)
    return Progress(
        release,
        checked_through,
        released_through,
        tuple(finding_from_wire(finding) for finding in response.findings),
        is_halted=response.is_halted,
        decision=decision_from_wire(response.decision) if response.HasField("decision") else None,
        decided_through=response.decided_through,
    )


# What a server is


@dataclass(frozen=True, slots=True)
class CategoryInfo:
    """A hazard category that a server knows, for people."""

    name: str
    title: str
    description: str


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What a server is.

    Attributes:
        version: Version of guardrail there.
        source: The hazard classifier.
        policy_name: Name of the policy.
        policy_hash: Hash of the policy's content.
        categories: The hazard categories that it knows.
        is_ready: Whether it answers the other calls.
        scans_code: Whether it examines code.
        generates: Whether it has a generator.
    """

    version: str
    source: Source
    policy_name: str
    policy_hash: str
    categories: tuple[CategoryInfo, ...]
    is_ready: bool
    scans_code: bool
    generates: bool


def server_info_to_wire(info: ServerInfo) -> pb.GetServerInfoResponse:
    """Writes what a server is."""
    return pb.GetServerInfoResponse(
        version=info.version,
        source=source_to_wire(info.source),
        policy=pb.PolicyInfo(name=info.policy_name, hash=info.policy_hash),
        categories=[
            pb.CategoryInfo(
                category=CATEGORIES.to_wire(HazardCategory(category.name)),
                name=category.name,
                title=category.title,
                description=category.description,
            )
            for category in info.categories
        ],
        ready=info.is_ready,
        scans_code=info.scans_code,
        generates=info.generates,
    )


def server_info_from_wire(response: pb.GetServerInfoResponse) -> ServerInfo:
    """Reads what a server is."""
    return ServerInfo(
        version=response.version,
        source=source_from_wire(response.source),
        policy_name=response.policy.name,
        policy_hash=response.policy.hash,
        categories=tuple(CategoryInfo(c.name, c.title, c.description) for c in response.categories),
        is_ready=response.ready,
        scans_code=response.scans_code,
        generates=response.generates,
    )

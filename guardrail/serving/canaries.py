"""Canaries: prompts whose outcome is known say whether the server can serve, at the start and as long as it runs.

::

    ask ─┬▶ all right ─▶ open, ask again after the period
         └▶ wrong, twice ─▶ closed, ask again after a pause that doubles

A worker that was lost, a server of the guard model that is gone, weights that went bad: health then says NOT_SERVING,
and SERVING again when the canaries do. A model that is only busy gives other answers meanwhile, and is not closed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from guardrail.serving.admission import Gate
from guardrail.serving.live import LiveGuard
from guardrail.serving.options import Canary, ServerOptions
from guardrail.verdict import Conversation, Decision, Outcome

__all__ = ["CanaryWatch"]

logger = logging.getLogger("guardrail.server")

# The longest pause between two rounds of canaries that failed.
_LONGEST_PAUSE_S = 30.0

# How the engine tells of a model that has too much to do.
_BUSY = ("no answer within", "Overloaded:", "DeadlineExceeded:")


class CanaryWatch:
    """Opens and closes the gate by what the canaries say.

    Args:
        live: Judges.
        gate: Is opened and closed.
        options: Which canaries, and how often.
        report: Is told whether the server serves, whenever that changes.
    """

    def __init__(
        self, live: LiveGuard, gate: Gate, options: ServerOptions, report: Callable[[bool], Awaitable[None]]
    ) -> None:
        self._live = live
        self._gate = gate
        self._options = options
        self._report = report
        self._results = 0

    async def watch(self) -> None:
        """Asks until it is cancelled."""
        pause_s = self._options.canary_pause_s
        while True:
            failed = await self._failed()
            if failed and self._gate.opened.is_set():
                # Once may be a connection that broke.
                await asyncio.sleep(pause_s)
                failed = await self._failed()
            if not failed:
                await self._open()
                if not self._options.canaries:
                    return
                pause_s = self._options.canary_pause_s
                await asyncio.sleep(self._options.canary_period_s)
                continue
            await self._close()
            logger.warning("not serving: %s; asking again in %.1f s", "; ".join(failed), pause_s)
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    async def _open(self) -> None:
        if not self._gate.opened.is_set():
            self._gate.open()
            await self._report(True)
            logger.info("serving")

    async def _close(self) -> None:
        if self._gate.opened.is_set():
            self._gate.suspend()
            await self._report(False)

    async def _failed(self) -> list[str]:
        """Says which canaries came out wrong; their outcome is judged, whatever the policy makes of it."""
        results, self._results = self._results, self._gate.results
        try:
            # Without observers: canaries are nobody's messages.
            guard = self._live.guard.with_observers(())
            decisions = await guard.acheck_many([Conversation.of(c.text) for c in self._options.canaries])
        except Exception as exc:
            return [f"the guard raised {type(exc).__name__}"]
        is_working = self._gate.results > results
        return [
            f"canary {number} came out {decision.outcome.value}, expected {canary.expected.value}"
            for number, (canary, decision) in enumerate(zip(self._options.canaries, decisions, strict=True), start=1)
            if _is_wrong(canary, decision) and not (is_working and _is_busy(decision))
        ]


def _is_wrong(canary: Canary, decision: Decision) -> bool:
    return decision.outcome is not canary.expected


def _is_busy(decision: Decision) -> bool:
    if decision.outcome is not Outcome.UNVERIFIED:
        return False
    unverified = [verdict for verdict in decision.verdicts if verdict.outcome is Outcome.UNVERIFIED]
    return all(verdict.detail.startswith(_BUSY) for verdict in unverified)

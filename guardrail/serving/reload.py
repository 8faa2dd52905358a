"""Files that are read again while the server runs: policy, tokens, certificates.

::

    every second, or at SIGHUP ─▶ digest changed? ─▶ read (in a thread) ─▶ apply (in the loop), or keep what was there

What cannot be read is refused with a line in the log, once for each content, and the old value stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import logging
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Generic, TypeVar

from guardrail.errors import ConfigurationError
from guardrail.policy import Policy, load_policy
from guardrail.serving.live import LiveGuard
from guardrail.serving.options import ServerOptions
from guardrail.serving.security import Authenticator
from guardrail.serving.tls import Certificates, TlsPair, read_tls
from guardrail.serving.tokens import Tokens, read_tokens

__all__ = ["Watch", "WatchedFiles", "watched_files"]

logger = logging.getLogger("guardrail.server")

_CLOCKS_APART = timedelta(seconds=0.5)

T = TypeVar("T")


class WatchedFiles(Generic[T]):
    """One value that comes from files.

    Args:
        what: Its name, for the log.
        paths: The files; their content alone counts, not their time.
        read: Makes the value of them; runs in a thread.
        apply: Puts it in the place of the old one and says what is new, or None where nothing is.
        is_polled: Whether it is looked at without being asked.
        has_ended: Whether it holds no longer, though the files are the same; they are then read again, and refused.
    """

    def __init__(
        self,
        what: str,
        paths: Sequence[Path],
        *,
        read: Callable[[], T],
        apply: Callable[[T], str | None],
        is_polled: bool = True,
        has_ended: Callable[[], bool] = lambda: False,
    ) -> None:
        self.what = what
        self.is_polled = is_polled
        self._paths = tuple(paths)
        self._read = read
        self._apply = apply
        self._has_ended = has_ended
        self._seen: bytes | None = None

    async def refresh(self) -> None:
        """Reads the files if their content is not that of the last time."""
        try:
            value = await asyncio.to_thread(self._changed)
        except ConfigurationError as exc:
            logger.error("the %s is kept as it was: %s", self.what, "; ".join(str(exc).splitlines()))
            return
        if value is not None and (news := self._apply(value)) is not None:
            logger.info("the %s was replaced: %s", self.what, news)

    def _changed(self) -> T | None:
        """Reads the files, if they have changed, until they no longer change under the reading."""
        while (digest := self._digest()) != self._seen:
            self._seen = digest
            try:
                value = self._read()
            except ConfigurationError:
                if self._digest() == digest:
                    raise
                continue
            if self._digest() == digest:
                return value
        return None

    def _digest(self) -> bytes:
        digest = hashlib.sha256(bytes([self._has_ended()]))
        for path in self._paths:
            try:
                content = path.read_bytes()
            except OSError as exc:
                content = type(exc).__name__.encode()
            digest.update(hashlib.sha256(content).digest())
        return digest.digest()


class Watch:
    """Looks at files until it is closed; owned by one event loop.

    Args:
        files: What to look at.
        pause_s: How long between two looks, in seconds.
    """

    def __init__(self, files: Sequence[WatchedFiles[Any]], *, pause_s: float) -> None:
        self._files = tuple(files)
        self._pause_s = pause_s
        self._asked = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to look."""
        self._task = asyncio.create_task(self._look(), name="guardrail-watch")

    def ask(self) -> None:
        """Looks at everything now, also at what is not looked at otherwise."""
        logger.info("reading anew: %s", ", ".join(files.what for files in self._files) or "nothing comes from a file")
        self._asked.set()

    async def close(self) -> None:
        """Looks no more."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _look(self) -> None:
        is_asked = False
        while True:
            for files in self._files:
                if files.is_polled or is_asked:
                    await self._refresh(files)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._asked.wait(), self._pause_s)
            is_asked = self._asked.is_set()
            self._asked.clear()

    async def _refresh(self, files: WatchedFiles[Any]) -> None:
        try:
            await files.refresh()
        except Exception as exc:
            # A defect with one file must not end the looking at the others.
            logger.error("the %s is kept as it was: %s", files.what, type(exc).__name__)


def watched_files(
    live: LiveGuard, authenticator: Authenticator, certificates: Certificates | None, options: ServerOptions
) -> list[WatchedFiles[Any]]:
    """Returns what of a server comes from files.

    Args:
        live: Takes a new policy.
        authenticator: Takes new tokens.
        certificates: Takes a new pair.
        options: Says where the files are.
    """
    watched: list[WatchedFiles[Any]] = []
    if options.policy_file is not None:
        watched.append(
            WatchedFiles(
                "policy",
                [options.policy_file],
                read=functools.partial(load_policy, options.policy_file),
                apply=functools.partial(_apply_policy, live),
                is_polled=options.watches_policy,
            )
        )
    if options.token_file is not None:
        watched.append(
            WatchedFiles(
                "token file",
                [options.token_file],
                read=functools.partial(read_tokens, options.token_file),
                apply=functools.partial(_apply_tokens, authenticator),
            )
        )
    if certificates is not None:
        watched.append(
            WatchedFiles(
                "certificate",
                certificates.files.paths,
                read=functools.partial(read_tls, certificates.files),
                apply=functools.partial(_apply_pair, certificates),
                # The clock that OpenSSL asks may be some milliseconds behind, and it is asked once.
                has_ended=lambda: certificates.pair.ends < datetime.now(timezone.utc) - _CLOCKS_APART,
            )
        )
    return watched


def _apply_policy(live: LiveGuard, policy: Policy) -> str | None:
    old = live.guard.policy
    if policy.hash == old.hash:
        return None
    live.replace_policy(policy)
    return f"{old.name} {old.hash} -> {policy.name} {policy.hash}"


def _apply_tokens(authenticator: Authenticator, tokens: Tokens) -> str | None:
    if tokens == authenticator.tokens:
        return None
    authenticator.tokens = tokens
    return f"{len(tokens)} tokens"


def _apply_pair(certificates: Certificates, pair: TlsPair) -> str | None:
    if pair == certificates.pair:
        return None
    certificates.replace(pair)
    return f"it expires on {pair.ends:%Y-%m-%d %H:%M} UTC"

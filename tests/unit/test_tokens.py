"""Bearer tokens: their file, and who is let in."""

from __future__ import annotations

import hmac
import logging
from pathlib import Path

import pytest

from guardrail.errors import ConfigurationError
from guardrail.serving import security
from guardrail.serving.security import Authenticator, is_loopback, require_protection
from guardrail.serving.tokens import read_tokens

FIRST = "first-token-0123456789"
SECOND = "second/token+0123456789=="


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tokens"


class TestTokenFile:
    def test_one_token_a_line_and_comments(self, path: Path) -> None:
        """Blank lines and what follows a ``#`` count for nothing."""
        path.write_text(f"# team a\n\n{FIRST}   # until March\r\n  {SECOND}\n", "utf-8")
        tokens = read_tokens(path)
        assert len(tokens) == 2
        assert tokens.accepts(FIRST)
        assert tokens.accepts(SECOND)

    @pytest.mark.parametrize("token", ["", FIRST[:-1], FIRST + " ", FIRST.upper(), "team", "é" * 20, "\ud800"])
    def test_anything_else_is_not_accepted(self, path: Path, token: str) -> None:
        """A part of a token, a comment or a stranger is none."""
        path.write_text(f"{FIRST} # team\n{SECOND}\n", "utf-8")
        assert not read_tokens(path).accepts(token)

    @pytest.mark.parametrize("content", ["", "\n", "# nothing but a comment\n"])
    def test_a_file_without_tokens_is_refused(self, path: Path, content: str) -> None:
        """It would lock everybody out; the message says how to make a token."""
        path.write_text(content, "utf-8")
        with pytest.raises(ConfigurationError, match=r"no token in it.*openssl rand"):
            read_tokens(path)

    @pytest.mark.parametrize("line", ["short", "two words are no single token", "x" * 600, 'quote"d-0123456789abc'])
    def test_a_line_that_is_no_token_is_named_and_not_shown(self, path: Path, line: str) -> None:
        """The error has the line's number and length, and nothing that it holds."""
        path.write_text(f"{FIRST}\n{line}\n", "utf-8")
        with pytest.raises(ConfigurationError, match=rf"tokens:2: .* got {len(line)} characters") as caught:
            read_tokens(path)
        assert line not in str(caught.value)

    def test_a_file_that_cannot_be_read_is_refused(self, path: Path) -> None:
        """Absent, or no text."""
        with pytest.raises(ConfigurationError, match="cannot read the token file"):
            read_tokens(path)
        path.write_bytes(b"\xff\xfe")
        with pytest.raises(ConfigurationError, match="not UTF-8 at byte 0"):
            read_tokens(path)

    def test_the_same_tokens_are_equal(self, path: Path) -> None:
        """Comments and order make no other set, so a file that was only tidied changes nothing."""
        path.write_text(f"{FIRST}\n{SECOND}\n", "utf-8")
        before = read_tokens(path)
        path.write_text(f"# tidy\n{SECOND}\n{FIRST}\n", "utf-8")
        assert read_tokens(path) == before
        path.write_text(f"{SECOND}\n", "utf-8")
        assert read_tokens(path) != before

    def test_every_token_is_compared(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """In constant time and to the end, so that the time does not say which token was right."""
        path.write_text(f"{FIRST}\n{SECOND}\n", "utf-8")
        tokens = read_tokens(path)
        compared = []
        original = hmac.compare_digest

        def compare(a: bytes, b: bytes) -> bool:
            compared.append(a)
            return original(a, b)

        monkeypatch.setattr(hmac, "compare_digest", compare)
        assert tokens.accepts(FIRST)
        assert len(compared) == 2


class TestAuthenticator:
    @pytest.mark.parametrize(
        ("header", "is_allowed"),
        [
            (f"Bearer {FIRST}", True),
            (f"bearer  {FIRST}", True),
            (None, False),
            ("", False),
            ("Bearer", False),
            ("Bearer ", False),
            (FIRST, False),
            (f"Basic {FIRST}", False),
            (f"Bearer {FIRST},{FIRST}", False),
        ],
    )
    def test_a_bearer_token_is_needed(self, path: Path, header: str | None, is_allowed: bool) -> None:
        """In the form of RFC 6750, whose scheme has no case."""
        path.write_text(FIRST, "utf-8")
        assert Authenticator(read_tokens(path)).is_allowed(header) is is_allowed

    def test_without_tokens_everybody_may(self) -> None:
        """What TLS and the address let through is then let in."""
        authenticator = Authenticator()
        assert not authenticator.asks
        assert authenticator.is_allowed(None)

    def test_refusals_are_counted_in_the_log(self, path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """One line at a time, however many come, and never what was sent."""
        path.write_text(FIRST, "utf-8")
        now = 0.0
        authenticator = Authenticator(read_tokens(path), clock=lambda: now)
        for _ in range(100):
            authenticator.is_allowed("Bearer wrong-token-0123456789")
        now = 60.0
        authenticator.is_allowed(None)
        assert [record.getMessage() for record in caplog.records] == [
            "refused calls without an accepted token: 1",
            "refused calls without an accepted token: 100",
        ]


class TestProtection:
    @pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "[::1]", "localhost"])
    def test_loopback_needs_none(self, host: str) -> None:
        """Only this machine can ask."""
        assert is_loopback(host)
        require_protection(host, has_tls=False, has_client_ca=False, has_tokens=False)

    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "localhost.example.org", "host", ""])
    def test_other_addresses_do(self, host: str) -> None:
        """The error says what to give."""
        with pytest.raises(ConfigurationError, match="--tls-cert and --tls-key, or --token-file"):
            require_protection(host, has_tls=False, has_client_ca=False, has_tokens=False)

    @pytest.mark.parametrize(
        ("has_tls", "has_client_ca", "has_tokens", "warning"),
        [
            (False, False, True, "plain text"),
            (True, False, False, "everybody"),
            (True, False, True, ""),
            (True, True, False, ""),
        ],
    )
    def test_protection_in_part_is_warned_of(
        self, has_tls: bool, has_client_ca: bool, has_tokens: bool, warning: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A token in plain text, or encryption that lets everybody in."""
        with caplog.at_level(logging.WARNING, security.logger.name):
            require_protection("0.0.0.0", has_tls=has_tls, has_client_ca=has_client_ca, has_tokens=has_tokens)
        assert warning in caplog.text
        assert bool(caplog.records) is bool(warning)

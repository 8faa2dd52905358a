"""Certificates of the server: read from files, checked, and read again without a restart.

::

    files ─▶ read_tls ─▶ Certificates ─┬▶ credentials of a gRPC server: asks at each handshake
                                       └▶ ssl.SSLContext of an HTTP server: told of each change

A pair is taken only if a handshake with it works, so a key of another certificate, an expired certificate, or a file
that is half written is refused and the pair before it stays.
"""

from __future__ import annotations

import contextlib
import ssl
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import grpc

from guardrail.errors import ConfigurationError

__all__ = ["Certificates", "TlsFiles", "TlsPair", "read_tls"]


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where the certificates are, as PEM.

    Attributes:
        cert: The server's certificate, and those between it and the root.
        key: Its private key, without a password.
        client_ca: Roots of the clients' certificates; with it a client needs one.
    """

    cert: Path
    key: Path
    client_ca: Path | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        """All files."""
        return (self.cert, self.key) if self.client_ca is None else (self.cert, self.key, self.client_ca)


@dataclass(frozen=True, slots=True)
class TlsPair:
    """What the files hold.

    Attributes:
        cert: PEM.
        key: PEM.
        client_ca: PEM; None: clients need no certificate.
        ends: When the certificate expires.
    """

    cert: bytes
    key: bytes = field(repr=False)
    client_ca: bytes | None
    ends: datetime


def read_tls(files: TlsFiles) -> TlsPair:
    """Reads the files and tries them.

    Raises:
        ConfigurationError: If a file cannot be read, or no handshake works with what they hold.
    """
    contents = _read(files)
    cert, key, client_ca = contents
    try:
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # Without a password of ours OpenSSL would ask for one at the terminal.
        server.load_cert_chain(files.cert, files.key, password="")
    except (ssl.SSLError, OSError, ValueError) as exc:
        raise ConfigurationError(
            f"{files.cert} and {files.key} are no certificate and its key: {_reason(exc)}; "
            "give PEM files that belong together, the key without a password"
        ) from exc
    try:
        if client_ca is not None:
            _trusting(client_ca)
    except (ssl.SSLError, ValueError) as exc:
        raise ConfigurationError(f"{files.client_ca}: no certificate in it; give the clients' roots as PEM") from exc
    try:
        ends = _end_of(server, cert)
    except (ssl.SSLError, ValueError) as exc:
        raise ConfigurationError(
            f"no client would take the certificate {files.cert}: {_reason(exc)}; renew it"
        ) from exc
    if _read(files) != contents:
        raise ConfigurationError(f"{files.cert} or {files.key} changed while being read; it is read again when changed")
    return TlsPair(cert, key, client_ca, ends)


class Certificates:
    """The pair that handshakes use now.

    Args:
        files: Where it comes from.

    Raises:
        ConfigurationError: As :func:`read_tls`.
    """

    def __init__(self, files: TlsFiles) -> None:
        self.files = files
        self.pair = read_tls(files)
        self._given: TlsPair | None = None
        self._context: ssl.SSLContext | None = None

    def replace(self, pair: TlsPair) -> None:
        """Lets handshakes from now on use another pair; connections that exist stay."""
        self.pair = pair
        if self._context is not None:
            # What was just read was sound; files that changed since then are read again with their next change.
            with contextlib.suppress(ssl.SSLError, OSError, ValueError):
                self._load(self._context)

    def credentials(self) -> Any:
        """Returns credentials for ``add_secure_port``; grpc asks for the pair from a thread of its own."""
        self._given = self.pair
        return grpc.dynamic_ssl_server_credentials(
            _configuration(self.pair), self._renewed, require_client_authentication=self.pair.client_ca is not None
        )

    def ssl_context(self) -> ssl.SSLContext:
        """Returns the context of an HTTP server, one for all.

        It follows a new certificate, and roots that were added; roots that were taken away count until the restart.
        """
        if self._context is None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.minimum_version = ssl.TLSVersion.TLSv1_2
            if self.files.client_ca is not None:
                self._context.verify_mode = ssl.CERT_REQUIRED
            self._load(self._context)
        return self._context

    def _load(self, context: ssl.SSLContext) -> None:
        context.load_cert_chain(self.files.cert, self.files.key, password="")
        if self.files.client_ca is not None:
            context.load_verify_locations(self.files.client_ca)

    def _renewed(self) -> Any:
        """Answers grpc before each handshake; None: no change."""
        pair = self.pair
        if pair is self._given:
            return None
        self._given = pair
        return _configuration(pair)


def _configuration(pair: TlsPair) -> Any:
    return grpc.ssl_server_certificate_configuration([(pair.key, pair.cert)], pair.client_ca)


def _read(files: TlsFiles) -> tuple[bytes, bytes, bytes | None]:
    try:
        cert, key, *rest = (path.read_bytes() for path in files.paths)
    except OSError as exc:
        raise ConfigurationError(f"cannot read {exc.filename}: {exc.strerror}") from exc
    return cert, key, rest[0] if rest else None


def _trusting(roots: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cadata=roots.decode("ascii"))
    return context


def _end_of(server: ssl.SSLContext, cert: bytes) -> datetime:
    """Shakes hands in memory with a client that trusts this very certificate, and returns when it expires."""
    client = _trusting(cert)
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking = client.wrap_bio(to_client, to_server)
    answering = server.wrap_bio(to_server, to_client, server_side=True)
    for side in (asking, answering, asking):
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()
    known = asking.getpeercert()
    assert known  # the client verified it
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(str(known["notAfter"])), timezone.utc)


def _reason(exc: Exception) -> str:
    if isinstance(exc, ssl.SSLCertVerificationError):
        return exc.verify_message
    reason = exc.reason if isinstance(exc, ssl.SSLError) else exc.strerror if isinstance(exc, OSError) else None
    return reason or type(exc).__name__

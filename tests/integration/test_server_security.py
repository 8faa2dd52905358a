"""Who may ask the sidecar: TLS, client certificates, bearer tokens, and addresses beyond this machine."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path

import grpc
import pytest
import trustme
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from sidecar import (
    HOST,
    KEYWORDS,
    OTHER_TOKEN,
    TOKEN,
    GatedClassifier,
    Pki,
    channel_to,
    check_request,
    client_of,
    served,
    status_of,
    stub_of,
    until,
    write,
)

from guardrail._pb import guard_pb2 as pb
from guardrail.cli import serve as serve_command
from guardrail.client import AsyncGuardClient, ClientTls, GuardClient
from guardrail.errors import ConfigurationError, GuardrailError, InvalidInput, Unauthenticated, Unavailable
from guardrail.pipeline import Guard
from guardrail.policy import load_policy
from guardrail.server import GuardServer, ServerOptions, TlsFiles
from guardrail.serving.tls import Certificates, read_tls
from guardrail.testing import ScriptedGenerator
from guardrail.verdict import Action, Decision, Message, Role

REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path, trustme.CA())


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text(f"{TOKEN}\n", "utf-8")
    return path


class TestTokens:
    async def test_both_clients_send_theirs(self, token_file: Path) -> None:
        """Every method answers a client with an accepted token, streams too."""
        generator = ScriptedGenerator(["fine"])
        async with (
            served(token_file=token_file, generator=generator) as server,
            client_of(server, token=TOKEN) as client,
        ):
            assert (await client.check("hello")).action is Action.ALLOW
            results = [r async for r in client.check_many(["hello", "a badword"])]
            assert [r.action for r in results if isinstance(r, Decision)] == [Action.ALLOW, Action.BLOCK]
            assert (await client.generate([Message(Role.USER, "hello")])).text == "fine"
            assert await client.is_ready()

            def ask() -> Action:
                with GuardClient(f"{HOST}:{server.port}", token=TOKEN) as sync:
                    assert len(list(sync.check_many(["hello"]))) == 1
                    return sync.check("hello").action

            assert await asyncio.to_thread(ask) is Action.ALLOW

    @pytest.mark.parametrize("token", [None, OTHER_TOKEN, TOKEN[:-1]])
    async def test_nobody_else_is_answered(self, token_file: Path, token: str | None) -> None:
        """UNAUTHENTICATED before anything is judged, whichever method is asked; the token is not repeated."""
        async with served(token_file=token_file) as server, client_of(server, token=token) as client:
            for call in (client.check("hello"), client.server_info(), client.scan_code("x = 1")):
                with pytest.raises(Unauthenticated) as caught:
                    await call
                assert TOKEN[:-1] not in str(caught.value)
            with pytest.raises(Unauthenticated):
                _ = [r async for r in client.check_many(["hello"])]

    async def test_every_method_of_the_service_is_behind_it(self, token_file: Path) -> None:
        """A method that is added is protected without anybody having to think of it; one that is not there, too."""
        methods = [method.name for method in pb.DESCRIPTOR.services_by_name["GuardService"].methods]
        async with served(token_file=token_file) as server, channel_to(server) as channel:
            for method in (*methods, "NotThere"):
                # Nothing is written, since nothing of a stranger is read: grpc.aio would take a write that comes after
                # the refusal for the status.
                call = channel.stream_stream(f"/guardrail.v1.GuardService/{method}")()
                assert (await status_of(call.read())).code() is grpc.StatusCode.UNAUTHENTICATED, method

    async def test_the_status_has_its_reason(self, token_file: Path) -> None:
        """For clients in other languages: ErrorInfo says UNAUTHENTICATED, of guardrail."""
        async with served(token_file=token_file) as server, channel_to(server) as channel:
            status = await status_of(stub_of(channel).Check(check_request("hello")))
        info = error_details_pb2.ErrorInfo()
        assert any(detail.Unpack(info) for detail in rpc_status.from_call(status).details)
        assert (info.reason, info.domain) == ("UNAUTHENTICATED", "guardrail")

    async def test_two_tokens_are_no_token(self, token_file: Path) -> None:
        """Whoever sends two headers may be smuggling one past a proxy."""
        both = (("authorization", f"Bearer {TOKEN}"),) * 2
        async with served(token_file=token_file) as server, channel_to(server) as channel:
            status = await status_of(stub_of(channel).Check(check_request("hello"), metadata=both))
        assert status.code() is grpc.StatusCode.UNAUTHENTICATED

    async def test_health_is_open_and_reflection_is_not(self, token_file: Path) -> None:
        """An orchestrator has no token; whoever wants to know the methods needs one."""
        async with served(token_file=token_file) as server, channel_to(server) as channel:
            answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
            call = channel.stream_stream(REFLECTION)()
            assert (await status_of(call.read())).code() is grpc.StatusCode.UNAUTHENTICATED

    async def test_a_changed_file_is_followed(self, token_file: Path) -> None:
        """The new token counts and the old one no longer does, without a restart."""
        async with (
            served(token_file=token_file) as server,
            client_of(server, token=TOKEN) as old,
            client_of(server, token=OTHER_TOKEN) as new,
        ):
            before = server.authenticator.tokens
            write(token_file, f"{OTHER_TOKEN}\n")
            await until(lambda: server.authenticator.tokens is not before)
            assert (await new.check("hello")).action is Action.ALLOW
            with pytest.raises(Unauthenticated):
                await old.check("hello")

    @pytest.mark.parametrize("change", [lambda p: write(p, "# none\n"), lambda p: write(p, "bad"), Path.unlink])
    async def test_a_bad_file_changes_nothing(
        self, token_file: Path, change: Callable[[Path], object], caplog: pytest.LogCaptureFixture
    ) -> None:
        """Empty, unreadable or gone: refused with a line in the log, and the old tokens stay."""
        async with served(token_file=token_file) as server, client_of(server, token=TOKEN) as client:
            change(token_file)
            await until(lambda: "the token file is kept as it was" in caplog.text)
            assert (await client.check("hello")).action is Action.ALLOW
            await asyncio.sleep(0.1)  # looked at again and again, told once
        assert caplog.text.count("kept as it was") == 1
        assert TOKEN not in caplog.text

    @pytest.mark.parametrize("token", ["", "with space 0123456789", "line\nbreak-0123456789", "ü" * 20])
    def test_a_client_refuses_what_no_header_can_carry(self, token: str) -> None:
        """Told at once and without the token, where grpc would show it in an error."""
        with pytest.raises(ConfigurationError, match=f"got {len(token)} characters"):
            GuardClient(token=token)


class TestTls:
    async def test_clients_that_know_the_root_are_answered(self, pki: Pki) -> None:
        """Sync and async, with a token as well."""
        async with (
            served(tls=pki.issue("server")) as server,
            client_of(server, tls=pki.client_tls(), token=TOKEN) as client,
        ):
            assert (await client.check("hello")).action is Action.ALLOW

            def ask() -> Action:
                with GuardClient(f"{HOST}:{server.port}", tls=pki.client_tls()) as sync:
                    return sync.check("hello").action

            assert await asyncio.to_thread(ask) is Action.ALLOW

    async def test_plain_text_and_strangers_are_not(self, pki: Pki, tmp_path: Path) -> None:
        """A client without TLS, one that trusts another root, and one that expects another name, hear UNAVAILABLE."""
        (tmp_path / "other").mkdir()
        other = Pki(tmp_path / "other", trustme.CA())
        wrong_name = ClientTls(root=pki.root, server_name="other.example.org")
        async with served(tls=pki.issue("server")) as server:
            for tls in (None, other.client_tls(), wrong_name):
                async with client_of(server, tls=tls) as client:
                    with pytest.raises(Unavailable):
                        await client.check("hello")

    async def test_a_client_certificate_is_asked_for(self, pki: Pki, tmp_path: Path) -> None:
        """Only clients that a root of ``client_ca`` vouches for come in."""
        (tmp_path / "other").mkdir()
        stranger = Pki(tmp_path / "other", trustme.CA()).client_tls("client")
        stranger = ClientTls(root=pki.root, cert=stranger.cert, key=stranger.key)
        files = pki.issue("server")
        async with served(tls=TlsFiles(files.cert, files.key, pki.root)) as server:
            async with client_of(server, tls=pki.client_tls("client")) as client:
                assert (await client.check("hello")).action is Action.ALLOW
            for tls in (pki.client_tls(), stranger):
                async with client_of(server, tls=tls) as client:
                    with pytest.raises(Unavailable):
                        await client.check("hello")

    async def test_a_new_certificate_is_used_without_a_restart(self, pki: Pki) -> None:
        """New connections get it; one that exists goes on."""
        files = pki.issue("server")
        async with served(tls=files) as server, client_of(server, tls=pki.client_tls()) as old:
            assert (await old.check("hello")).action is Action.ALLOW
            before = await asyncio.to_thread(ssl.get_server_certificate, (HOST, server.port))
            assert server.certificates is not None
            pair = server.certificates.pair
            pki.issue("server")
            await until(lambda: server.certificates is not None and server.certificates.pair is not pair)
            after = await asyncio.to_thread(ssl.get_server_certificate, (HOST, server.port))
            assert before != after
            assert after.strip() in files.cert.read_text("ascii")
            assert (await old.check("hello")).action is Action.ALLOW
            async with client_of(server, tls=pki.client_tls()) as new:
                assert (await new.check("hello")).action is Action.ALLOW

    async def test_a_broken_pair_changes_nothing(self, pki: Pki, caplog: pytest.LogCaptureFixture) -> None:
        """A key that is half written is refused, and the certificate before it stays."""
        files = pki.issue("server")
        async with served(tls=files) as server:
            files.key.write_bytes(files.key.read_bytes()[:100])
            await until(lambda: "the certificate is kept as it was" in caplog.text)
            async with client_of(server, tls=pki.client_tls()) as client:
                assert (await client.check("hello")).action is Action.ALLOW

    async def test_a_certificate_that_expires_is_told_of(self, pki: Pki, caplog: pytest.LogCaptureFixture) -> None:
        """Clients hear UNAVAILABLE and the log says why; a renewed one is taken up."""
        soon = datetime.now(timezone.utc) + timedelta(seconds=2)
        async with served(tls=pki.issue("server", not_after=soon)) as server:
            await until(lambda: "certificate has expired" in caplog.text)
            async with client_of(server, tls=pki.client_tls()) as client:
                with pytest.raises(Unavailable):
                    await client.check("hello", timeout_s=2)
            pki.issue("server")
            with caplog.at_level(logging.INFO, "guardrail.server"):
                await until(lambda: "the certificate was replaced" in caplog.text)
            async with client_of(server, tls=pki.client_tls()) as client:
                assert (await client.check("hello")).action is Action.ALLOW

    def test_the_context_of_an_http_server_follows_too(self, pki: Pki) -> None:
        """It is one context, whose next handshakes have the new certificate."""
        files = pki.issue("server")
        certificates = Certificates(files)
        context = certificates.ssl_context()
        pki.issue("server")
        certificates.replace(read_tls(files))
        assert certificates.ssl_context() is context
        assert served_certificate(context, pki) == ssl.PEM_cert_to_DER_cert(first_pem(files.cert))


class TestFiles:
    def test_a_key_of_another_certificate_is_refused(self, pki: Pki) -> None:
        """Before anybody connects."""
        mixed = TlsFiles(pki.issue("a").cert, pki.issue("b").key)
        with pytest.raises(ConfigurationError, match="no certificate and its key"):
            read_tls(mixed)

    def test_an_expired_certificate_is_refused(self, pki: Pki) -> None:
        """No client would take it."""
        files = pki.issue("server", not_after=datetime.now(timezone.utc) - timedelta(minutes=1))
        with pytest.raises(ConfigurationError, match=r"server\.pem: certificate has expired; renew it"):
            read_tls(files)

    @pytest.mark.parametrize("content", [b"", b"no PEM", b"\xff\xfe"])
    def test_files_that_are_no_certificates_are_refused(self, pki: Pki, content: bytes, tmp_path: Path) -> None:
        """Neither as the server's own nor as the clients' root; the file is named."""
        bad = tmp_path / "bad.pem"
        bad.write_bytes(content)
        good = pki.issue("server")
        for files in (TlsFiles(bad, good.key), TlsFiles(good.cert, bad), TlsFiles(good.cert, good.key, bad)):
            with pytest.raises(ConfigurationError, match=r"bad\.pem"):
                read_tls(files)
        with pytest.raises(ConfigurationError, match=r"cannot read .*gone\.pem"):
            read_tls(TlsFiles(good.cert, tmp_path / "gone.pem"))

    def test_a_pair_does_not_show_its_key(self, pki: Pki) -> None:
        """Not even where somebody logs it whole."""
        assert "PRIVATE KEY" not in repr(read_tls(pki.issue("server")))

    def test_a_client_certificate_comes_with_its_key(self, pki: Pki, tmp_path: Path) -> None:
        """Half of a pair, or a file that is not there, is told at once."""
        with pytest.raises(ConfigurationError, match="belong together"):
            GuardClient(tls=ClientTls(cert=pki.issue("client").cert))
        with pytest.raises(ConfigurationError, match=r"cannot read .*gone\.pem"):
            GuardClient(tls=ClientTls(root=tmp_path / "gone.pem"))


class TestBeyondLoopback:
    def test_without_protection_it_does_not_start(self) -> None:
        """The error says what to do."""
        guard = Guard(KEYWORDS, policy=load_policy("default"))
        with pytest.raises(ConfigurationError, match="--token-file"):
            GuardServer(guard, options=ServerOptions(host="0.0.0.0", port=0))

    @pytest.mark.parametrize(("has_reflection", "is_there"), [(None, False), (True, True)])
    async def test_reflection_is_off_unless_asked_for(
        self, token_file: Path, has_reflection: bool | None, is_there: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        """And a token in plain text is warned of."""
        metadata = (("authorization", f"Bearer {TOKEN}"),)
        async with (
            served(host="0.0.0.0", token_file=token_file, has_reflection=has_reflection) as server,
            channel_to(server) as channel,
        ):
            call = channel.stream_stream(REFLECTION)(iter([b""]) if is_there else None, metadata=metadata)
            if is_there:
                assert await call.read()
            else:
                assert (await status_of(call.read())).code() is grpc.StatusCode.UNIMPLEMENTED
        assert "plain text" in caplog.text

    async def test_ipv6_loopback_is_an_address(self) -> None:
        """With its brackets put where grpc wants them."""
        try:
            async with served(host="::1") as server, AsyncGuardClient(f"[::1]:{server.port}") as client:
                assert (await client.check("hello")).action is Action.ALLOW
        except ConfigurationError:
            pytest.skip("this machine has no IPv6 loopback")


class TestCommand:
    @pytest.mark.parametrize(
        "given", [{"tls_cert": "c"}, {"tls_key": "k"}, {"tls_client_ca": "r"}, {"tls_cert": "c", "tls_client_ca": "r"}]
    )
    def test_half_of_tls_is_refused(self, given: dict[str, str]) -> None:
        """A certificate needs its key, and asking clients for theirs needs both."""
        with pytest.raises(InvalidInput, match="--tls-cert and --tls-key belong together"):
            serve_command.serve(**{name: Path(value) for name, value in given.items()})  # type: ignore[arg-type]

    def test_an_open_door_is_refused_before_a_model_is_built(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The error comes at once, and not after the weights were loaded."""
        monkeypatch.setattr(serve_command, "build_guard", lambda **_: pytest.fail("a guard was built"))
        with pytest.raises(GuardrailError, match="--token-file"):
            serve_command.serve(host="0.0.0.0", port=0)


def first_pem(path: Path) -> str:
    end = "-----END CERTIFICATE-----\n"
    return path.read_text("ascii").partition(end)[0] + end


def served_certificate(server: ssl.SSLContext, pki: Pki) -> bytes | None:
    """Shakes hands in memory and returns what the server showed."""
    client = ssl.create_default_context(cafile=str(pki.root))
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking = client.wrap_bio(to_client, to_server, server_hostname=HOST)
    answering = server.wrap_bio(to_server, to_client, server_side=True)
    for side in (asking, answering, asking):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    return asking.getpeercert(binary_form=True)


async def test_a_refused_stream_says_why(token_file: Path) -> None:
    """However fast a client of asyncio sends, it hears the reason and not that a write has failed."""
    async with served(token_file=token_file) as server:
        for _ in range(10):
            async with client_of(server) as client:
                with pytest.raises(Unauthenticated):
                    _ = [result async for result in client.check_many(["hello"] * 1000)]


async def test_a_refused_stream_is_not_judged(token_file: Path) -> None:
    """However much a stranger sends, the answer is UNAUTHENTICATED and the classifier hears nothing."""
    gated = GatedClassifier()

    def ask(port: int) -> None:
        with GuardClient(f"{HOST}:{port}") as client, pytest.raises(Unauthenticated):
            list(client.check_many(["private"] * 1000))

    async with served(gated, token_file=token_file) as server:
        await asyncio.to_thread(ask, server.port)
    assert "private" not in gated.asked

"""The HTTP door: moderations, probes, errors, credentials and its life, over real connections."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import signal
import ssl
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from fake_upstream import Reply, fake_upstream
from http_door import door
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from sidecar import KEYWORDS, EvalShield, GatedClassifier, until
from typer.testing import CliRunner

from guardrail.cli import app
from guardrail.cli.serve import _telemetry
from guardrail.client import AsyncGuardClient
from guardrail.errors import ClassificationError, ConfigurationError
from guardrail.pipeline import Guard
from guardrail.policy import load_policy
from guardrail.server import CANARIES, Canary, GuardServer, HttpOptions, ServerOptions
from guardrail.taxonomy import HazardCategory
from guardrail.testing import FailingClassifier
from guardrail.verdict import Outcome, Role

TOKEN = "a-token-of-sixteen-or-more"
SAFE = "First you mix flour and water, then you wait for an hour. "


async def failure(asked: Any) -> openai.APIStatusError:
    with pytest.raises(openai.APIStatusError) as raised:
        await asked
    return raised.value


class TestModerations:
    async def test_a_text_is_judged_in_openais_shape(self) -> None:
        """Flagged, our categories and their scores, and the whole decision."""
        async with door() as door_:
            result = (await door_.client.moderations.create(input="Please grumble.")).results[0]
        assert result.flagged is True
        categories, scores = result.categories.model_dump(), result.category_scores.model_dump()
        named = {category.value for category in HazardCategory}
        assert {name for name in named if categories[name]} == {"hate"}
        assert scores["hate"] == 0.99
        assert named <= scores.keys()
        assert result.guardrail["decision"] == "block"  # type: ignore[attr-defined]  # our own field

    async def test_result_i_belongs_to_text_i(self) -> None:
        """Many texts in one request."""
        texts = ["Hello.", "Please grumble.", "Good bye."]
        async with door() as door_:
            answer = await door_.client.moderations.create(input=texts)
        assert [result.flagged for result in answer.results] == [False, True, False]

    async def test_an_answer_can_be_judged_too(self) -> None:
        """With ``role`` and ``prompt``, under the response rail; a finding in code flags it."""
        text = "```python\neval(input())\n```\n"
        async with door(code_shield=EvalShield()) as door_:
            as_prompt = await door_.client.moderations.create(input=text)
            role = {"role": "assistant", "prompt": "Which function?"}
            as_answer = await door_.client.moderations.create(input=text, extra_body=role)
        assert not as_prompt.results[0].flagged
        assert as_answer.results[0].flagged
        assert as_answer.results[0].guardrail["findings"][0]["cwe"] == "CWE-95"  # type: ignore[attr-defined]

    async def test_what_could_not_be_judged_is_flagged_without_scores(self) -> None:
        """No score is not a score of zero."""
        async with door(classifier=FailingClassifier(ClassificationError("told to")), canaries=()) as door_:
            response = await door_.http.post("/v1/moderations", json={"input": "Hello."})
        (result,) = response.json()["results"]
        assert result["flagged"] is True
        assert result["guardrail"]["outcome"] == "unverified"
        assert set(result["category_scores"].values()) == {None}

    async def test_too_many_texts_are_refused(self) -> None:
        """With how many there may be."""
        async with door(http={"max_inputs": 2}) as door_:
            error = await failure(door_.client.moderations.create(input=["a", "b", "c"]))
        assert error.status_code == 400
        assert "1 to 2 texts" in error.message

    async def test_http_and_grpc_decide_alike(self) -> None:
        """The same texts, as prompts and as answers, through both doors: equal decisions."""
        texts = [
            "Hello.",
            "Please grumble.",
            "Use `eval(`:\n```python\neval(x)\n```\n",
            " ",
            "🙂 grumble 🙂",
            "a" * 9000,
        ]
        async with door(code_shield=EvalShield()) as door_, AsyncGuardClient(f"127.0.0.1:{door_.server.port}") as grpc:
            for role, prompt in ((Role.USER, None), (Role.ASSISTANT, "Which one?")):
                body = {"role": role.value, "prompt": prompt}
                answer = await door_.client.moderations.create(input=texts, extra_body=body)
                for text, result in zip(texts, answer.results, strict=True):
                    decision = await grpc.check(text, role=role, prompt=prompt)
                    assert result.guardrail == decision.to_dict()  # type: ignore[attr-defined]
                    assert result.flagged is not decision.action.releases


class TestProbes:
    async def test_alive_and_ready(self) -> None:
        """Alive from the start; ready once the canaries came out right."""
        async with door(is_ready=False, canaries=[Canary("Hello.", Outcome.UNSAFE)]) as door_:
            assert (await door_.http.get("/healthz")).status_code == 200
            assert (await door_.http.get("/readyz")).status_code == 503
            assert (await failure(door_.ask())).status_code in (501, 503)
            error = await failure(door_.client.moderations.create(input="Hello."))
            assert error.status_code == 503
            assert "not ready" in error.message
        async with door() as door_:
            assert (await door_.http.get("/readyz")).json() == {"status": "ready"}

    async def test_the_model_is_listed(self) -> None:
        """Chat windows ask for it first."""
        async with fake_upstream() as upstream, door(upstream) as door_:
            assert [model.id async for model in door_.client.models.list()] == ["the-model"]
        async with door() as door_:
            assert [model.id async for model in door_.client.models.list()] == []


class TestErrors:
    async def test_errors_have_openais_shape_and_an_id(self) -> None:
        """``error.message``, ``type``, ``param`` and ``code``; the id is the caller's where it may stand in a log."""
        async with door() as door_:
            response = await door_.http.post("/v1/chat/completions", json=[], headers={"x-request-id": "mine"})
            other = await door_.http.post("/v1/chat/completions", json=[], headers=[("x-request-id", b"\xfc")])
        assert response.status_code == 400
        assert response.json()["error"].keys() == {"message", "type", "param", "code"}
        assert response.headers["x-request-id"] == "mine"
        assert re.fullmatch("[0-9a-f]{32}", other.headers["x-request-id"])

    @pytest.mark.parametrize(
        ("content", "headers", "status"),
        [
            (b"{", {"content-type": "application/json"}, 400),
            (b'{"messages": "\xff"}', {"content-type": "application/json"}, 400),
            (b"[" * 100_000, {"content-type": "application/json"}, 400),
            (b'{"temperature": NaN}', {"content-type": "application/json"}, 400),
            (b"{}", {"content-type": "text/plain"}, 415),
            (b"{}", {"content-type": "application/json", "content-encoding": "gzip"}, 415),
            (b"x" * 2000, {"content-type": "application/json"}, 413),
            (b"x" * 200_000, {"content-type": "application/json"}, 413),
        ],
    )
    async def test_bodies_that_cannot_be_read_are_refused(self, content: bytes, headers: Any, status: int) -> None:
        """By their status, and without a word of theirs."""
        limit = 10**6 if status == 400 else 1000
        async with fake_upstream() as upstream, door(upstream, http={"max_body_bytes": limit}) as door_:
            response = await door_.http.post("/v1/chat/completions", content=content, headers=headers)
        assert response.status_code == status
        assert response.json()["error"]["type"] == "invalid_request_error"

    async def test_unknown_paths_and_methods_are_refused_alike(self) -> None:
        """In OpenAI's shape, with what there is."""
        async with door() as door_:
            responses = [await door_.http.get("/v1/embeddings"), await door_.http.get("/v1/chat/completions")]
        assert [response.status_code for response in responses] == [404, 405]
        assert all("/v1/moderations" in response.json()["error"]["message"] for response in responses)

    async def test_without_an_upstream_chat_is_not_configured(self) -> None:
        """501, what to start it with, and no use in asking again."""
        async with door() as door_:
            error = await failure(door_.ask())
        assert error.status_code == 501
        assert "--upstream URL" in error.message
        assert error.response.headers["x-should-retry"] == "false"

    async def test_a_failing_upstream_is_a_bad_gateway(self) -> None:
        """502 with its status; what it said, which may repeat the prompt, is left out."""
        async with fake_upstream(Reply(status=500), Reply(status=400)) as upstream, door(upstream) as door_:
            responses = [await door_.post(), await door_.post(stream=True)]
        assert [response.status_code for response in responses] == [502, 502]
        assert "HTTP 500" in responses[0].json()["error"]["message"]
        assert not any("bread" in response.text for response in responses)

    async def test_a_full_server_says_when_to_come_back(self) -> None:
        """429 and Retry-After, for chat and moderations, while the one place is taken."""
        classifier = GatedClassifier("wait for me")
        async with (
            fake_upstream() as upstream,
            door(upstream, classifier, max_in_flight=1, max_waiting=0, retry_after_s=2.5) as d,
        ):
            waiting = asyncio.create_task(d.client.moderations.create(input="wait for me"))
            await classifier.entered.wait()
            errors = [
                await failure(d.ask()),
                await failure(d.ask(stream=True)),
                await failure(d.client.moderations.create(input="a")),
            ]
            classifier.may_go.set()
            await waiting
        assert {error.status_code for error in errors} == {429}
        assert {error.response.headers["retry-after"] for error in errors} == {"3"}

    async def test_a_defect_has_an_id_and_no_words(self, caplog: pytest.LogCaptureFixture) -> None:
        """The response names an id that the log explains by type and place."""

        class Broken:
            model = "broken"

            def open(self, _request: object) -> Any:
                raise ValueError("about bread")

            async def aclose(self) -> None:
                pass

        async with door(http={"chat": Broken()}) as door_:
            error = await failure(door_.ask())
        assert error.status_code == 500
        found = re.search(r"internal error (\w{12})", error.message)
        assert found
        assert f"{found[1]}: ValueError at" in caplog.text
        assert "bread" not in error.message + caplog.text


class TestCredentials:
    @pytest.fixture
    def token_file(self, tmp_path: Path) -> Path:
        path = tmp_path / "tokens"
        path.write_text(TOKEN + "\n", "utf-8")
        return path

    async def test_a_token_is_needed_for_everything_but_probes(self, token_file: Path) -> None:
        """401 without it or with another one; OpenAI's client sends it as its api_key."""
        async with fake_upstream(SAFE) as upstream:
            async with door(upstream, token_file=token_file, api_key=TOKEN) as door_:
                assert (await door_.ask()).choices[0].message.content == SAFE
                paths = {"/v1/models": 401, "/metrics": 401, "/nothing": 401, "/healthz": 200, "/readyz": 200}
                for path, status in paths.items():
                    assert (await door_.http.get(path)).status_code == status, path
                twice = [("authorization", f"Bearer {TOKEN}"), ("authorization", "Bearer other")]
                for headers in (twice, twice[::-1]):
                    assert (await door_.http.get("/v1/models", headers=headers)).status_code == 401
            async with door(upstream, token_file=token_file, api_key="another-token-of-some-length") as door_:
                error = await failure(door_.ask())
        assert error.status_code == 401
        assert "another-token" not in error.message
        assert "authorization" not in upstream.headers[0] or TOKEN not in upstream.headers[0]["authorization"]

    async def test_browsers_are_refused_where_no_token_keeps_them_out(self, token_file: Path) -> None:
        """A page on any site could ask a server on loopback; with a token it cannot."""
        origin = {"origin": "https://example.com"}
        async with door() as door_:
            refused = await door_.http.post("/v1/moderations", json={"input": "a"}, headers=origin)
        async with door(token_file=token_file) as door_:
            headers = {**origin, "authorization": f"Bearer {TOKEN}"}
            taken = await door_.http.post("/v1/moderations", json={"input": "a"}, headers=headers)
        assert (refused.status_code, taken.status_code) == (403, 200)

    def test_beyond_loopback_it_needs_protection(self) -> None:
        """As gRPC does."""
        guard = Guard(KEYWORDS, policy=load_policy("default"))
        with pytest.raises(ConfigurationError, match=r"0\.0\.0\.0"):
            GuardServer(guard, options=ServerOptions(port=0), http=HttpOptions(host="0.0.0.0", port=0))


class TestLife:
    async def test_a_taken_port_is_a_configuration_error(self) -> None:
        """Named, before anything is served."""
        async with door() as door_:
            guard = Guard(KEYWORDS, policy=load_policy("default"))
            http = HttpOptions(port=int(door_.url.rpartition(":")[2]))
            second = GuardServer(guard, options=ServerOptions(port=0), http=http)
            try:
                with pytest.raises(ConfigurationError, match="taken"):
                    await second.start()
            finally:
                await second.stop()

    async def test_work_in_flight_ends_before_the_server_does(self) -> None:
        """New requests end as 503 meanwhile, and the probe says why."""
        classifier = GatedClassifier("wait for me")
        async with door(classifier=classifier, grace_s=20) as door_:
            waiting = asyncio.create_task(door_.client.moderations.create(input="wait for me"))
            await classifier.entered.wait()
            stopping = asyncio.create_task(door_.server.stop())
            await until(lambda: not door_.server.is_ready)
            assert (await door_.http.get("/readyz")).json() == {"status": "stopping"}
            assert (await failure(door_.client.moderations.create(input="a"))).status_code == 503
            classifier.may_go.set()
            assert (await waiting).results[0].flagged is False
            await stopping

    async def test_work_that_does_not_end_is_answered_all_the_same(self) -> None:
        """After the grace time, with 503; or, in the middle of a stream, with an error as its last event."""
        classifier = GatedClassifier("wait for me")
        reply = Reply(SAFE * 3, waits_after=25)
        async with fake_upstream(reply) as upstream, door(upstream, classifier, grace_s=0.05) as door_:
            waiting = asyncio.create_task(door_.client.moderations.create(input="wait for me"))
            streaming = asyncio.create_task(door_.post(stream=True))
            await until(lambda: bool(upstream.waiting) and classifier.entered.is_set())
            await door_.server.stop()
            assert (await failure(waiting)).status_code == 503
            assert '"code":"unavailable"' in (await streaming).text


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 and its key."""
    from datetime import datetime, timedelta, timezone
    from ipaddress import ip_address

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(timezone.utc)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    cert_file, key_file = tmp_path / "cert.pem", tmp_path / "key.pem"
    cert_file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    form = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    key_file.write_bytes(key.private_bytes(serialization.Encoding.PEM, *form))
    return cert_file, key_file


class Collector:
    """Takes OTLP traces over HTTP; keeps the names of spans and of their services."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, str]] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"])))
                for resource in request.resource_spans:
                    names = {a.key: a.value.string_value for a in resource.resource.attributes}
                    for scope in resource.scope_spans:
                        collector.spans += [(names["service.name"], span.name) for span in scope.spans]
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    def __enter__(self) -> Collector:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


async def judge(url: str, cert: Path) -> list[bool]:
    """Asks a program, once it is ready, about a safe and an unsafe text; looks at its metrics too."""
    async with httpx.AsyncClient(base_url=url, verify=ssl.create_default_context(cafile=str(cert))) as http:
        while (await http.get("/readyz")).status_code != 200:  # noqa: ASYNC110 - it is asked
            await asyncio.sleep(0.1)
        answer = (await http.post("/v1/moderations", json={"input": [canary.text for canary in CANARIES]})).json()
        assert 'guardrail_decisions_total{action="block",rail="prompt"} ' in (await http.get("/metrics")).text
        return [result["flagged"] for result in answer["results"]]


class TestProgram:
    def test_a_server_without_http_needs_none_of_its_packages(self) -> None:
        """Neither starlette nor uvicorn, prometheus_client or opentelemetry."""
        program = "import guardrail.server, guardrail.cli.serve, json, sys; print(json.dumps(sorted(sys.modules)))"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        loaded = {name.partition(".")[0] for name in json.loads(done.stdout)}
        assert not loaded & {"starlette", "uvicorn", "prometheus_client", "opentelemetry", "httpx"}

    def test_guardrail_serve_has_an_http_door(self, certificate: tuple[Path, Path]) -> None:
        """Over TLS, with JSON logs and traces to a collector; SIGTERM ends both doors in order."""
        cert, key = certificate
        command = [
            *(sys.executable, "-m", "guardrail", "serve", "--port", "0", "--model", "embedded"),
            *("--http", "127.0.0.1:0", "--tls-cert", str(cert), "--tls-key", str(key), "--log-format", "json"),
        ]
        lines: list[str] = []
        with Collector() as collector:
            environment = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
            process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
            assert process.stderr is not None
            try:
                url = ""
                while not url:
                    lines.append(process.stderr.readline())
                    assert lines[-1], "it ended before it listened"
                    if found := re.search(r"HTTP on (https://127\.0\.0\.1:\d+)", lines[-1]):
                        url = found[1]
                reading = threading.Thread(target=lambda: lines.extend(process.stderr or ()), daemon=True)
                reading.start()
                assert asyncio.run(judge(url, cert)) == [False, True]
                process.send_signal(signal.SIGTERM)
                assert process.wait(30) == 0
                reading.join(10)
            finally:
                process.kill()
                process.wait()
        records = [json.loads(line) for line in lines if line.startswith("{")]
        access = [record["method"] for record in records if record["logger"] == "guardrail.access"]
        assert access == ["/v1/moderations"]
        assert {("guardrail", "http /v1/moderations"), ("guardrail", "prompt_check")} <= set(collector.spans)
        assert not any(canary.text in line for canary in CANARIES for line in lines)

    @pytest.mark.parametrize("address", ["8080", ":8080", "127.0.0.1:", "127.0.0.1:http", "127.0.0.1:65536"])
    def test_an_address_that_is_none_is_bad_usage(self, address: str) -> None:
        """Told before a model is loaded."""
        done = CliRunner().invoke(app, ["serve", "--http", address])
        assert done.exit_code == 2
        assert "expected HOST:PORT" in done.stderr

    @pytest.mark.parametrize("address", ["8080", "0.0.0.0:0"])
    def test_a_refused_command_leaves_logging_alone(self, address: str) -> None:
        """A program that runs the command in its own process logs as before; its stderr may be gone by then."""
        before = logging.getLogger().handlers[:]
        assert CliRunner().invoke(app, ["serve", "--http", address]).exit_code == 2
        assert logging.getLogger().handlers == before

    def test_other_machines_may_not_ask_without_protection(self) -> None:
        """Told before a model is loaded, as for gRPC."""
        done = CliRunner().invoke(app, ["serve", "--http", "0.0.0.0:0"])
        assert done.exit_code == 2
        assert "0.0.0.0" in done.stderr

    def test_traces_are_off_unless_asked_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nothing is sent anywhere by itself."""
        for name in [name for name in os.environ if name.startswith("OTEL_")]:
            monkeypatch.delenv(name)
        assert _telemetry(has_metrics=False, has_tracing=False).tracing is None
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
        telemetry = _telemetry(has_metrics=False, has_tracing=False)
        assert telemetry.tracing is not None
        telemetry.close()

"""The examples run as they are shown, and show nothing that was refused."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import re
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import json_format

from guardrail import decorator
from guardrail._pb import guard_pb2 as pb
from guardrail._pb import guard_pb2_grpc
from guardrail.pipeline import Guard
from guardrail.policy import load_policy
from guardrail.server import GuardServer, ServerOptions
from guardrail.serving.options import Canary
from guardrail.taxonomy import HazardCategory
from guardrail.testing import KeywordClassifier
from guardrail.verdict import Outcome

EXAMPLES = Path(__file__).parents[2] / "examples"
NODE = EXAMPLES / "node"

GUARD = Guard(
    KeywordClassifier({"stupid": HazardCategory.HATE, "grumble": HazardCategory.HATE}),
    policy=load_policy("default"),
    code_shield=KeywordClassifier({}),
)
CANARIES = (Canary("fine", Outcome.SAFE), Canary("I grumble", Outcome.UNSAFE))


@pytest.fixture(scope="module")
def target() -> Iterator[str]:
    """The address of a sidecar that is quick: it refuses what holds a word."""
    started: futures.Future[tuple[asyncio.AbstractEventLoop, asyncio.Event, int]] = futures.Future()

    async def serve() -> None:
        server = GuardServer(GUARD, options=ServerOptions(port=0, canaries=CANARIES))
        await server.start()
        await server.wait_until_ready()
        ended = asyncio.Event()
        started.set_result((asyncio.get_running_loop(), ended, server.port))
        await ended.wait()
        await server.stop(1.0)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    loop, ended, port = started.result(30)
    yield f"127.0.0.1:{port}"
    loop.call_soon_threadsafe(ended.set)
    thread.join()


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=120
    )


class TestChatbotWrapper:
    def test_its_four_turns_show_what_they_say(self) -> None:
        """A safe turn, a blocked prompt, an answer that is generated again, and code that comes back secure."""
        done = run([sys.executable, str(EXAMPLES / "chatbot_wrapper.py")], GUARDRAIL_MODEL="embedded")
        assert done.returncode == 0, done.stderr
        safe, prompt, roast, code = done.stdout.split("--- ")[1:]
        assert "assistant: You asked: What makes bread rise?" in safe
        assert "[prompt: block" in prompt
        assert GUARD.policy.block_message in prompt
        assert "[attempt 1: retry" in roast
        assert "They say your team ships on Fridays" in roast
        assert "CWE-78" in code
        assert "shell=True" not in code
        assert "check=False" in code


class TestFastApi:
    @pytest.fixture
    def module(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        """The example as uvicorn would import it, with a quick guard in place of the embedded model."""
        pytest.importorskip("fastapi", reason="needs guardrail[dev]")
        monkeypatch.setattr(decorator, "default_guard", lambda: GUARD)
        monkeypatch.delenv("GUARDRAIL_TARGET", raising=False)
        spec = importlib.util.spec_from_file_location("fastapi_chatbot", EXAMPLES / "fastapi_chatbot.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "fastapi_chatbot", module)
        spec.loader.exec_module(module)
        return module

    async def chat(self, module: Any, *prompts: str, path: str = "/chat") -> Any:
        httpx = pytest.importorskip("httpx", reason="needs guardrail[upstream]")
        messages = [{"role": "user", "content": prompt} for prompt in prompts]
        async with (
            module.lifespan(module.app),
            httpx.AsyncClient(transport=httpx.ASGITransport(module.app), base_url="http://chatbot") as client,
        ):
            return await client.post(path, json={"messages": messages})

    @pytest.mark.parametrize("place", ["in its process", "by a sidecar"])
    async def test_it_shows_checked_text_alone(
        self, module: Any, place: str, target: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The same chatbot, guarded either way: an answer, a refused prompt, an answer that is refused at its end."""
        if place == "by a sidecar":
            monkeypatch.setenv("GUARDRAIL_TARGET", target)
        answer = await self.chat(module, "Why does bread rise?")
        assert answer.status_code == 200
        assert answer.text.rstrip().endswith("Bread is fine.")
        assert (await self.chat(module, "I grumble")).text == module.REFUSAL
        refused = (await self.chat(module, "Roast my team.")).text
        assert module.REFUSAL in refused
        assert "stupid" not in refused

    async def test_a_sidecar_that_is_gone_is_an_error(self, module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """What cannot be checked is not answered."""
        monkeypatch.setenv("GUARDRAIL_TARGET", "127.0.0.1:1")
        answer = await self.chat(module, "Why does bread rise?")
        assert answer.status_code == 503
        assert "Unavailable" in answer.text

    async def test_a_request_that_cannot_be_is_the_callers_error(self, module: Any) -> None:
        """No message at all is told, not guessed at."""
        assert (await self.chat(module)).status_code == 422


class TestNode:
    @pytest.fixture
    def check(self) -> Callable[..., subprocess.CompletedProcess[str]]:
        node = shutil.which("node")
        if node is None:
            pytest.skip("needs node")
        if not (NODE / "node_modules" / "@grpc").is_dir():
            pytest.skip("needs its packages: npm install in examples/node")

        def run_client(prompt: str, target: str) -> subprocess.CompletedProcess[str]:
            assert node is not None
            return run([node, str(NODE / "client.mjs"), prompt], GUARDRAIL_TARGET=target)

        return run_client

    def test_the_exit_code_is_the_decision(self, check: Any, target: str) -> None:
        """0 where the text may be shown, 3 where not, 1 where nobody could say."""
        assert check("Why does bread rise?", target).returncode == 0
        blocked = check("I grumble", target)
        assert (blocked.returncode, blocked.stdout) == (3, "may not be shown (hate)\n")
        gone = check("Why does bread rise?", "127.0.0.1:1")
        assert gone.returncode == 1
        assert "UNAVAILABLE" in gone.stderr

    @pytest.mark.parametrize("action", [None, 0, 3, 77])
    def test_what_it_does_not_know_is_refused(self, check: Any, action: int | None) -> None:
        """A server of another version cannot talk it into showing a text."""
        response = pb.CheckResponse()
        if action is not None:
            response.decision.action = action  # type: ignore[assignment]  # the enum is open on the wire
        with answering(response) as fake:
            assert check("Why does bread rise?", fake).returncode == 3

    def test_it_is_a_module_that_node_can_read(self) -> None:
        """Its syntax is right, also where its packages are not installed."""
        node = shutil.which("node")
        if node is None:
            pytest.skip("needs node")
        assert run([node, "--check", str(NODE / "client.mjs")]).returncode == 0


@contextlib.contextmanager
def answering(response: pb.CheckResponse) -> Iterator[str]:
    """A server that gives one answer to every check."""

    class Fake(guard_pb2_grpc.GuardServiceServicer):
        def Check(self, request: Any, context: Any) -> pb.CheckResponse:  # noqa: N802 - grpc's name
            return response

    server = grpc.server(futures.ThreadPoolExecutor(1))
    guard_pb2_grpc.add_GuardServiceServicer_to_server(Fake(), server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None)


# What examples/grpcurl.sh needs of grpcurl, with requests read by the server's reflection alone.
GRPCURL = f"""#!{sys.executable}
import sys, json
import grpc
from google.protobuf import descriptor_pool, json_format, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

*options, target, path = sys.argv[1:]
assert options == ["-plaintext", "-d", "@"], options
channel = grpc.insecure_channel(target)
pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
service, name = path.split("/")
method = pool.FindServiceByName(service).methods_by_name[name]
text, requests = sys.stdin.read().strip(), []
while text:
    value, end = json.JSONDecoder().raw_decode(text)
    requests.append(json_format.ParseDict(value, message_factory.GetMessageClass(method.input_type)()))
    text = text[end:].strip()
kinds = dict(
    request_serializer=lambda message: message.SerializeToString(),
    response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
)
if method.client_streaming:
    answers = channel.stream_stream("/" + path, **kinds)(iter(requests))
else:
    answers = [channel.unary_unary("/" + path, **kinds)(*requests)]
for answer in answers:
    print(json_format.MessageToJson(answer))
"""


class TestGrpcurl:
    def test_the_script_asks_what_the_server_answers(self, target: str, tmp_path: Path) -> None:
        """Each request reads as its method's message and is answered; a small stand-in replaces grpcurl itself."""
        stand_in = tmp_path / "grpcurl"
        stand_in.write_text(GRPCURL, "utf-8")
        stand_in.chmod(stand_in.stat().st_mode | stat.S_IXUSR)
        path = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
        done = run(["sh", str(EXAMPLES / "grpcurl.sh")], PATH=path, TARGET=target)
        assert done.returncode == 0, done.stderr
        assert '"status": "SERVING"' in done.stdout
        answers = done.stdout.partition("--- many at once")[2]
        assert answers.index('"id": "a"') < answers.index('"id": "b"')

    def test_every_request_is_one_of_the_contract(self) -> None:
        """JSON that no method would take is an error here, as it is in grpcurl."""
        script = (EXAMPLES / "grpcurl.sh").read_text("utf-8")
        asked = re.findall(r'^ask "\$SERVICE/(\w+)" <<\'JSON\'\n(.*?)^JSON$', script, re.DOTALL | re.MULTILINE)
        assert [method for method, _ in asked] == ["GetServerInfo", "Check", "Check", "ScanCode", "CheckBatch"]
        for method, text in asked:
            texts = text.splitlines() if method == "CheckBatch" else [text]
            for each in texts:
                json_format.Parse(each, getattr(pb, f"{method}Request")())

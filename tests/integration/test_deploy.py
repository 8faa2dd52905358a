"""What is in ``deploy/`` fits this version: each file is sound by its own rules, and each command really runs."""

from __future__ import annotations

import configparser
import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from guardrail.cli import app
from guardrail.client import GuardClient
from guardrail.policy import load_policy, parse_policy
from guardrail.verdict import Action

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILES = sorted(DEPLOY.glob("Dockerfile*"))
COMPOSE = DEPLOY / "compose.yaml"
KUBERNETES = DEPLOY / "kubernetes" / "sidecar.yaml"
UNIT = DEPLOY / "guardrail.service"

READY_WITHIN_S = 60.0


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile in order, lines joined: ``("RUN", "python -m venv ...")``."""
    lines = [line for line in dockerfile.read_text("utf-8").splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def last_stage(dockerfile: Path) -> list[tuple[str, str]]:
    steps = instructions(dockerfile)
    return steps[max(i for i, (word, _) in enumerate(steps) if word == "FROM") :]


def of_kind(steps: list[tuple[str, str]], kind: str) -> list[str]:
    return [rest for word, rest in steps if word == kind]


def documents() -> dict[str, dict[str, Any]]:
    return {document["kind"]: document for document in yaml.safe_load_all(KUBERNETES.read_text("utf-8"))}


def sidecar() -> dict[str, Any]:
    containers = documents()["Deployment"]["spec"]["template"]["spec"]["initContainers"]
    return next(container for container in containers if container["name"] == "guardrail")


def unit(path: Path = UNIT) -> dict[str, str]:
    parser = configparser.RawConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # systemd's names have capitals
    parser.read(path, "utf-8")
    return dict(parser["Service"])


def image_check(dockerfile: Path) -> list[str]:
    (check,) = of_kind(last_stage(dockerfile), "HEALTHCHECK")
    return list(json.loads(check.partition("CMD ")[2]))


def commands() -> dict[str, tuple[list[str], list[str]]]:
    """For each way to run the sidecar: the arguments of ``guardrail``, and the command that asks whether it serves."""
    image, cuda = DEPLOY / "Dockerfile", DEPLOY / "Dockerfile.cuda"
    return {
        "image": (json.loads(of_kind(last_stage(image), "CMD")[0]), image_check(image)),
        "cuda image": (json.loads(of_kind(last_stage(cuda), "CMD")[0]), image_check(cuda)),
        "compose": (yaml.safe_load(COMPOSE.read_text("utf-8"))["services"]["guardrail"]["command"], image_check(image)),
        "kubernetes": (sidecar()["args"], sidecar()["readinessProbe"]["exec"]["command"]),
        "systemd": (shlex.split(unit()["ExecStart"])[1:], image_check(image)),
    }


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
class TestImages:
    def test_hadolint_has_nothing_to_say(self, dockerfile: Path) -> None:
        """The common mistakes are not in it."""
        hadolint = shutil.which(
            "hadolint", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        )
        if hadolint is None:
            pytest.skip("needs hadolint, which guardrail[dev] brings on Linux x86-64")
        done = subprocess.run([hadolint, "--no-color", str(dockerfile)], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, "")

    def test_it_runs_as_somebody_without_rights(self, dockerfile: Path) -> None:
        """A number, so that Kubernetes can see that it is not root; set after the last file was copied."""
        steps = last_stage(dockerfile)
        (user,) = of_kind(steps, "USER")
        assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
        kinds = [word for word, _ in steps]
        assert kinds.index("USER") > max(i for i, kind in enumerate(kinds) if kind == "COPY")

    def test_the_last_stage_brings_no_tools(self, dockerfile: Path) -> None:
        """Nothing is installed in it: it is the base image and the environment that was built before."""
        steps = last_stage(dockerfile)
        assert not of_kind(steps, "RUN")
        assert any(copy.startswith("--from=build /opt/") for copy in of_kind(steps, "COPY"))

    def test_the_base_has_a_version(self, dockerfile: Path) -> None:
        """No image changes its Python by itself, and all of them have the same."""
        assert ("ARG", "PYTHON_IMAGE=python:3.11-slim-bookworm") in instructions(dockerfile)
        assert {base.split()[0] for base in of_kind(instructions(dockerfile), "FROM")} == {"${PYTHON_IMAGE}"}

    def test_packages_are_those_that_are_tested(self, dockerfile: Path) -> None:
        """Every install from the index is held by constraints.txt and builds nothing, and its extras exist."""
        steps = instructions(dockerfile)
        installs = [run for run in of_kind(steps, "RUN") if "pip install" in run]
        assert installs
        for run in installs:
            assert "--no-deps" in run or ("--constraint constraints.txt" in run and "--only-binary :all:" in run)
        extras = [arg.partition("=")[2] for arg in of_kind(steps, "ARG") if arg.startswith("EXTRAS=")]
        for extra in ",".join(extras or ["client"]).split(","):
            assert re.search(rf"^{extra} = \[", (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE), extra

    def test_the_build_context_holds_what_is_copied(self, dockerfile: Path) -> None:
        """.dockerignore leaves everything out but what it names, and what is copied is named and there."""
        ignored = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
        patterns = [line for line in ignored if line and not line.startswith("#")]
        assert patterns[0] == "*"
        named = {pattern[1:] for pattern in patterns if pattern.startswith("!")}
        copies = [copy.split() for copy in of_kind(instructions(dockerfile), "COPY") if not copy.startswith("--from")]
        for source in {source for copy in copies for source in copy[:-1]}:
            assert source in named, f"{source} is not in the build context"
            assert (ROOT / source).exists()


class TestCompose:
    def test_it_is_a_compose_file(self) -> None:
        """By the schema of the Compose specification."""
        pytest.importorskip("check_jsonschema", reason="needs guardrail[dev]")
        command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(COMPOSE)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout

    def test_what_it_names_is_there(self) -> None:
        """Dockerfiles and mounted folders exist, from where compose reads their paths."""
        services = yaml.safe_load(COMPOSE.read_text("utf-8"))["services"]
        for service in services.values():
            assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
            for volume in service.get("volumes", []):
                assert (DEPLOY / volume.split(":")[0]).is_dir()
        load_policy(DEPLOY / "policy" / "policy.yaml")

    def test_the_chatbot_waits_for_the_sidecar_in_its_network(self) -> None:
        """Loopback is shared, which is what lets the sidecar go without a token."""
        services = yaml.safe_load(COMPOSE.read_text("utf-8"))["services"]
        assert services["chatbot"]["network_mode"] == "service:guardrail"
        assert services["chatbot"]["depends_on"]["guardrail"]["condition"] == "service_healthy"
        assert (
            f"--port={services['chatbot']['environment']['GUARDRAIL_TARGET'].rpartition(':')[2]}"
            in (services["guardrail"]["command"])
        )


class TestKubernetes:
    @pytest.mark.parametrize("version", ["1.29", "1.33", "1.37"])
    def test_it_is_what_kubernetes_takes(self, version: str) -> None:
        """By Kubernetes' own schemas, from the first release that has sidecars on; an unknown key is an error."""
        validator = pytest.importorskip("kubernetes_validate", reason="needs guardrail[dev]")
        for document in documents().values():
            validator.validate(document, version, strict=True)

    def test_the_policy_is_one_and_the_same(self) -> None:
        """What the ConfigMap holds is a policy, and decides as that of the compose file does."""
        held = parse_policy(documents()["ConfigMap"]["data"]["policy.yaml"])
        assert held.hash == load_policy(DEPLOY / "policy" / "policy.yaml").hash

    def test_every_container_is_confined(self) -> None:
        """No root, no writable root file system, no capabilities, and limits on what it may use."""
        pod = documents()["Deployment"]["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["automountServiceAccountToken"] is False
        for container in [*pod["initContainers"], *pod["containers"]]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert set(container["resources"]) == {"requests", "limits"}
            assert {"memory", "cpu"} == set(container["resources"]["limits"])

    def test_what_is_mounted_is_a_volume(self) -> None:
        """Each mount has its volume, and the policy's follows changes: it is no subPath."""
        pod = documents()["Deployment"]["spec"]["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        mounts = [mount for c in [*pod["initContainers"], *pod["containers"]] for mount in c["volumeMounts"]]
        assert {mount["name"] for mount in mounts} == volumes
        assert not any("subPath" in mount for mount in mounts)


class TestUnit:
    def test_systemd_takes_it(self, tmp_path: Path) -> None:
        """Every key and value is one that systemd knows; the command is replaced by one that is on this machine."""
        analyze = shutil.which("systemd-analyze")
        if analyze is None:
            pytest.skip("needs systemd-analyze")
        copy = tmp_path / UNIT.name
        copy.write_text(UNIT.read_text("utf-8").replace("/opt/guardrail/bin/guardrail", sys.executable), "utf-8")
        done = subprocess.run([analyze, "verify", "--man=no", str(copy)], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout + done.stderr) == (0, "")

    def test_it_is_confined(self) -> None:
        """A file system that it cannot write, no capabilities, no other address than loopback."""
        service = unit()
        assert service["ProtectSystem"] == "strict"
        assert service["CapabilityBoundingSet"] == ""
        assert (service["IPAddressDeny"], service["IPAddressAllow"]) == ("any", "localhost")
        assert service["ExecReload"] == "/bin/kill -HUP $MAINPID"


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


class Place:
    """A machine of its own for a command: free ports and a folder in place of those that the command names."""

    def __init__(self, folder: Path) -> None:
        self.grpc, self.http = free_ports(2)
        self._folder = folder
        shutil.copy(DEPLOY / "policy" / "policy.yaml", folder)

    def here(self, command: list[str]) -> list[str]:
        """The same command on this machine."""
        changes = {"50051": str(self.grpc), "8080": str(self.http), "/etc/guardrail": str(self._folder)}
        return [re.sub("|".join(changes), lambda found: changes[found[0]], word) for word in command]

    def asks(self, check: list[str]) -> int:
        """The exit code of a health check."""
        assert check[0] == "python"
        done = subprocess.run([sys.executable, *self.here(check)[1:]], capture_output=True, check=False)
        return done.returncode


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


class TestCommands:
    @pytest.mark.parametrize("way", commands())
    def test_its_options_exist(self, way: str, place: Place) -> None:
        """``guardrail serve`` knows every flag and takes every value."""
        arguments = place.here(commands()[way][0])
        assert arguments[0] == "serve"
        serve = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]  # it is a group
        serve.make_context("serve", arguments[1:])

    def test_options_in_the_guide_exist(self) -> None:
        """Whoever copies a line from the guide gets no usage error."""
        known = {
            name
            for parameter in typer.main.get_command(app).commands["serve"].params  # type: ignore[attr-defined]
            for name in [*parameter.opts, *parameter.secondary_opts]
        }
        named: set[str] = set()
        for line in (ROOT / "docs" / "deployment.md").read_text("utf-8").splitlines():
            if "guardrail serve" in line:
                named |= set(re.findall(r"--[a-z][a-z-]+", line))
        assert named
        assert named <= known

    @pytest.mark.parametrize("way", [way for way in commands() if way != "cuda image"])
    def test_it_serves_until_it_is_told_to_stop(self, way: str, place: Place) -> None:
        """The command runs until its own health check is content, takes SIGHUP, judges, and ends with 0 on SIGTERM."""
        arguments, check = commands()[way]
        with running(place.here(arguments)) as server:
            wait_until_ready(place, check, server)
            server.send_signal(signal.SIGHUP)
            with GuardClient(f"127.0.0.1:{place.grpc}") as guard:
                assert guard.check("Why does bread rise?").action is Action.ALLOW
                if "--policy" in " ".join(arguments):
                    assert guard.server_info().policy_name == "chatbot"
            assert place.asks(check) == 0
            assert server.poll() is None
            server.send_signal(signal.SIGTERM)
            assert server.wait(30) == 0
        assert place.asks(check) != 0

    def test_the_chatbots_health_check_is_its_own(self) -> None:
        """It asks the port that the command opens."""
        steps = last_stage(DEPLOY / "Dockerfile.chatbot")
        port = json.loads(of_kind(steps, "CMD")[0])[-1]
        assert f"'127.0.0.1', {port}," in image_check(DEPLOY / "Dockerfile.chatbot")[-1]


@contextlib.contextmanager
def running(arguments: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A sidecar in a process of its own, which does not outlive the test."""
    environment = {**os.environ, "GUARDRAIL_MODEL": "embedded"}
    command = [sys.executable, "-m", "guardrail", *arguments]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            yield server
        finally:
            if server.poll() is None:
                server.kill()


def wait_until_ready(place: Place, check: list[str], server: subprocess.Popen[bytes]) -> None:
    for _ in pauses():
        if place.asks(check) == 0:
            return
        assert server.poll() is None, f"the sidecar ended with {server.returncode}"
    raise AssertionError(f"not ready within {READY_WITHIN_S:g} s")


def pauses() -> Iterator[None]:
    end = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < end:
        yield
        time.sleep(0.3)

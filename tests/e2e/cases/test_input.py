"""What must not be, and what merely may be: bad manifests are refused, odd ones never stop anybody."""

from __future__ import annotations

import http.client
import json
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.e2e.cases.installation import NAMESPACE, Installation
from tests.e2e.cases.scene import Scene
from tests.e2e.cases.taps import tap_specs
from tests.e2e.cluster.cache import CHECKOUT
from tests.e2e.cluster.commands import ClusterError
from tests.e2e.cluster.kubectl import Resource, condition
from vtap_api.load import load_text
from vtap_cli.cluster.kubectl import Place, proxy, read_config
from vtap_lab.errors import wait_for

INVALID = sorted((CHECKOUT / "examples" / "invalid").glob("*.yaml"))
_TAPS = 60
_BATCH = 20
_NO_FIELD = (
    "api-version-unknown",
    "kind-unknown",
    "not-yaml",
    "name-malformed",
    "namespace-on-cluster-scoped",
    "duplicate-field",
)
"""Refused before any field is looked at, or of the envelope, about which the API server has words of its own."""


@dataclass(frozen=True)
class ApiServer:
    """Takes manifests as they are written, with no client in between that reads them first."""

    socket_path: str

    def create(self, text: str, namespace: str) -> tuple[int, str]:
        """HTTP status and what was said."""
        words = dict(re.findall(r"^(apiVersion|kind): *(\S+)$", text, re.MULTILINE))
        plural = words["kind"].lower() + "s"
        where = f"/namespaces/{namespace}" if words["kind"].startswith("VirtualTap") else ""
        path = f"/apis/{words['apiVersion']}{where}/{plural}?fieldValidation=Strict"
        connection = _UnixConnection(self.socket_path)
        try:
            connection.request("POST", path, text.encode(), {"Content-Type": "application/yaml", "Accept": "application/json"})
            answer = connection.getresponse()
            body = answer.read().decode()
        finally:
            connection.close()
        return answer.status, str(json.loads(body).get("message", "")) if body.startswith("{") else body


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=30)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


@pytest.fixture
def api_server(installed: Installation, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    monkeypatch.setenv("PATH", installed.vtap_environment()["PATH"])
    place = Place(kubeconfig=str(installed.cluster.kubectl.kubeconfig))
    with proxy(place, read_config(place)) as path:
        yield ApiServer(str(path))


def test_every_invalid_example_is_refused(scene: Scene, api_server: ApiServer) -> None:
    """By the API server with the same field's path, or by the operator with the sentence that `vtap validate` prints."""
    wrong = [complaint for file in INVALID if (complaint := _complaint(scene, api_server, file))]
    assert not wrong, "\n".join(wrong)
    assert len(INVALID) >= 30


def _complaint(scene: Scene, api_server: ApiServer, file: Path) -> str:
    """What is wrong with how the file is refused; empty when it is refused as it should be."""
    name = f"invalid-{scene.namespace}"
    text = file.read_text().replace("namespace: shop", f"namespace: {scene.namespace}")
    text = text.replace("name: default", f"name: {name}").replace("name: web", f"name: {file.stem}")
    [problem] = load_text(text, file.name, standalone=False).problems
    status, said = api_server.create(text, scene.namespace)
    if status < 300:
        return _complaint_of_operator(scene, file, name, problem.sentence.partition(": ")[2])
    named = [re.sub(r"\[\d+\]$", "", problem.path), problem.path]
    if file.stem in _NO_FIELD or any(re.search(rf"{re.escape(path)}\b|{re.escape(path)}:", said) for path in named):
        return ""
    return f"{file.name}: the API server names another field than {problem.path}: {said}"


def _complaint_of_operator(scene: Scene, file: Path, destination: str, sentence: str) -> str:
    kubectl = scene.product.cluster.kubectl
    kind = yaml.safe_load(file.read_text())["kind"]
    name, namespace = (file.stem, scene.namespace) if kind == "VirtualTap" else (destination, "")
    try:
        kubectl.until(
            kind.lower(),
            name,
            lambda one: condition(one, "Accepted").get("status") == "False" and sentence in condition(one, "Accepted")["message"],
            f"the operator says: {sentence}",
            namespace=namespace,
            timeout=20,
        )
    except ClusterError as error:
        return f"{file.name}: {error}"
    finally:
        kubectl.delete(kind.lower(), name, namespace=namespace)
    return ""


def test_random_taps_never_stop_anybody(scene: Scene) -> None:
    """Valid by the schema, and odd: each gets conditions, none crashes operator or agent, each can be deleted at once."""
    kubectl = scene.product.cluster.kubectl
    scene.pods(web=0, db=1)
    before = restarts(scene)
    for first in range(0, _TAPS, _BATCH):
        specs = examples(first, _BATCH)
        taps: list[Resource] = [
            {**scene.manifest(f"random-{first + number}"), "spec": {"podSelector": {}, **spec}}
            for number, spec in enumerate(specs)
        ]
        kubectl.apply(*taps)
        names = {tap["metadata"]["name"] for tap in taps}

        def all_judged(names: set[str] = names) -> bool:
            found = [one for one in kubectl.list("vtap", scene.namespace) if one["metadata"]["name"] in names]
            return len(found) == len(names) and all(judged(one) for one in found)

        wait_for(all_judged, 90, f"conditions of all of {first}…{first + _BATCH}", every=0.5)
        kubectl.delete("vtap", *names, namespace=scene.namespace, timeout=30)
    assert scene.taps() == []
    assert restarts(scene) == before
    scene.product.is_ready()


def judged(tap: Resource) -> bool:
    """Whether the tap as it is now has a verdict: accepted or not and why, and what nodes say if it was."""
    generation = tap["metadata"]["generation"]
    found = [condition(tap, kind) for kind in ("Accepted", "Programmed", "Delivering")]
    if any(one.get("observedGeneration", 0) < generation for one in found):
        return False
    return found[1]["reason"] != "Pending" and all(one["message"] for one in found)


def examples(number: int, count: int) -> list[dict[str, Any]]:
    """The same each time."""
    made: list[dict[str, Any]] = []

    @seed(number)
    @settings(
        max_examples=count,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(tap_specs())
    def collect(spec: dict[str, Any]) -> None:
        made.append(spec)

    collect()
    return made[:count]


def restarts(scene: Scene) -> dict[str, int]:
    """Of our containers, by pod."""
    pods = scene.product.cluster.kubectl.list("pods", NAMESPACE)
    return {
        pod["metadata"]["name"]: sum(one["restartCount"] for one in pod["status"].get("containerStatuses", [])) for pod in pods
    }

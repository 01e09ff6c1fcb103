"""Whatever is applied to a cluster: the API server or the operator refuses what `vtap validate` refuses, and says the same."""

from __future__ import annotations

import copy
import itertools
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from tests.e2e.apiserver.manifests import DRY, STRICT, Verdict, apply_text, collection, plain, verdict
from tests.e2e.apiserver.random_objects import any_spec, document, mutated_spec, refused, valid_spec
from tests.e2e.apiserver.running import Operator, pod, until
from tests.e2e.apiserver.server import ApiServer
from vtap_api import TapDestination, VirtualTap
from vtap_api.load import load_file, load_text
from vtap_api.refusals import ACCEPTED, refusal
from vtap_api.schema import DEFINITIONS
from vtap_api.selectors import NAMESPACE_NAME_LABEL, matches

EXAMPLES = Path(__file__).parents[3] / "examples"
INVALID = EXAMPLES / "invalid"
GOOD = sorted(path for path in EXAMPLES.rglob("*.yaml") if INVALID not in path.parents)
BAD = sorted(INVALID.glob("*.yaml"))
PLACE = "shop"
MODELS: dict[str, type[BaseModel]] = {"VirtualTap": VirtualTap, "TapDestination": TapDestination}
PLURALS = {definition.kind: definition.plural for definition in DEFINITIONS}
CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
NEVER_AN_OBJECT = {"api-version-unknown", "duplicate-field", "kind-unknown", "name-malformed", "not-yaml"}
"""Examples whose mistake keeps any API server from storing them, whatever a CRD says."""
SOON = 30.0
"""Seconds until the operator has said something of a new object, on a busy machine."""
NUMBERS = itertools.count()
LABELS = ({"app": "web"}, {"app": "db", "example.com/app": "web"}, {})
"""Of pods that random selectors may select."""

hundreds = settings(
    max_examples=300, deadline=None, database=None, print_blob=True, phases=(Phase.generate, Phase.shrink),
    suppress_health_check=(HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large),
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def shop(api: ApiServer) -> None:
    """The namespace of the examples."""
    api.make("/api/v1/namespaces", {"metadata": {"name": PLACE}})


@pytest.fixture(autouse=True)
def _unharmed(operator: Operator) -> Iterator[None]:
    """After each test the operator works, as if nothing had been."""
    yield
    assert operator.is_alive
    assert operator.get("/healthz") == "ok\n"
    assert "Traceback" not in operator.log.read_text()


@pytest.fixture(scope="module")
def printed() -> Mapping[str, str]:
    """What `vtap validate --cluster` prints of each invalid example, without file and line."""
    command = Path(sys.executable).with_name("vtap")
    done = subprocess.run(
        [command, "validate", "--cluster", INVALID], capture_output=True, text=True, timeout=60, check=False
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    said: dict[str, str] = {}
    for line in done.stdout.splitlines():
        file, _, sentence = line.removeprefix("refused ").partition(": ")
        said.setdefault(Path(file).stem, sentence.split(": ", 1)[1] if sentence.startswith("line ") else sentence)
    return said


# Examples.


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_an_invalid_example_is_refused_at_the_field_that_validate_names(api: ApiServer, path: Path) -> None:
    said = apply_text(api, path.read_text(), PLACE)
    assert not said.accepted
    assert said.paths == {plain(problem.path) for problem in load_file(path).problems if problem.path}, said.said


@pytest.mark.parametrize("path", GOOD, ids=lambda path: str(path.relative_to(EXAMPLES)))
def test_an_example_is_accepted_and_read_back_as_it_was_meant(api: ApiServer, path: Path) -> None:
    for number, (text, located) in enumerate(zip(_documents(path), load_file(path).documents, strict=True)):
        said = apply_text(api, text, PLACE, f"{path.parent.name}-{path.stem}-{number}")
        assert said.accepted, said.said
        stored = api.get(_path_of(said.body))
        assert stored is not None
        kind = said.body["kind"]
        assert _read(stored).spec == located.document.spec
        until("the operator accepts it", lambda stored=stored, kind=kind: _accepted(api, stored) is not None)
        if kind == "TapDestination":
            assert _accepted(api, stored) == ("True", "Accepted", "the destination is valid")
        api.delete(_path_of(stored))


def _documents(path: Path) -> list[str]:
    return [yaml.safe_dump(one, sort_keys=False) for one in yaml.safe_load_all(path.read_text()) if one is not None]


@pytest.fixture
def lax(api: ApiServer, operator: Operator) -> Iterator[None]:
    """CRDs that take any spec, as those of another version might."""
    before: dict[str, Any] = {}
    anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    probe = {
        "VirtualTap": document(VirtualTap, {"nonsense": True}, "probe", PLACE),
        "TapDestination": document(TapDestination, {"nonsense": True}, "probe"),
    }

    def change(kind: str, spec: Mapping[str, Any], accepted: bool) -> Mapping[str, Any]:
        path = f"{CRD}/{PLURALS[kind]}.vtap.dev"
        held = api.get(path)
        assert held is not None
        properties = held["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
        old = copy.deepcopy(properties["spec"])
        properties["spec"] = spec
        assert api.ask("PUT", path, held).status == 200
        until(f"the CRD of {kind} is in force", lambda: _post(api, probe[kind], DRY).accepted is accepted)
        return old

    for kind in MODELS:
        before[kind] = change(kind, anything, True)
    try:
        for kind, body in probe.items():
            until(f"the operator sees any {kind}", lambda body=body: _seen_as_it_is(api, body))
        yield
    finally:
        for kind, old in before.items():
            change(kind, old, False)


def _seen_as_it_is(api: ApiServer, body: Mapping[str, Any]) -> bool:
    """A watch from before a CRD changed goes on for a while, and leaves out what that CRD did not know."""
    fine = {"podSelector": {}} if body["kind"] == "VirtualTap" else {"gre": {"address": "192.0.2.9"}}
    made = _post(api, {**body, "spec": {**fine, **body["spec"]}}).body
    until("something is said of the probe", lambda: _accepted(api, made))
    said = _accepted(api, made)
    _delete_at_once(api, made)
    return said is not None and said[0] == "False"


@pytest.mark.timeout(400)
def test_what_a_crd_lets_through_the_operator_refuses_with_the_sentence_of_validate(
    api: ApiServer, operator: Operator, lax: None, printed: Mapping[str, str]
) -> None:
    stored: dict[str, Mapping[str, Any]] = {}
    for path in BAD:
        said = apply_text(api, path.read_text(), PLACE, "" if path.stem in NEVER_AN_OBJECT else path.stem)
        if said.accepted:
            stored[path.stem] = said.body
    assert {path.stem for path in BAD} - stored.keys() == NEVER_AN_OBJECT
    for name, body in stored.items():
        until(f"something is said of {name}", lambda body=body: _accepted(api, body))
    assert {name: _accepted(api, body) for name, body in stored.items()} == {
        name: ("False", "Invalid", printed[name]) for name in stored
    }
    for body in stored.values():
        _delete_at_once(api, body)


# Random objects.


@given(spec=valid_spec(VirtualTap), later=st.none() | valid_spec(VirtualTap))
@hundreds
@pytest.mark.timeout(400)
def test_any_valid_tap_is_stored_as_meant_and_gets_a_word_and_goes_at_once(
    api: ApiServer, operator: Operator, pods: None, spec: dict[str, Any], later: dict[str, Any] | None
) -> None:
    name = f"random-{next(NUMBERS)}"
    body: Any = None
    for wanted in (spec, later):
        if wanted is None:
            continue
        sent = document(VirtualTap, wanted, name, PLACE)
        said = _put(api, sent) if body else _post(api, sent)
        assert said.accepted, said.said
        body = said.body
        tap = _read(body)
        assert isinstance(tap, VirtualTap) and tap.spec == _read(sent).spec
        _until_said(api, body)
        assert _accepted(api, body) == _expected(tap)
        if _expected(tap)[0] == "True":
            _until_counted(api, body, sum(matches(tap.spec.pod_selector, labels) for labels in LABELS))
    _delete_at_once(api, body)
    assert operator.is_alive


@pytest.fixture(scope="module")
def pods(api: ApiServer, operator: Operator) -> None:
    """On a node without agent."""
    for number, labels in enumerate(LABELS):
        pod(api, PLACE, f"pod-{number}", f"10.9.0.{number + 1}", labels)


@given(spec=mutated_spec(VirtualTap))
@hundreds
@pytest.mark.timeout(400)
def test_a_tap_with_a_mistake_is_refused_or_gets_a_word(api: ApiServer, operator: Operator, spec: Any) -> None:
    said = _post(api, document(VirtualTap, spec, f"broken-{next(NUMBERS)}", PLACE))
    _assert_agreed(VirtualTap, spec, said)
    if said.accepted:
        _until_said(api, said.body)
        _delete_at_once(api, said.body)
    assert operator.is_alive


@given(spec=any_spec(VirtualTap))
@hundreds
@pytest.mark.timeout(400)
def test_schema_and_model_agree_about_taps(api: ApiServer, spec: Any) -> None:
    _assert_agreed(VirtualTap, spec, _post(api, document(VirtualTap, spec, "random", PLACE), DRY))


@given(spec=st.one_of(any_spec(TapDestination), valid_spec(TapDestination), mutated_spec(TapDestination)))
@hundreds
@pytest.mark.timeout(400)
def test_schema_and_model_agree_about_destinations(api: ApiServer, spec: Any) -> None:
    _assert_agreed(TapDestination, spec, _post(api, document(TapDestination, spec), DRY))


@given(spec=valid_spec(TapDestination))
@settings(parent=hundreds, max_examples=25)
def test_any_valid_destination_is_accepted(api: ApiServer, operator: Operator, spec: Any) -> None:
    said = _post(api, document(TapDestination, spec, f"random-{next(NUMBERS)}"))
    assert said.accepted, said.said
    _until_said(api, said.body)
    assert _accepted(api, said.body) == ("True", "Accepted", "the destination is valid")
    _delete_at_once(api, said.body)
    assert operator.is_alive


def _assert_agreed(model: type[BaseModel], spec: Any, said: Verdict) -> None:
    """Both accept, and mean the same; or both refuse, and name a field in common."""
    wrong = refused(model, _stored(spec) if said.accepted else spec)
    assert said.accepted == (wrong is None), (spec, wrong, said.said)
    if said.accepted:
        assert _read(said.body).spec == _read(document(model, _stored(spec))).spec
        return
    if _stored(spec) is not spec and "expected int, got float64" in said.said:
        return
    problems = load_text(json.dumps(document(model, spec))).problems
    named = {plain(problem.path) for problem in problems}
    assert said.paths & named or _within(said, named), (spec, problems, said.said)


def _stored(spec: Any) -> Any:
    """With 6 for 6.0, as the API server stores it where no rule in CEL stands around it, and refuses it where one does."""
    text = re.sub(r"(?<=[ \[])(\d+)\.0(?=[,}\]])", r"\1", json.dumps(spec))
    return spec if text == json.dumps(spec) else json.loads(text)


def _within(said: Verdict, named: Iterable[str]) -> bool:
    """Of a mapping where there should be none the API server says that its fields are unknown, as it looks for those first."""
    return "strict decoding error" in said.said and any(path.startswith(f"{one}.") for path in said.paths for one in named)


# Asking.


def _path_of(body: Mapping[str, Any]) -> str:
    meta = body["metadata"]
    return f"{collection(body['apiVersion'], PLURALS[body['kind']], meta.get('namespace', ''))}/{meta['name']}"


def _post(api: ApiServer, body: Mapping[str, Any], *parameters: str) -> Verdict:
    path = collection(body["apiVersion"], PLURALS[body["kind"]], body["metadata"].get("namespace", ""))
    return verdict(api.ask("POST", f"{path}?{'&'.join((STRICT, *parameters))}", body))


def _put(api: ApiServer, body: Mapping[str, Any]) -> Verdict:
    """Whatever the operator writes at the same time."""
    while True:
        held = api.get(_path_of(body))
        assert held is not None
        answer = api.ask("PUT", f"{_path_of(body)}?{STRICT}", {**body, "metadata": held["metadata"]})
        if answer.status != 409:
            return verdict(answer)


def _read(body: Mapping[str, Any]) -> Any:
    return MODELS[body["kind"]].model_validate(body, by_alias=True, by_name=False)


def _accepted(api: ApiServer, body: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """The Accepted condition, as far as it is of this generation."""
    status = (api.get(_path_of(body)) or {}).get("status") or {}
    for one in status.get("conditions") or ():
        if one["type"] == "Accepted" and one.get("observedGeneration") == body["metadata"]["generation"]:
            return one["status"], one["reason"], one["message"]
    return None


def _until_said(api: ApiServer, body: Mapping[str, Any]) -> None:
    _soon("its Accepted condition is of its generation", lambda: _accepted(api, body) is not None)


def _until_counted(api: ApiServer, body: Mapping[str, Any], pods: int) -> None:
    def counted() -> bool:
        status = (api.get(_path_of(body)) or {}).get("status") or {}
        return status.get("matchedPods", 0) == pods

    _soon(f"{pods} pods are counted", counted)


def _soon(what: str, holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SOON
    while not holds():
        assert time.monotonic() < deadline, f"this did not happen within {SOON:g} s: {what}"
        time.sleep(0.01)


def _delete_at_once(api: ApiServer, body: Mapping[str, Any]) -> None:
    """Nothing of ours holds it."""
    held = api.get(_path_of(body))
    assert held is not None and "finalizers" not in held["metadata"]
    api.delete(_path_of(body))
    assert api.get(_path_of(body)) is None


def _expected(tap: VirtualTap) -> tuple[str, str, str]:
    """What the operator must say where the destination `default` is the only one."""
    known = {"default": TapDestination.model_validate(document(TapDestination, {"collector": {}}, "default"))}
    said = refusal(tap, known, {NAMESPACE_NAME_LABEL: PLACE})
    return ("False", said.reason, said.sentence) if said else ("True", "Accepted", ACCEPTED)

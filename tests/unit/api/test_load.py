"""From text to documents, or to one sentence each that says what is wrong and what would be right."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from vtap_api import TapDestination, VirtualTap
from vtap_api.load import MAX_BYTES, load_file, load_text

TAP = """\
apiVersion: vtap.dev/v1alpha1
kind: VirtualTap
metadata: {name: web, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
"""
RICH = (Path(__file__).resolve().parents[3] / "examples" / "filter.yaml").read_text()


def sentences(text: str, *, standalone: bool = False) -> list[str]:
    return [problem.sentence for problem in load_text(text, standalone=standalone).problems]


def only_sentence(text: str) -> str:
    (sentence,) = sentences(text)
    return sentence


def tap(**spec: Any) -> str:
    head = {"apiVersion": "vtap.dev/v1alpha1", "kind": "VirtualTap", "metadata": {"name": "web"}}
    return yaml.safe_dump({**head, "spec": {"podSelector": {}, **spec}})


def rule(**parts: Any) -> dict[str, Any]:
    return {"filter": {"defaultAction": "Include", "rules": [{"action": "Include", **parts}]}}


def first_tap(text: str) -> VirtualTap:
    loaded = load_text(text)
    assert not loaded.problems, loaded.problems
    document = loaded.documents[0].document
    assert isinstance(document, VirtualTap)
    return document


def test_defaults_of_a_short_tap():
    spec = first_tap(TAP).spec
    assert spec.interfaces == ("*",)
    assert spec.direction == "Both"
    assert spec.filter is None and spec.sampling is None and spec.rate_limit is None
    assert spec.packet.snap_length is None and not spec.packet.headers_only
    assert spec.backend == "Auto"
    assert spec.destination_ref.name == "default"


def test_namespace_is_default_where_it_is_not_said():
    assert first_tap(TAP.replace(", namespace: shop", "")).metadata.namespace == "default"


def test_documents_are_immutable_and_hashable():
    document = first_tap(RICH)
    assert hash(document) == hash(first_tap(RICH))
    with pytest.raises(TypeError):
        document.spec.pod_selector.match_labels["app"] = "db"
    with pytest.raises(ValueError):
        document.spec.direction = "Ingress"  # type: ignore[misc, assignment]


def test_several_documents_each_with_its_line():
    loaded = load_text(f"{TAP}---\n{TAP.replace('web', 'db')}---\n", "taps.yaml")
    assert [(str(item.document), item.index, item.line) for item in loaded.documents] == [
        ("VirtualTap shop/web", 0, 1),
        ("VirtualTap shop/db", 1, 7),
    ]


def test_a_bad_document_does_not_hide_a_good_one():
    loaded = load_text(f"{TAP}---\nkind: VirtualTap\n", "taps.yaml")
    assert [str(item.document) for item in loaded.documents] == ["VirtualTap shop/web"]
    assert [str(problem) for problem in loaded.problems] == [
        "taps.yaml: line 7: apiVersion: is missing; write vtap.dev/v1alpha1."
    ]


def test_the_same_name_twice_is_a_problem():
    assert only_sentence(f"{TAP}---\n{TAP}") == (
        "line 7: metadata.name: VirtualTap shop/web is there already, at line 1; remove or rename one of them."
    )


def test_every_mistake_of_a_document_is_reported():
    text = TAP + "  direction: Sideways\n  backend: Magic\n  bogus: 1\n"
    assert [sentence.split(": ")[1] for sentence in sentences(text)] == ["spec.direction", "spec.backend", "spec.bogus"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "holds no document; write a VirtualTap or a TapDestination."),
        ("# only a comment\n", "holds no document; write a VirtualTap or a TapDestination."),
        ("42\n", "line 1: 42 is no document; write apiVersion, kind, metadata and spec."),
        ("- a\n", "line 1: a list is no document; write apiVersion, kind, metadata and spec."),
        ("a: [\n", "line 2: is not YAML"),
        ("a: b: c\n", "line 1: is not YAML"),
        ("a:\n\t- b\n", "line 2: is not YAML (found character '\\t' that cannot start any token); indent with spaces."),
        ("a: *nobody\n", "line 1: is not YAML"),
        ("kind: x\x07\n", "line 1: holds a control character; remove it."),
        ("[" * 200, "line 1: is nested more than 32 deep"),
        ("a: 1\nb: 2\na: 3\n", "line 3: a: is there twice, at line 1 too; remove one."),
        ("? [a]\n: b\n", "line 1: has a key that is no text"),
        ("a: &x {b: 1}\nc: {<<: *x}\n", "line 2: c: uses a merge key (<<); write the fields out."),
        ("a: !!python/object/apply:os.system [id]\n", "line 1: kind: is missing"),
        ("a: !!binary Zm9v\n", 'line 1: a: "Zm9v" can\'t be read as binary'),
        ("x" * (MAX_BYTES + 1), "is larger than 512 KiB; split it into several files."),
        ("kind: Pod\n", 'line 1: kind: "Pod" is not a kind of ours; write one of VirtualTap, TapDestination'),
    ],
)
def test_text_that_is_no_document_of_ours(text: str, sentence: str):
    assert only_sentence(text).startswith(sentence)


def test_aliases_cannot_multiply_without_bound():
    levels = "\n".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, 9))
    assert "expands to too many values" in only_sentence(f"l0: &l0 [x]\n{levels}\n")


def test_recursive_aliases_end():
    assert "expands to too many values" in only_sentence("a: &a [*a]\n")


def test_plain_aliases_are_taken():
    text = TAP.replace("{app: web}", "&labels {app: web}") + (
        "  filter: {defaultAction: Include, rules: [{action: Exclude, peer: {podSelector: {matchLabels: *labels}}}]}\n"
    )
    rule = first_tap(text).spec.filter
    assert rule is not None and rule.rules[0].peer is not None


def test_file_that_cannot_be_read(tmp_path: Path):
    (problem,) = load_file(tmp_path / "none.yaml").problems
    assert str(problem) == f"{tmp_path}/none.yaml: cannot be read (No such file or directory); make it readable."


def test_file_that_is_no_text(tmp_path: Path):
    (tmp_path / "bad.yaml").write_bytes(b"kind: \xff\n")
    (problem,) = load_file(tmp_path / "bad.yaml").problems
    assert problem.sentence == "byte 6 is not UTF-8; save it as UTF-8."


def test_byte_order_mark_and_crlf_are_taken(tmp_path: Path):
    (tmp_path / "dos.yaml").write_bytes(b"\xef\xbb\xbf" + TAP.replace("\n", "\r\n").encode())
    assert len(load_file(tmp_path / "dos.yaml").documents) == 1


def test_json_is_yaml():
    assert first_tap(
        '{"apiVersion": "vtap.dev/v1alpha1", "kind": "VirtualTap", "metadata": {"name": "a"}, "spec": {"podSelector": {}}}'
    )


def test_what_the_api_server_adds_is_taken():
    text = TAP.replace(
        "{name: web, namespace: shop}",
        "{name: web, namespace: shop, uid: abc, generation: 3, resourceVersion: '12', creationTimestamp: 2026-01-01T00:00:00Z,"
        " managedFields: [{manager: kubectl, fieldsV1: {f:spec: {}}}]}",
    )
    assert first_tap(text).metadata.generation == 3


@pytest.mark.parametrize(
    ("label", "value"),
    [("yes", "true"), ("on", "true"), ("no", "false"), ("1", "1"), ("1.5", "1.5"), ("0x1f", "31"), ("[a]", "a list")],
)
def test_labels_must_be_texts(label: str, value: str):
    said = only_sentence(TAP.replace("app: web", f"app: {label}"))
    assert said.startswith(
        f"line 5: spec.podSelector.matchLabels.app: {value} is not text; write a label value such as web, in quotes"
    )


@pytest.mark.parametrize("label", ["2024-01-01", "1_000", "1.2.3", "'yes'", '"1"'])
def test_texts_that_look_like_something_else_stay_texts(label: str):
    assert first_tap(TAP.replace("app: web", f"app: {label}"))


def test_field_with_nothing_behind_it_counts_as_absent():
    assert first_tap(TAP + "  direction:\n  filter: null\n").spec.direction == "Both"
    assert only_sentence(TAP.replace("{matchLabels: {app: web}}", "")).startswith("line 5: spec.podSelector: is missing")


@pytest.mark.parametrize("name", ["pod_selector", "destination_ref", "rate_limit"])
def test_names_of_python_are_no_fields(name: str):
    assert "is not a field; did you mean" in only_sentence(TAP + f"  {name}: {{}}\n")


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("web", True),
        ("a.b-c.9", True),
        ("a" * 253, True),
        ("Web", False),
        ("-web", False),
        ("web.", False),
        ("a" * 254, False),
        ("../x", False),
    ],
)
def test_names_are_dns_names(name: str, good: bool):
    assert bool(load_text(TAP.replace("name: web", f"name: {name}")).documents) == good


@pytest.mark.parametrize(("namespace", "good"), [("a" * 63, True), ("a" * 64, False), ("a.b", False), ("'1'", True)])
def test_namespaces_are_dns_labels(namespace: str, good: bool):
    assert bool(load_text(TAP.replace("namespace: shop", f"namespace: {namespace}")).documents) == good


@pytest.mark.parametrize(
    ("key", "good"),
    [
        ("app", True),
        ("example.com/app", True),
        ("A.b_c-9", True),
        ("a" * 63, True),
        ("a" * 64, False),
        ("/app", False),
        ("example.com/", False),
        ("Example.com/app", False),
        ("a/b/c", False),
        ("-a", False),
        ("''", False),
    ],
)
def test_label_keys(key: str, good: bool):
    assert bool(load_text(TAP.replace("app: web", f"{key}: web")).documents) == good


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        (rule(**{"peer": {}}), "spec.filter.rules[0].peer"),
        (
            rule(**{"protocol": 256}),
            "spec.filter.rules[0].protocol",
        ),
        (
            rule(**{"protocol": True}),
            "spec.filter.rules[0].protocol",
        ),
        (
            rule(**{"protocol": "UDP", "podPorts": []}),
            "spec.filter.rules[0].podPorts",
        ),
        (
            {
                "filter": {
                    "defaultAction": "Include",
                    "rules": [{"action": "Include", "protocol": "UDP", "podPorts": [{"port": "80"}]}],
                }
            },
            "spec.filter.rules[0].podPorts[0].port",
        ),
        (
            {
                "filter": {
                    "defaultAction": "Include",
                    "rules": [{"action": "Include", "peer": {"cidr": "fd00::/8"}, "protocol": 1}],
                }
            },
            "spec.filter.rules[0].protocol",
        ),
        ({"filter": {"defaultAction": "Include", "rules": [{"action": "Include"}] * 65}}, "spec.filter.rules"),
        ({"sampling": {"type": "Flows", "flows": {"percent": 0}}}, "spec.sampling.flows.percent"),
        (
            {"sampling": {"type": "PerInterval", "perInterval": {"packets": 1, "interval": "0s"}}},
            "spec.sampling.perInterval.interval",
        ),
        ({"rateLimit": {"bitsPerSecond": "100m"}}, "spec.rateLimit.bitsPerSecond"),
        ({"rateLimit": {"bitsPerSecond": "1.5"}}, "spec.rateLimit.bitsPerSecond"),
        ({"rateLimit": {"bitsPerSecond": "1M", "burst": 1500}}, "spec.rateLimit.burst"),
        ({"packet": {"snapLength": 13}}, "spec.packet.snapLength"),
        ({"packet": {"headersOnly": "yes"}}, "spec.packet.headersOnly"),
        ({"interfaces": []}, "spec.interfaces"),
        ({"interfaces": ["eth0", "eth0"]}, "spec.interfaces[1]"),
        ({"interfaces": ["eth*"]}, "spec.interfaces[0]"),
        ({"interfaces": "eth0"}, "spec.interfaces"),
        ({"destinationRef": {"name": "Soc"}}, "spec.destinationRef.name"),
        ({"filter": []}, "spec.filter"),
    ],
)
def test_each_wrong_field_is_named(spec: dict[str, Any], path: str):
    (problem,) = load_text(tap(**spec)).problems
    assert problem.path == path
    assert problem.line > 0


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({"collector": {"address": "10.0.9.2"}}, "spec.collector.control"),
        ({"collector": {"control": {"unixSocket": "/run/c.sock"}}}, "spec.collector.address"),
        ({"collector": {"address": "10.0.9.2", "control": {}}}, "spec.collector.control"),
        ({"collector": {"port": 4754}}, "spec.collector.port"),
        (
            {"collector": {"address": "10.0.9.2", "transport": "GRE", "port": 1, "control": {"unixSocket": "/c"}}},
            "spec.collector.port",
        ),
        ({"collector": {"address": "10.0.9.2", "control": {"url": "ftp://x", "tokenFile": "/t"}}}, "spec.collector.control.url"),
        ({"collector": {"address": "10.0.9.2", "control": {"unixSocket": "c.sock"}}}, "spec.collector.control.unixSocket"),
        ({"erspan": {"address": "10.0.9.2", "sessionID": 1024}}, "spec.erspan.sessionID"),
        ({"erspan": {"address": "10.0.9.2"}, "ids": {"type": "Fixed", "fixed": 1}}, "spec.ids.type"),
        ({"gre": {"address": "10.0.9.2"}, "ids": {"type": "Fixed"}}, "spec.ids.fixed"),
        ({"gre": {"address": "10.0.9.2"}, "ids": {"fixed": 1}}, "spec.ids.fixed"),
        ({"gre": {"address": "10.0.9.2/32"}}, "spec.gre.address"),
        ({"gre": {"address": "fe80::1%eth0"}}, "spec.gre.address"),
        ({"gre": {"address": "10.0.9.2"}, "allowedNamespaces": {"from": "Selector"}}, "spec.allowedNamespaces.selector"),
        ({"gre": {"address": "10.0.9.2"}, "allowedNamespaces": {"selector": {}}}, "spec.allowedNamespaces.selector"),
        ({"rewrite": {"address": "10.0.9.2", "macAddress": "02:00"}}, "spec.rewrite.macAddress"),
        ({"rewrite": {"address": "10.0.9.2", "macAddress": "01:00:5e:00:00:01"}}, "spec.rewrite.macAddress"),
    ],
)
def test_each_wrong_field_of_a_destination_is_named(spec: dict[str, Any], path: str):
    head = {"apiVersion": "vtap.dev/v1alpha1", "kind": "TapDestination", "metadata": {"name": "default"}}
    (problem,) = load_text(yaml.safe_dump({**head, "spec": spec})).problems
    assert problem.path == path


def destination(**spec: Any) -> TapDestination:
    head = {"apiVersion": "vtap.dev/v1alpha1", "kind": "TapDestination", "metadata": {"name": "default"}}
    (located,) = load_text(yaml.safe_dump({**head, "spec": spec})).documents
    assert isinstance(located.document, TapDestination)
    return located.document


def test_collector_of_a_cluster_needs_no_address_but_one_machine_does():
    text = "apiVersion: vtap.dev/v1alpha1\nkind: TapDestination\nmetadata: {name: default}\nspec: {collector: {}}\n"
    assert not load_text(text).problems
    assert sentences(text, standalone=True) == [
        "line 4: spec.collector.address: is missing; write address and control, as on one machine no operator fills them in."
    ]


@pytest.mark.parametrize(
    ("collector", "port"),
    [({}, 4754), ({"transport": "VXLAN"}, 4789), ({"transport": "GRE"}, 0), ({"transport": "ERSPAN"}, 0), ({"port": 9}, 9)],
)
def test_data_port_follows_the_transport(collector: dict[str, Any], port: int):
    control = {"url": "http://[fd00::2]:8080/", "tokenFile": "/t"}
    found = destination(collector={"address": "FD00:0::2", "control": control, **collector}).spec
    assert found.collector is not None and found.collector.control is not None
    assert found.collector.data_port == port
    assert found.address == "fd00::2"
    assert found.collector.control.endpoint == "http://[fd00::2]:8080"


def test_addresses_of_digits_only_are_no_numbers_to_base_60():
    text = "apiVersion: vtap.dev/v1alpha1\nkind: TapDestination\nmetadata: {name: a}\nspec: {gre: {address: 1:2:3:4:5:6:7:8}}\n"
    (located,) = load_text(text).documents
    assert isinstance(located.document, TapDestination) and located.document.spec.address == "1:2:3:4:5:6:7:8"


def test_fixed_ids():
    assert destination(gre={"address": "10.0.9.2"}).spec.fixed_id is None
    assert destination(gre={"address": "10.0.9.2"}, ids={"type": "Fixed", "fixed": 7}).spec.fixed_id == 7
    assert destination(erspan={"address": "10.0.9.2", "sessionID": 0}).spec.fixed_id == 0


# Whatever a text holds, the answer is documents or sentences


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["Include", "TCP", "10.0.0.0/8", "10s"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["port", "action", "cidr", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)


def paths(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path, *(found for key, child in children for found in paths(child, (*path, key)))]


RICH_DATA = yaml.safe_load(RICH)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([path for path in paths(RICH_DATA) if path]), JSON_VALUES)
def test_any_value_anywhere_is_accepted_or_explained(path: tuple[Any, ...], value: Any):
    data = yaml.safe_load(RICH)
    node = data
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    loaded = load_text(yaml.safe_dump(data, allow_unicode=True), "x.yaml")
    assert bool(loaded.documents) != bool(loaded.problems)
    for problem in loaded.problems:
        assert re.fullmatch(r"x\.yaml: (line \d+: )?[^\n]+; [^\n]+[.?]", str(problem)), problem
        assert "Input should" not in str(problem) and "input should" not in str(problem), problem


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.sampled_from("ab:{}[]&*!-? \n\t'\"#|>%@<,0x.~"), max_size=60))
def test_any_text_is_answered(text: str):
    loaded = load_text(text, "x.yaml")
    assert loaded.problems
    for problem in loaded.problems:
        assert "\n" not in str(problem)


def test_a_namespace_of_a_cluster_scoped_object_is_dropped_as_the_api_server_drops_it():
    text = "{apiVersion: vtap.dev/v1alpha1, kind: TapDestination, metadata: {name: a%s}, spec: {gre: {address: 10.0.9.2}}}"
    said, unsaid = load_text(text % ", namespace: shop"), load_text(text % "")
    assert not said.problems
    assert [one.document for one in said.documents] == [one.document for one in unsaid.documents]

"""`kubectl vtap` as a user runs it: the real kubectl, and an API server on loopback that behaves."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cli.fake_cluster import Collector, FakeCluster
from tests.unit.cli.pcapng import STORED, WAIT, udp_ports, wait_until
from tests.unit.cli.shop import GOOD, SERVICE, condition, fill, metrics, pod, point
from vtap_cli.cluster import agents
from vtap_cli.main import kubectl_main, main

pytestmark = pytest.mark.skipif(
    shutil.which("kubectl") is None, reason="kubectl is not installed (apt-get install kubernetes-client)"
)
needs_tshark = pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed (apt-get install tshark)")
TOKEN = {"token": "user-token"}


@dataclass
class Kubectl:
    """A cluster with a shop in it, a kubeconfig that leads there, and `kubectl vtap` run against it."""

    cluster: FakeCluster
    collector: Collector
    kubeconfig: Path
    capture: pytest.CaptureFixture[str]

    def login(self, user: dict[str, Any]) -> None:
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "clusters": [{"name": "c", "cluster": {"server": self.cluster.url}}],
            "users": [{"name": "u", "user": user}],
            "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u", "namespace": "shop"}}],
        }
        self.kubeconfig.write_text(json.dumps(document))

    def vtap(self, *arguments: str, program: Callable[[Sequence[str]], int] = kubectl_main) -> Any:
        self.capture.readouterr()
        code = program(arguments)
        out, err = self.capture.readouterr()
        return subprocess.CompletedProcess(arguments, code, out, err)

    def refused(self, *arguments: str) -> str:
        """The one sentence on standard error of a run that fails as a user should see it."""
        completed = self.vtap(*arguments)
        assert completed.returncode == 1, completed
        (line,) = completed.stderr.splitlines()
        assert line.startswith("kubectl vtap: ")
        return line.removeprefix("kubectl vtap: ")

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", "import sys; from vtap_cli.main import kubectl_main; sys.exit(kubectl_main())"]
        return subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Kubectl]:
    cluster = FakeCluster()
    made = Kubectl(cluster, fill(cluster), tmp_path / "kubeconfig", capfd)
    made.login(TOKEN)
    monkeypatch.setenv("KUBECONFIG", str(made.kubeconfig))
    monkeypatch.setattr(agents, "SECOND_LOOK", 0.1)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    yield made
    cluster.close()


def processes_of(kubeconfig: Path) -> list[int]:
    """kubectl processes that use this very kubeconfig."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        try:
            ours = entry.name.isdecimal() and str(kubeconfig).encode() in (entry / "environ").read_bytes()
            if ours and b"kubectl\0" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


# ---- status ----


def test_status_is_a_tree_down_to_interfaces(kubectl):
    scrapes = itertools.count()
    kubectl.cluster.metrics["vtap-agent-node-a"] = lambda: metrics(
        seen=1000 * (n := next(scrapes)), sent=100 * n, seen_bytes=10**6 * n, sent_bytes=10**5 * n
    )
    shown = kubectl.vtap("status")
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    title = "VirtualTap shop/web → default (collector vtap-system/vtap-collector-default): pods 2, attached 1, failed 1"
    assert lines[0] == title
    assert lines[1].split() == ["├─", "Accepted", "True", "Accepted", "the", "tap", "is", "valid"]
    assert lines[3] == "├─ node node-a: pods 1, attached 1, failed 0"
    assert lines[4] == "│  └─ pod web-0"
    assert lines[5].split()[:8] == ["│", "├─", "eth0", "Ingress", "OVSMirror", "Ready", "key", "4096"]
    egress = lines[6]
    assert "Egress" in egress and "mirrored at veth-web-0 on br1; seen " in egress
    seen = float(egress.split("; seen ")[1].split()[0])
    assert seen > 0
    assert "kp/s" in egress or " p/s" in egress
    assert lines[7] == "└─ node node-b: pods 1, attached 0, failed 1"
    assert lines[8].endswith("which is on no Open vSwitch bridge; attach it to a bridge")
    assert lines[10].split()[:6] == ["└─", "eth0", "Ingress", "OVSMirror", "Refused", "-"]


def test_status_says_once_what_holds_for_a_pod_as_a_whole(kubectl):
    sentence = "pod shop/web-1 uses the node's network"
    refusals = [
        point("web-1", direction, key=0, interface="", state="Refused", reason="HostNetwork", message=sentence)
        for direction in ("Ingress", "Egress")
    ]
    kubectl.cluster.kind("TapNode")["", "node-b"]["status"] = {"points": refusals}
    for command in (("status",), ("explain", "web-1")):
        assert kubectl.vtap(*command).stdout.count(sentence) == 1
    assert len(json.loads(kubectl.vtap("explain", "web-1", "-o", "json").stdout)["taps"][0]["points"]) == 2


def test_status_for_programs(kubectl):
    (tap,) = json.loads(kubectl.vtap("status", "web", "-o", "json").stdout)["taps"]
    assert tap["destination"] == {"name": "default", "target": "collector vtap-system/vtap-collector-default"}
    assert [node["name"] for node in tap["nodes"]] == ["node-a", "node-b"]
    points = tap["nodes"][0]["pods"][0]["points"]
    assert [(point["key"], point["why"]) for point in points] == [(key, "spec.backend names it") for key in (4096, 4097)]


def test_status_reads_lists_of_many_pages(kubectl):
    for number in range(5):
        kubectl.cluster.add("VirtualTap", f"more-{number}", "shop", spec={"podSelector": {}})
        kubectl.cluster.add("VirtualTap", "elsewhere", f"other-{number}", spec={"podSelector": {}})
    here = json.loads(kubectl.vtap("status", "-o", "json").stdout)["taps"]
    everywhere = json.loads(kubectl.vtap("status", "-A", "-o", "json").stdout)["taps"]
    assert (len(here), len(everywhere)) == (6, 11)


def test_status_without_permission_for_metrics_says_what_is_left_out(kubectl):
    kubectl.cluster.forbidden.add(("list", "pods"))
    shown = kubectl.vtap("status").stdout
    assert "eth0" in shown
    assert shown.splitlines()[-1].startswith("note: rates of all nodes left out: not allowed: ")


def test_status_of_a_tenant_who_may_read_taps_only(kubectl):
    kubectl.cluster.forbidden |= {("list", "tapnodes"), ("list", "tapdestinations")}
    lines = kubectl.vtap("status").stdout.splitlines()
    assert lines[0] == "VirtualTap shop/web → default: pods 2, attached 1, failed 1"
    assert [line for line in lines if line.startswith("note: nodes left out: not allowed")]


def test_status_marks_what_was_said_of_an_earlier_version(kubectl):
    tap = kubectl.cluster.kind("VirtualTap")["shop", "web"]
    tap["metadata"]["generation"] = 2
    assert "(of an earlier version of the tap)" in kubectl.vtap("status").stdout


def test_status_where_there_is_nothing(kubectl):
    assert kubectl.vtap("status", "-n", "empty").stdout.startswith("no VirtualTap in namespace empty (-A shows all)")


def test_status_is_watched_until_interrupted(kubectl):
    with kubectl.start("status", "--watch") as watching:
        try:
            assert watching.stdout.readline().startswith("VirtualTap shop/web")
            kubectl.cluster.kind("VirtualTap")["shop", "web"]["status"]["matchedPods"] = 7
            assert any("pods 7" in line for line in iter(watching.stdout.readline, ""))
        finally:
            watching.send_signal(signal.SIGINT)
        assert watching.wait(WAIT) == 0
    wait_until(lambda: not processes_of(kubectl.kubeconfig))


# ---- the way there ----


def test_without_kubeconfig_one_sentence(kubectl, monkeypatch, tmp_path):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    assert kubectl.refused("status").startswith("there is no cluster to ask (")


def test_unknown_context_one_sentence(kubectl):
    assert "`kubectl config get-contexts` lists" in kubectl.refused("status", "--context", "nowhere")


def test_cluster_that_does_not_answer_one_sentence(kubectl):
    kubectl.cluster.close()
    said = kubectl.refused("status")
    assert said.startswith(f"the cluster at {kubectl.cluster.url} (context 'here') cannot be asked: ")
    assert "refused" in said


def test_without_our_resources_one_sentence(kubectl):
    kubectl.cluster.installed = False
    for command in (("status",), ("keys",), ("ledger",), ("packets", "web")):
        assert kubectl.refused(*command).startswith("VirtualTap isn't installed in this cluster; ")


def test_who_may_not_is_told_which_role(kubectl):
    kubectl.cluster.forbidden |= {("list", "virtualtaps"), ("create", "virtualtaps")}
    assert kubectl.refused("status").endswith("; ask an admin for the ClusterRole vtap-view")
    assert kubectl.refused("capture", "deployment/web").startswith("deployments")
    kubectl.cluster.add("Deployment", "web", "shop", spec={"selector": {"matchLabels": {"app": "web"}}})
    assert kubectl.refused("capture", "deployment/web").endswith("; ask an admin for the ClusterRole vtap-edit")


def test_without_kubectl_one_sentence(kubectl, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    assert kubectl.refused("status").startswith("kubectl cannot be run (No such file or directory)")


def test_plain_vtap_asks_a_cluster_where_the_command_line_names_one(kubectl):
    for named in (("--cluster",), ("-n", "shop")):
        assert kubectl.vtap("status", *named, program=main).stdout.startswith("VirtualTap shop/web"), named


def test_no_process_stays_even_after_a_kill(kubectl):
    kubectl.collector.answers["/v1/live"] = silent
    with kubectl.start("packets", "web", "-w", "-") as reading:
        try:
            wait_until(lambda: kubectl.collector.asked)
            assert processes_of(kubectl.kubeconfig)
        finally:
            reading.kill()
        reading.wait(WAIT)
    wait_until(lambda: not processes_of(kubectl.kubeconfig))


# ---- packets, and who may read them ----


def silent(reply: Any, _query: Any) -> None:
    """A live stream on which nothing ever comes but its head."""
    reply.begin()
    reply.chunk(STORED[:28])
    threading.Event().wait(WAIT)


def all_of_them(reply: Any, _query: Any) -> None:
    reply.begin()
    reply.chunk(STORED)
    reply.chunk(b"")


@needs_tshark
def test_packets_are_live_and_carry_names_of_pods(kubectl):
    kubectl.collector.answers["/v1/live"] = all_of_them
    shown = kubectl.vtap("packets", "web", "--capture-filter", "udp", "--every", "1s", "--count", "5")
    assert shown.returncode == 0, shown.stderr
    assert "shop/web-0 eth0 Egress" in shown.stdout.splitlines()[0]
    assert kubectl.collector.asked == [("/v1/live", {"tap": "shop/web", "filter": "udp", "every": "1", "count": "5"})]


def test_live_packets_come_through_as_they_arrive(kubectl):
    go_on = threading.Event()

    def answer(reply, _query):
        reply.begin()
        reply.chunk(b"first")
        go_on.wait(WAIT)
        reply.chunk(b"second")
        reply.chunk(b"")

    kubectl.collector.answers["/v1/live"] = answer
    with kubectl.start("packets", "shop/web", "-w", "-") as reading:
        try:
            assert reading.stdout.read(5) == "first"
        finally:
            go_on.set()
        assert reading.stdout.read() == "second"
        assert reading.wait(WAIT) == 0


def test_stored_packets_of_a_tap_that_is_gone(kubectl, tmp_path):
    kubectl.collector.answers["/v1/stored"] = all_of_them
    file = tmp_path / "old.pcapng"
    said = kubectl.refused("packets", "gone", "--stored", "-w", str(file))
    assert said.startswith("there is no VirtualTap shop/gone") and "--destination" in said
    assert kubectl.vtap("packets", "gone", "--stored", "-w", str(file), "--destination", "default").returncode == 0
    assert file.read_bytes() == STORED


def credential_plugin(directory: Path, token: str) -> dict[str, Any]:
    """A kubeconfig's user whose token comes from a program, which is asked as client-go asks."""
    program = directory / "plugin"
    program.write_text(
        f"#!{sys.executable}\n"
        "import json, os\n"
        "asked = json.loads(os.environ['KUBERNETES_EXEC_INFO'])\n"
        "assert asked['kind'] == 'ExecCredential' and os.environ['REGION'] == 'x'\n"
        f"print(json.dumps({{**asked, 'status': {{'token': {token!r}}}}}))\n"
    )
    program.chmod(0o755)
    plugin = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "command": "./plugin",
        "env": [{"name": "REGION", "value": "x"}],
        "interactiveMode": "Never",
        "provideClusterInfo": True,
    }
    return {"exec": plugin}


@pytest.mark.parametrize("kind", ["token", "tokenFile", "exec", "auth-provider"])
def test_own_token_shows_the_collector_who_asks(kubectl, tmp_path, kind):
    (tmp_path / "token").write_text("user-token\n")
    users = {
        "token": TOKEN,
        "tokenFile": {"tokenFile": str(tmp_path / "token")},
        "exec": credential_plugin(tmp_path, "user-token"),
        "auth-provider": {"auth-provider": {"name": "oidc", "config": {"id-token": "user-token"}}},
    }
    kubectl.login(users[kind])
    kubectl.collector.answers["/v1/files"] = lambda reply, _query: reply.json({"files": []})
    shown = kubectl.vtap("files", "web")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith("no file yet")
    assert kubectl.cluster.tokens_made == []


def test_who_has_a_client_certificate_reads_as_the_reader(kubectl):
    kubectl.login({"username": "admin", "password": "x"})
    kubectl.collector.tokens = frozenset({"token-of-vtap-reader"})
    kubectl.collector.answers["/v1/files"] = lambda reply, _query: reply.json({"files": []})
    assert kubectl.vtap("files", "web").returncode == 0
    ((namespace, name, asked),) = kubectl.cluster.tokens_made
    assert (namespace, name, asked["audiences"]) == ("vtap-system", "vtap-reader", ["vtap-collector"])


def test_service_account_is_as_the_command_line_says(kubectl):
    kubectl.collector.tokens = frozenset({"token-of-robot"})
    kubectl.collector.answers["/v1/files"] = lambda reply, _query: reply.json({"files": []})
    assert kubectl.vtap("files", "web", "--service-account", "soc/robot").returncode == 0
    assert kubectl.cluster.tokens_made[0][:2] == ("soc", "robot")


def test_who_may_not_make_a_token_is_told_what_to_do(kubectl):
    kubectl.login({"username": "admin", "password": "x"})
    kubectl.cluster.forbidden.add(("create", "serviceaccounts/token"))
    said = kubectl.refused("packets", "web", "-w", "-")
    assert said.startswith("the kubeconfig has no token that shows the collector who you are")
    assert "--service-account NAMESPACE/NAME" in said


def test_who_is_not_known_or_may_not_read_is_told_what_to_do(kubectl):
    kubectl.collector.tokens = frozenset()
    assert "does not know who asks" in kubectl.refused("packets", "web", "-w", "-")
    kubectl.collector.tokens = frozenset({"user-token"})
    kubectl.collector.may_read = frozenset()
    said = kubectl.refused("packets", "web", "-w", "-")
    assert said.endswith("refuses: user alice cannot get virtualtaps/packets in namespace shop")
    kubectl.cluster.forbidden.add(("get", "services"))
    assert kubectl.refused("packets", "web", "-w", "-").endswith("`get` on services/proxy in namespace vtap-system")


def test_collector_that_is_not_there_or_not_ready(kubectl):
    del kubectl.cluster.collectors[SERVICE]
    assert "there is no Service vtap-system/vtap-collector-default" in kubectl.refused("packets", "web", "-w", "-")
    kubectl.cluster.add("Service", SERVICE[1], SERVICE[0])
    assert "see `kubectl -n vtap-system get pods" in kubectl.refused("packets", "web", "-w", "-")
    kubectl.cluster.kind("TapDestination")["", "default"]["status"] = {}
    assert "has no address yet" in kubectl.refused("packets", "web", "-w", "-")
    own = {"collector": {"address": "10.9.9.9", "control": {"unixSocket": "/run/vtap/collector.sock"}}}
    kubectl.cluster.kind("TapDestination")["", "default"]["spec"] = own
    assert "runs at 10.9.9.9, where no operator put it" in kubectl.refused("packets", "web", "-w", "-")


def test_tenant_who_may_not_read_destinations_reaches_the_collector_all_the_same(kubectl, tmp_path):
    kubectl.cluster.forbidden |= {("list", "tapdestinations"), ("get", "tapdestinations"), ("list", "pods")}
    kubectl.collector.answers["/v1/stored"] = all_of_them
    kubectl.collector.answers["/v1/files"] = lambda reply, _query: reply.json({"files": []})
    file = tmp_path / "f"
    assert kubectl.vtap("packets", "web", "--stored", "-w", str(file)).returncode == 0
    assert file.read_bytes() == STORED
    assert kubectl.vtap("files").returncode == 0


def test_packets_that_go_elsewhere_can_only_be_read_there(kubectl):
    kubectl.cluster.kind("VirtualTap")["shop", "web"]["spec"]["destinationRef"] = {"name": "sensor"}
    said = kubectl.refused("packets", "web", "-w", "-")
    assert "sends to gre 10.0.9.2, which is no collector of ours" in said


# ---- keys, files, ledger ----


def test_keys_map_to_pods(kubectl):
    head, first, second = kubectl.vtap("keys").stdout.splitlines()
    assert head.split() == ["KEY", "TAP", "POD", "INTERFACE", "DIRECTION", "DESTINATION"]
    assert first.split() == ["4096", "shop/web", "shop/web-0", "eth0", "Ingress", "default"]
    assert second.split()[0] == "4097"
    assert "4096,shop,web,shop,web-0,uid-web-0,eth0,Ingress,default,node-a," in kubectl.vtap("keys", "-o", "csv").stdout
    assert len(kubectl.vtap("keys", "-n", "other").stdout.splitlines()) == 1


def stream(incarnation: str, **counts: Any) -> dict[str, Any]:
    return {
        "node": "node-a",
        "key": 4097,
        "incarnation": incarnation,
        "tap": {"namespace": "shop", "name": "web"},
        "pod": {"namespace": "shop", "name": "web-0", "uid": "u"},
        "interface": "eth0",
        "direction": "Egress",
        "lost": {"network": 0, "socket": 0},
        "dropped": {"disk": 0},
        "duplicate": 0,
        "late": 0,
        "inFlight": 0,
        **counts,
    }


@pytest.fixture
def books(kubectl):
    """40 + 3 sent, seen by the agent as one tap point, by the collector as two streams, one of another tap beside."""
    kubectl.cluster.metrics["vtap-agent-node-a"] = lambda: metrics(
        seen=100, excluded=40, unsampled=10, limited=5, pair=2, sent=43
    )
    streams = [
        stream("1" * 16, received=30, stored=30, closed=True),
        stream("2" * 16, received=12, stored=11, lost={"network": 1, "socket": 0}, dropped={"disk": 1}),
        {**stream("3" * 16, received=5, stored=5), "tap": {"namespace": "other", "name": "x"}},
    ]
    answer = {"streams": streams, "unannounced": {"key": 7, "address": 1}, "malformed": 9}
    kubectl.collector.answers["/v1/ledger"] = lambda reply, _query: reply.json(answer)
    return streams


def test_ledger_joins_agents_and_collectors(kubectl, books):
    shown = kubectl.vtap("ledger")
    assert shown.returncode == 0 and shown.stderr == ""
    _head, row, total, _, beside = shown.stdout.splitlines()
    counts = ["100", "40", "10", "5", "2", "(pair", "2)", "43", "42", "1", "(network", "1)", "41", "1", "(disk", "1)", "0"]
    assert row.split() == ["shop/web", "shop/web-0", "eth0", "Egress", *counts]
    assert total.split() == ["TOTAL", *counts]
    assert beside == "beside: in flight 0, duplicate 0, late 0, unattributed 6, unannounced 8, malformed 9"
    assert kubectl.collector.asked == [("/v1/ledger", {"tap": "shop/web"})]


def test_ledger_summary_and_what_is_unaccounted(kubectl, books):
    line = "ledger: seen=100 excluded=40 unsampled=10 sent=43 received=42 stored=41 lost=1 dropped=3 unaccounted=0\n"
    assert kubectl.vtap("ledger", "--summary").stdout == line
    books[1]["received"] -= 1
    assert kubectl.vtap("ledger", "--summary").stdout.endswith(" unaccounted=2\n")


def test_ledger_expects_nothing_beyond_sent_of_endpoints_that_are_not_ours(kubectl, books):
    kubectl.cluster.kind("VirtualTap")["shop", "web"]["spec"]["destinationRef"] = {"name": "sensor"}
    (row,) = json.loads(kubectl.vtap("ledger", "-o", "json").stdout)["rows"]
    assert (row["agent"]["sent"], row["collector"], row["unaccounted"]) == (43, None, 0)


def test_ledger_of_all_namespaces_is_one_question_that_needs_the_right_for_it(kubectl, books):
    assert kubectl.vtap("ledger", "-A").stderr.startswith("note: what collectors count left out: ")
    kubectl.collector.may_read = frozenset({"*"})
    rows = json.loads(kubectl.vtap("ledger", "-A", "-o", "json").stdout)["rows"]
    assert [row["tap"]["namespace"] for row in rows] == ["other", "shop"]
    assert kubectl.collector.asked[-1] == ("/v1/ledger", {})


def test_ledger_of_a_reader_who_may_not_ask_agents(kubectl, books):
    kubectl.cluster.forbidden.add(("list", "pods"))
    shown = kubectl.vtap("ledger")
    assert shown.returncode == 0
    assert "what agents count of all nodes left out: not allowed" in shown.stderr
    assert "vtap-" not in kubectl.vtap("ledger").stdout
    assert kubectl.refused("ledger", "--summary").startswith("what agents count of all nodes left out")


def told(seen: int, sent: int, **more: Any) -> dict[str, Any]:
    return {"seen": seen, "excluded": seen - sent, "unsampled": 0, "limited": 0, "dropped": {}, "sent": sent, **more}


def test_ledger_of_agents_that_cannot_be_asked_is_what_they_told_the_collector(kubectl, books):
    kubectl.cluster.forbidden.add(("list", "pods"))
    books[0]["agent"], books[1]["agent"] = told(50, 30), told(20, 13)
    books[1]["stale"] = True
    shown = kubectl.vtap("ledger")
    assert (shown.returncode, shown.stderr) == (0, "")
    row = shown.stdout.splitlines()[1].split()
    assert row[3:6] == ["Egress", "(stale)", "70"] and row[-1] == "0"
    assert kubectl.vtap("ledger", "--summary").stdout.startswith("ledger: seen=70 excluded=27 unsampled=0 sent=43 ")


def test_ledger_of_a_collector_whose_books_are_younger_than_the_tap(kubectl, books):
    """The first stream went to a collector whose disk has gone with its pod."""
    del books[0]
    books[0]["agent"] = told(20, 13)
    answer = {"since": "2026-01-02T00:00:00Z", "streams": books, "unannounced": {"key": 0}, "malformed": 0}
    kubectl.collector.answers["/v1/ledger"] = lambda reply, _query: reply.json(answer)
    meta = kubectl.cluster.kind("VirtualTap")["shop", "web"]["metadata"]
    meta["creationTimestamp"] = "2026-01-03T00:00:00Z"
    assert kubectl.vtap("ledger", "--summary").stdout.endswith(" lost=1 dropped=3 unaccounted=30\n")
    meta["creationTimestamp"] = "2026-01-01T00:00:00Z"
    assert kubectl.vtap("ledger", "--summary").stdout.endswith(" lost=31 dropped=3 unaccounted=0\n")
    assert "31 (before 30, network 1)" in kubectl.vtap("ledger").stdout
    books[0]["received"] -= 1
    assert kubectl.vtap("ledger", "--summary").stdout.endswith(" unaccounted=2\n"), "what it was told of is still counted"


def test_files_of_the_namespace(kubectl):
    file = {"tap": {"namespace": "shop", "name": "web"}, "name": "a.pcapng", "bytes": 1234, "packets": 5}
    kubectl.collector.answers["/v1/files"] = lambda reply, _query: reply.json({"files": [file]})
    assert kubectl.vtap("files").stdout.splitlines()[1].split()[:4] == ["shop/web", "a.pcapng", "1234", "5"]
    assert kubectl.collector.asked == [("/v1/files", {"tap": "shop/web"})]


# ---- explain ----


def test_explain_shows_port_and_backend_of_a_tapped_pod(kubectl):
    shown = kubectl.vtap("explain", "web-0")
    first, tap, ingress, egress = shown.stdout.splitlines()
    assert first == "pod shop/web-0 (on node node-a, Running, 10.1.0.7): tapped"
    assert tap == "└─ VirtualTap shop/web → default (collector vtap-system/vtap-collector-default): tapped"
    assert ingress.split()[1:7] == ["eth0", "Ingress", "OVSMirror", "Ready", "key", "4096"]
    assert ingress.endswith("mirrored at veth-web-0 on br1")
    assert "Egress" in egress


def reason(kubectl: Kubectl, name: str) -> tuple[bool, str, str]:
    """(tapped, obstacle, the first tap's reason)."""
    answer = json.loads(kubectl.vtap("explain", name, "-o", "json").stdout)
    return answer["tapped"], answer["obstacle"], answer["taps"][0]["reason"]


def test_explain_names_the_label_that_differs(kubectl):
    assert reason(kubectl, "db-0")[2] == "does not select it: it wants label app=web, and the pod has app=db"
    kubectl.cluster.kind("VirtualTap")["shop", "web"]["spec"]["podSelector"] = {
        "matchExpressions": [{"key": "tier", "operator": "In", "values": ["front", "back"]}]
    }
    assert reason(kubectl, "db-0")[2].endswith("it wants label tier In (front, back), and the pod has no such label")


def test_explain_passes_on_the_agents_sentence(kubectl):
    shown = kubectl.vtap("explain", "shop/web-1").stdout
    assert ": not tapped" in shown.splitlines()[0]
    assert "which is on no Open vSwitch bridge; attach it to a bridge" in shown


def test_explain_says_what_can_never_be_tapped(kubectl):
    pod(kubectl.cluster, "host", "node-a", {"app": "web"}, hostNetwork=True)
    done = pod(kubectl.cluster, "done", "node-a", {"app": "web"})
    done["status"]["phase"] = "Succeeded"
    pod(kubectl.cluster, "pending", "", {"app": "web"})
    assert "uses the node's network" in reason(kubectl, "host")[1]
    assert "has ended (Succeeded)" in reason(kubectl, "done")[1]
    assert "on no node yet" in reason(kubectl, "pending")[1]
    part = kubectl.vtap("explain", "vtap-system/vtap-agent-node-a", "-o", "json")
    assert "is a part of VirtualTap itself (label vtap.dev/component: agent)" in json.loads(part.stdout)["obstacle"]


def test_explain_says_which_destination_refuses(kubectl):
    pod(kubectl.cluster, "new", "node-a", {"app": "web"})
    destination = kubectl.cluster.kind("TapDestination")["", "default"]
    selector = {"matchLabels": {"team": "soc"}}
    destination["spec"]["allowedNamespaces"] = {"from": "Selector", "selector": selector}
    assert "does not allow namespace 'shop'" in reason(kubectl, "new")[2]
    kubectl.cluster.kind("Namespace")["", "shop"]["metadata"]["labels"]["team"] = "soc"
    assert "has not said anything of it yet" in reason(kubectl, "new")[2]
    kubectl.cluster.kind("VirtualTap")["shop", "web"]["spec"]["destinationRef"] = {"name": "typo"}
    assert "there is no TapDestination 'typo' (there is: default, sensor)" in reason(kubectl, "new")[2]


def test_explain_knows_ended_taps_and_nodes_without_agent(kubectl):
    pod(kubectl.cluster, "new", "node-c", {"app": "web"})
    tapped, _, sentence = reason(kubectl, "new")
    assert (tapped, sentence) == (False, "nothing is known of node node-c")
    assert "node node-c has no TapNode" in kubectl.vtap("explain", "new").stdout
    tap = kubectl.cluster.kind("VirtualTap")["shop", "web"]
    tap["spec"]["ttl"], tap["metadata"]["creationTimestamp"] = "1h", "2026-01-01T00:00:00Z"
    assert "its ttl of 1h was over at 2026-01-01T01:00:00Z" in reason(kubectl, "new")[2]


def test_explain_takes_nothing_from_an_earlier_pod_of_that_name(kubectl):
    kubectl.cluster.kind("Pod")["shop", "web-0"]["metadata"]["uid"] = "another"
    assert "has not said anything of it yet" in reason(kubectl, "web-0")[2]


def test_explain_of_no_pod(kubectl):
    assert kubectl.refused("explain", "nobody").startswith("there is no pod shop/nobody; ")


# ---- capture ----


@pytest.fixture
def capturing(kubectl, books):
    """Taps that are programmed once they have been looked at twice, and streams that are announced a little later."""
    looks = itertools.count()

    def programmed(tap):
        tap["status"] = {"conditions": []}
        timer = threading.Timer(0.3, lambda: tap["status"].update(conditions=GOOD))
        timer.daemon = True
        timer.start()

    def live(reply, query):
        if next(looks) == 0:
            reply.json({"error": f"tap: {query['tap']} has not been announced"}, 404)
        else:
            all_of_them(reply, query)

    kubectl.cluster.on_create = programmed
    kubectl.collector.answers["/v1/live"] = live
    kubectl.cluster.add("Deployment", "web", "shop", spec={"selector": {"matchLabels": {"app": "web"}}})
    return kubectl


def created_taps(kubectl: Kubectl) -> list[dict[str, Any]]:
    """Every tap that a capture makes from now on."""
    made: list[dict[str, Any]] = []
    before = kubectl.cluster.on_create

    def note(tap: dict[str, Any]) -> None:
        made.append(tap)
        before(tap)

    kubectl.cluster.on_create = note
    return made


def test_capture_taps_writes_and_leaves_nothing(capturing, tmp_path):
    made = created_taps(capturing)
    file = tmp_path / "web.pcapng"
    shown = capturing.vtap(
        "capture", "deployment/web", "--count", "3", "-w", str(file), "--duration", "2m", "--snap-length", "96"
    )
    assert shown.returncode == 0, shown.stderr
    assert file.read_bytes() == STORED
    (tap,) = made
    assert tap["spec"] == {
        "podSelector": {"matchLabels": {"app": "web"}},
        "destinationRef": {"name": "default"},
        "ttl": "240s",
        "packet": {"snapLength": 96},
    }
    assert capturing.cluster.deleted == [("shop", tap["metadata"]["name"])]
    assert shown.stderr.splitlines()[-1].startswith("ledger: seen=")
    asked = [query for path, query in capturing.collector.asked if path == "/v1/live"]
    assert asked[-1] == {"tap": "shop/capture-x7k2p", "count": "3"}


def test_capture_that_is_interrupted_has_a_good_file_and_no_tap(capturing, tmp_path):
    def endless(reply, _query):
        reply.begin()
        reply.chunk(STORED)
        threading.Event().wait(WAIT)

    capturing.collector.answers["/v1/live"] = endless
    for ending in (signal.SIGINT, signal.SIGTERM):
        file = tmp_path / f"{ending}.pcapng"
        with capturing.start("capture", "-l", "app=web", "-w", str(file)) as running:
            try:
                wait_until(lambda file=file: file.exists() and file.stat().st_size == len(STORED))
            finally:
                running.send_signal(ending)
            assert running.wait(WAIT) == 0, running.stderr.read()
        assert capturing.cluster.deleted.pop() == ("shop", "capture-x7k2p")
    assert file.read_bytes() == STORED


def test_capture_ends_with_its_duration(capturing, tmp_path):
    capturing.collector.answers["/v1/live"] = silent
    file = tmp_path / "f.pcapng"
    assert capturing.vtap("capture", "-l", "app=web", "-w", str(file), "--duration", "1s").returncode == 0
    assert file.read_bytes() == STORED[:28]
    assert capturing.cluster.deleted


def test_capture_that_is_refused_says_so_and_leaves_no_tap(capturing, tmp_path):
    refused = condition("Accepted", "False", "DestinationNotAllowed", "TapDestination 'default' does not allow namespace 'shop'")
    capturing.cluster.on_create = lambda tap: tap.update(status={"conditions": [refused]})
    said = capturing.refused("capture", "-l", "app=web", "-w", str(tmp_path / "f"))
    assert said == "the tap is refused: TapDestination 'default' does not allow namespace 'shop'"
    assert capturing.cluster.deleted == [("shop", "capture-x7k2p")]


def test_capture_where_nothing_is_programmed_gives_up_with_the_taps_sentence(capturing, tmp_path):
    waiting = condition("Programmed", "False", "NoPods", "spec.podSelector: matches no pod of this namespace")
    capturing.cluster.on_create = lambda tap: tap.update(status={"conditions": [waiting]})
    said = capturing.refused("capture", "-l", "app=nobody", "-w", str(tmp_path / "f"), "--wait", "1s")
    assert said == "no tap point copies after 1 s: spec.podSelector: matches no pod of this namespace"
    assert capturing.cluster.deleted


def test_capture_where_some_interface_is_not_copied_says_so_and_goes_on(capturing, tmp_path):
    partly = [
        condition("Programmed", "False", "NoPort", "interface eth0 is on no bridge"),
        condition("Delivering", "True", "Confirmed", ""),
    ]
    capturing.cluster.on_create = lambda tap: tap.update(status={"conditions": partly})
    file = tmp_path / "web.pcapng"
    done = capturing.vtap("capture", "-l", "app=web", "--count", "2", "-w", str(file))
    assert done.returncode == 0 and file.stat().st_size > 0
    assert "not everything is copied: interface eth0 is on no bridge" in done.stderr


def test_capture_of_pods_by_name_takes_no_others(capturing, tmp_path):
    made = created_taps(capturing)
    file = str(tmp_path / "f")
    said = capturing.refused("capture", "web-0", "-w", file)
    assert "those of web-0 are also web-1's" in said and "-l capture=1" in said
    assert capturing.vtap("capture", "web-0", "web-1", "-w", file).returncode == 0
    assert capturing.vtap("capture", "pod/db-0", "-w", file).returncode == 0
    for number in (0, 1):
        name = f"ss-{number}"
        pod(capturing.cluster, name, "node-a", {"app": "ss", "statefulset.kubernetes.io/pod-name": name})
    assert capturing.vtap("capture", "ss-1", "-w", file).returncode == 0
    assert [tap["spec"]["podSelector"] for tap in made] == [
        {"matchLabels": {"app": "web"}},
        {"matchLabels": {"app": "db"}},
        {"matchLabels": {"statefulset.kubernetes.io/pod-name": "ss-1"}},
    ]
    assert capturing.refused("capture", "nobody", "-w", file).startswith("there is no pod shop/nobody")
    assert capturing.refused("capture", "-w", file).startswith("say which pods to capture")
    assert "owns no pods" in capturing.refused("capture", "secret/x", "-w", file)


# ---- wireshark, completion ----


def test_wireshark_is_fed_as_packets_arrive(kubectl, tmp_path, monkeypatch):
    program = tmp_path / "wireshark"
    program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/arguments\ncat > {tmp_path}/fed\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    kubectl.collector.answers["/v1/live"] = all_of_them
    assert kubectl.vtap("wireshark", "web", "--filter", "dns").returncode == 0
    assert (tmp_path / "fed").read_bytes() == STORED
    assert (tmp_path / "arguments").read_text().split() == ["-k", "-i", "-", "-Y", "dns"]
    assert "use --capture-filter" in kubectl.refused("wireshark", "web", "--filter", "dns", "--count", "3")


@needs_tshark
@pytest.mark.skipif(shutil.which("wireshark") is not None, reason="Wireshark is installed: its window would open")
def test_without_wireshark_tshark_shows_them(kubectl, tmp_path):
    kubectl.collector.answers["/v1/live"] = all_of_them
    shown = kubectl.vtap("wireshark", "web")
    assert "Wireshark is not installed" in shown.stderr
    assert len(shown.stdout.splitlines()) == 3
    file = tmp_path / "w.pcapng"
    assert kubectl.vtap("wireshark", "web", "-w", str(file)).returncode == 0
    assert udp_ports(file) == ["9999", "9998", "9999"]


def completions(*words: str) -> list[str]:
    command = [sys.executable, "-c", "import sys; from vtap_cli.completion import *; sys.exit(kubectl_complete_main())"]
    return subprocess.run([*command, *words], capture_output=True, text=True, check=True, timeout=WAIT).stdout.split()


def test_kubectl_completes_commands_options_and_names(kubectl):
    assert {"status", "packets", "explain"} <= set(completions(""))
    assert completions("pack") == ["packets", ":4"]
    assert completions("packets", "--sto") == ["--stored", ":4"]
    assert completions("packets", "w") == ["web", ":4"]
    kubectl.cluster.add("VirtualTap", "x", "other", spec={"podSelector": {}})
    assert completions("packets", "-A", "") == ["other/x", "shop/web", ":4"]
    assert completions("packets", "-n", "other", "") == ["x", ":4"]
    assert completions("packets", "--context", "") == ["here", ":4"]
    assert completions("explain", "db") == ["db-0", ":4"]
    assert completions("capture", "-l", "a=b", "--destination", "") == ["default", "sensor", ":4"]
    assert completions("validate", "") == [":0"]


def test_completion_of_a_cluster_that_is_away_offers_nothing(kubectl):
    kubectl.cluster.close()
    assert completions("packets", "w") == [":0"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(kubectl, shell):
    script = kubectl.vtap("completion", shell).stdout
    assert "vtap" in script
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True, timeout=WAIT)


def test_bash_completes_vtap(kubectl):
    script = kubectl.vtap("completion", "bash", program=main).stdout
    asked = f'{script}\nCOMP_WORDS=(vtap val); COMP_CWORD=1; COMP_LINE="vtap val"; COMP_POINT=8; COMP_TYPE=9'
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    run = f"{asked}\n_python_argcomplete vtap\necho ${{COMPREPLY[@]}}"
    shown = subprocess.run(["bash", "-c", run], capture_output=True, text=True, env={**os.environ, "PATH": path}, timeout=WAIT)
    assert shown.stdout.split() == ["validate"], shown.stderr


def test_point_of_the_shop_is_what_an_agent_writes():
    from vtap_api.tapnode import PointStatus

    assert PointStatus.model_validate(point("web-0")).key == 4096

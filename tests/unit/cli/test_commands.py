"""`vtap validate`, `ledger`, `status` and `files` as a user runs them, against daemons on real Unix sockets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


def point(**other):
    terms = {"seen": 100, "excluded": 40, "unsampled": 10, "limited": 5, "dropped": {"pair": 2, "lease": 0}, "sent": 43}
    return {**identity(), **terms, **other}


def stream(**other):
    terms = {
        "received": 40,
        "lost": {"network": 2, "socket": 1},
        "stored": 39,
        "dropped": {"disk": 1, "slow": 0},
        "duplicate": 3,
        "late": 4,
        "inFlight": 0,
    }
    return {"node": "node-a", **identity(), **terms, **other}


def identity():
    return {
        "key": 4096,
        "incarnation": "9f86d081884c7d65",
        "tap": {"namespace": "shop", "name": "web"},
        "pod": {"namespace": "shop", "name": "web-0", "uid": "u"},
        "interface": "eth0",
        "direction": "Egress",
    }


def agent_ledger(*points):
    return {
        "node": "node-a",
        "points": list(points),
        "unattributed": {"br0 Ingress": 6},
        "pair": {"handed": 45, "arrived": 43, "dropped": 2},
    }


def collector_ledger(*streams):
    return {"streams": list(streams), "unannounced": {"key": 7, "address": 1}, "malformed": 9}


def test_ledger_without_the_agent_has_what_it_told_the_collector(run):
    terms = {
        name: value for name, value in point().items() if name in ("seen", "excluded", "unsampled", "limited", "dropped", "sent")
    }
    run.serve("collector", v1_ledger=collector_ledger(stream(agent=terms, stale=True)))
    shown = run.vtap("ledger")
    assert "what the agent counts is as it told the collector last" in shown.stderr
    row, total = shown.stdout.splitlines()[1:3]
    assert row.split()[3:7] == ["Egress", "(stale)", "100", "40"] and row.split()[-1] == "0"
    assert total.split()[1:3] == ["100", "40"]
    assert json.loads(run.vtap("ledger", "-o", "json").stdout)["rows"][0]["stale"] is True


def test_ledger_joins_both_sides(run):
    run.serve("agent", v1_ledger=agent_ledger(point()))
    run.serve("collector", v1_ledger=collector_ledger(stream()))
    shown = run.vtap("ledger")
    assert shown.returncode == 0 and shown.stderr == ""
    head, row, total, _, beside = shown.stdout.splitlines()
    assert head.split()[:5] == ["TAP", "POD", "INTERFACE", "DIRECTION", "SEEN"]
    assert head.endswith("UNACCOUNTED")
    counts = [
        "100",
        "40",
        "10",
        "5",
        "2",
        "(pair",
        "2)",
        "43",
        "40",
        "3",
        "(network",
        "2,",
        "socket",
        "1)",
        "39",
        "1",
        "(disk",
        "1)",
        "0",
    ]
    assert row.split() == ["shop/web", "shop/web-0", "eth0", "Egress", *counts]
    assert total.split() == ["TOTAL", *counts]
    assert beside == "beside: in flight 0, duplicate 3, late 4, unattributed 6, unannounced 8, malformed 9"


def test_ledger_summary_is_one_line(run):
    run.serve("agent", v1_ledger=agent_ledger(point()))
    run.serve("collector", v1_ledger=collector_ledger(stream()))
    line = "ledger: seen=100 excluded=40 unsampled=10 sent=43 received=40 stored=39 lost=3 dropped=3 unaccounted=0\n"
    assert run.vtap("ledger", "--summary").stdout == line
    assert run.vtap("ledger", "shop/web", "--summary").stdout == line


def test_ledger_names_what_is_unaccounted(run):
    run.serve("agent", v1_ledger=agent_ledger(point(seen=101)))
    run.serve("collector", v1_ledger=collector_ledger(stream(stored=37)))
    assert run.vtap("ledger", "--summary").stdout.endswith(" unaccounted=3\n")


def test_ledger_shows_one_side_where_the_other_is_missing(run):
    run.serve("agent", v1_ledger=agent_ledger(point()))
    shown = run.vtap("ledger")
    assert shown.returncode == 0
    for line in shown.stdout.splitlines()[1:3]:
        assert line.split()[-5:] == ["-", "-", "-", "-", "0"]
    assert "vtap-collector does not answer" in shown.stderr
    assert "start it with `vtap-collector --directory DIR`" in run.refused("ledger", "--summary")


def test_ledger_of_an_unknown_tap_names_the_known_ones(run):
    run.serve("agent", v1_ledger=agent_ledger(point()))
    run.serve("collector", v1_ledger=collector_ledger(stream()))
    assert "shop/web" in run.refused("ledger", "shop/db")


def test_ledger_for_programs(run):
    run.serve("agent", v1_ledger=agent_ledger(point()))
    run.serve("collector", v1_ledger=collector_ledger(stream()))
    (row,) = json.loads(run.vtap("ledger", "-o", "json").stdout)["rows"]
    assert row["agent"]["dropped"] == {"pair": 2, "lease": 0}
    assert row["collector"]["received"] == 40
    assert row["unaccounted"] == 0


def test_ledger_of_an_idle_node(run):
    run.serve("agent", v1_ledger=agent_ledger())
    run.serve("collector", v1_ledger=collector_ledger())
    assert run.vtap("ledger").stdout.startswith("no tap point yet")
    assert run.vtap("ledger", "--summary").stdout.endswith("unaccounted=0\n")


@pytest.mark.parametrize("answer", [[], {}, {"node": "a", "points": [{"key": "x"}], "unattributed": {}, "pair": {"dropped": 0}}])
def test_strange_answers_are_one_sentence(run, answer):
    run.serve("agent", v1_ledger=answer)
    assert "something unexpected" in run.refused("ledger")


def test_answer_that_is_no_json_is_one_sentence(run):
    run.serve("agent", v1_status=lambda reply: reply.raw(b"<html>"))
    assert "not JSON" in run.refused("status")


@pytest.mark.parametrize(
    ("command", "daemon"),
    [("ledger", "vtap-agent"), ("status", "vtap-agent"), ("files", "vtap-collector"), ("packets", "vtap-collector")],
)
def test_missing_daemon_is_one_sentence_that_says_what_to_start(run, command, daemon):
    said = run.refused(command, *(["shop/web"] if command == "packets" else []))
    assert said.startswith(f"{daemon} does not answer at {run.directory}/")
    assert f"start it with `{daemon} --" in said


def test_dead_socket_is_a_missing_daemon(run, stale_socket):
    assert f"vtap-agent does not answer at {stale_socket} (" in run.refused("status")


def test_status_is_a_tree(run):
    conditions = [{"type": "Accepted", "status": "True", "reason": "Accepted", "message": "the tap makes sense"}]
    points = [
        {
            "pod": {"namespace": "shop", "name": f"web-{number}"},
            "interface": "eth0",
            "direction": "Ingress",
            "backend": "OVSMirror",
            "state": state,
            "message": message,
        }
        for number, state, message in ((0, "Ready", "copies"), (1, "Refused", "interface eth0 is on no bridge"))
    ]
    tap = {"namespace": "shop", "name": "web", "destination": "default", "matchedPods": 2, "attachedPods": 1, "failedPods": 1}
    answer = {
        "node": "node-a",
        "taps": [{**tap, "conditions": conditions, "points": points}],
        "problems": ["taps/x.yaml: line 3: bad"],
    }
    run.serve("agent", v1_status=answer)
    lines = run.vtap("status").stdout.splitlines()
    assert lines[0] == "node node-a"
    assert lines[1] == "└─ VirtualTap shop/web → default: pods 2, attached 1, failed 1"
    assert lines[2].split() == ["├─", "Accepted", "True", "Accepted", "the", "tap", "makes", "sense"]
    assert lines[3].split() == ["├─", "shop/web-0", "eth0", "Ingress", "OVSMirror", "Ready", "copies"]
    assert lines[4].split()[:2] == ["└─", "shop/web-1"] and lines[4].endswith("interface eth0 is on no bridge")
    assert lines[-2:] == ["problems:", "- taps/x.yaml: line 3: bad"]
    assert json.loads(run.vtap("status", "-o", "json").stdout) == answer


def test_files_are_listed(run):
    file = {
        "tap": {"namespace": "shop", "name": "web"},
        "name": "a.pcapng",
        "bytes": 1234,
        "packets": 5,
        "first": "2026-01-01T00:00:00Z",
    }
    server = run.serve("collector", v1_files={"files": [{**file, "last": None, "open": True}]})
    lines = run.vtap("files", "shop/web").stdout.splitlines()
    assert lines[1].split() == ["shop/web", "a.pcapng", "1234", "5", "2026-01-01T00:00:00Z", "-", "open"]
    assert server.asked == [("/v1/files", {"tap": "shop/web"})]


def test_validate_accepts_the_examples_and_refuses_the_invalid_ones(run):
    shown = run.vtap("validate", str(EXAMPLES))
    assert shown.returncode == 0
    lines = shown.stdout.splitlines()
    assert f"ok {EXAMPLES / 'quickstart.yaml'}: VirtualTap shop/web" in lines
    refused = {
        line.split(": ", 1)[0].removeprefix("refused "): line.split(": ", 1)[1] for line in lines if line.startswith("refused ")
    }
    bad = sorted((EXAMPLES / "invalid").glob("*.yaml"))
    assert sorted(refused) == [str(path) for path in bad]
    assert len(lines) == len(list(EXAMPLES.rglob("*.yaml")))
    for path in bad:
        assert refused[str(path)] == path.read_text().splitlines()[0].removeprefix("# ")


def test_validate_fails_for_a_refused_file(run, tmp_path):
    bad = EXAMPLES / "invalid" / "vlan-out-of-range.yaml"
    for argument in (bad, bad.parent):
        assert run.vtap("validate", str(argument)).returncode == 1


def test_validate_fails_for_a_good_file_below_invalid(run, tmp_path):
    (tmp_path / "invalid" / "deep").mkdir(parents=True)
    (tmp_path / "invalid" / "deep" / "good.yaml").write_text((EXAMPLES / "quickstart.yaml").read_text())
    shown = run.vtap("validate", str(tmp_path))
    assert shown.returncode == 1
    assert "should be refused" in shown.stdout


def test_validate_says_what_is_missing_on_one_machine_but_not_in_a_cluster(run, tmp_path):
    file = tmp_path / "destination.yaml"
    file.write_text("apiVersion: vtap.dev/v1alpha1\nkind: TapDestination\nmetadata: {name: default}\nspec: {collector: {}}\n")
    assert "spec.collector.address: is missing" in run.vtap("validate", str(file)).stdout
    assert run.vtap("validate", "--cluster", str(file)).stdout == f"ok {file}: TapDestination default\n"


def test_validate_of_nothing_is_one_sentence(run, tmp_path):
    assert "no file" in run.refused("validate", str(tmp_path))
    missing = run.vtap("validate", str(tmp_path / "none.yaml"))
    assert missing.returncode == 1
    assert missing.stdout.startswith(f"refused {tmp_path}/none.yaml: cannot be read")


def test_validate_for_programs(run):
    (file,) = json.loads(run.vtap("validate", "-o", "json", str(EXAMPLES / "invalid" / "unknown-field.yaml")).stdout)
    assert file["problems"] == [
        {"line": 7, "path": "spec.directon", "wrong": "is not a field", "right": "did you mean direction?"}
    ]

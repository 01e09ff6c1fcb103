"""What a node's kernel and switch hold, as lines that compare: "after uninstalling as before installing"."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.e2e.cluster.nodes import Node

_SCRIPT = """
ovs() { ovs-vsctl --timeout=20 --format=json --columns="$2" list "$1"; echo; }
echo '== links'; ip -j -d link show; echo
echo '== qdiscs'; tc -j qdisc show; echo
for device in $(ls /sys/class/net); do
  for side in ingress egress; do
    echo "== filters $device $side"; tc filter show dev "$device" "$side" 2>/dev/null || true
  done
done
echo '== attached'; bpftool net show 2>/dev/null | grep . || true
echo '== bpffs'; find /sys/fs/bpf -mindepth 1 | sort
echo '== files'; find /run/vtap /var/lib/vtap 2>/dev/null | sort || true
echo '== addresses'; ip -o address show
echo '== routes'; ip route show table all; ip -6 route show table all
echo '== rules'; ip rule show; ip -6 rule show
echo '== bridges'; ovs Bridge name,datapath_type,mirrors,fail_mode,external_ids,other_config,controller
echo '== ports'; ovs Port name,tag,trunks,vlan_mode,external_ids,other_config
echo '== interfaces'; ovs Interface name,type,options,external_ids,other_config,mtu_request
echo '== mirrors'; ovs Mirror name,select_all,external_ids
echo '== switch'; ovs Open_vSwitch external_ids,other_config
for bridge in $(ovs-vsctl --timeout=20 list-br); do
  echo "== flows $bridge"; ovs-ofctl --no-stats dump-flows "$bridge"
  echo "== groups $bridge"; ovs-ofctl -O OpenFlow13 dump-groups "$bridge" | grep -v OFPST_GROUP_DESC || true
done
"""

_CHANGES_BY_ITSELF = re.compile(r"(valid_lft|preferred_lft|expires|cookie_age|duration|n_packets|n_bytes)[ =]\S+")


@dataclass(frozen=True)
class Snapshot:
    """By section ("links", "qdiscs", "filters DEVICE ingress", "bpffs", "ports", …) its lines, without order.

    Numbers that change by themselves are left out.
    """

    node: str
    sections: dict[str, frozenset[str]]
    pods_devices: frozenset[str]
    """veth ends whose other end is in a pod."""

    def difference(self, later: Snapshot) -> list[str]:
        """One line for each thing that went (-) or came (+); empty when `later` is the same.

        What tells of the device of a pod that came or went meanwhile doesn't count: pods do that by themselves.
        """
        passing = self.pods_devices ^ later.pods_devices
        names = sorted(self.sections.keys() | later.sections.keys())
        lines = [line for name in names for line in self._changes(later, name)]
        return [line for line in lines if not passing & set(re.findall(r"[\w.-]+", line))]

    def _changes(self, later: Snapshot, section: str) -> list[str]:
        before = self.sections.get(section, frozenset[str]())
        after = later.sections.get(section, frozenset[str]())
        went = [f"{self.node}: {section}: - {line}" for line in sorted(before - after)]
        return went + [f"{self.node}: {section}: + {line}" for line in sorted(after - before)]


def take_snapshot(node: Node) -> Snapshot:
    """What the node holds now."""
    texts: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in node.run("sh", "-s", stdin=_SCRIPT).splitlines():
        if line.startswith("== "):
            lines = texts.setdefault(line[3:], [])
        elif line.strip():
            lines.append(line)
    sections = {name: frozenset(_READERS.get(name, _plain)(lines)) for name, lines in texts.items()}
    return Snapshot(node.name, {name: lines for name, lines in sections.items() if lines}, _pods_devices(texts["links"]))


def _pods_devices(lines: list[str]) -> frozenset[str]:
    links: list[dict[str, Any]] = json.loads("".join(lines))
    veths = (link for link in links if link.get("linkinfo", {}).get("info_kind") == "veth")
    return frozenset(link["ifname"] for link in veths if "link_netnsid" in link)


def _plain(lines: list[str]) -> list[str]:
    return [_CHANGES_BY_ITSELF.sub("", line).strip() for line in lines]


def _links(lines: list[str]) -> list[str]:
    kept = (
        "ifname",
        "mtu",
        "flags",
        "master",
        "address",
        "promiscuity",
        "xdp",
        "altnames",
        "qdisc",
        "num_tx_queues",
        "num_rx_queues",
    )
    links: list[dict[str, Any]] = json.loads("".join(lines))
    chosen = [
        {key: link[key] for key in kept if key in link} | {"kind": link.get("linkinfo", {}).get("info_kind")} for link in links
    ]
    return [json.dumps(link, sort_keys=True) for link in chosen]


def _qdiscs(lines: list[str]) -> list[str]:
    return [f"{one['dev']}: {one['kind']}" for one in json.loads("".join(lines))]


def _table(lines: list[str]) -> list[str]:
    """Rows of `ovs-vsctl --format=json`, with UUIDs (other after each restart of the bridge's owner) told only by their count."""
    table = json.loads("".join(lines))
    rows = (dict(zip(table["headings"], row, strict=True)) for row in table["data"])
    return [re.sub(r'\["uuid", "[0-9a-f-]+"\]', "row", json.dumps(row, sort_keys=True)) for row in rows]


_READERS: dict[str, Callable[[list[str]], list[str]]] = {
    "links": _links,
    "qdiscs": _qdiscs,
    "bridges": _table,
    "ports": _table,
    "interfaces": _table,
    "mirrors": _table,
    "switch": _table,
}

"""Random VirtualTap specs that the CRD's schema takes, far from what anybody would write."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from vtap_api.virtualtap import BackendName

Spec = dict[str, Any]
_WORDS = st.sampled_from(["web", "db", "a" * 63, "x.y_z-1", "0"])
_KEYS = st.sampled_from(["app", "tier", "example.com/role", f"{'d' * 40}.example/{'k' * 63}"])
_LABELS = st.dictionaries(_KEYS, _WORDS, min_size=1, max_size=3)
_EXPRESSIONS = st.one_of(
    st.fixed_dictionaries(
        {"key": _KEYS, "operator": st.sampled_from(["In", "NotIn"]), "values": st.lists(_WORDS, min_size=1, max_size=4)}
    ),
    st.fixed_dictionaries({"key": _KEYS, "operator": st.sampled_from(["Exists", "DoesNotExist"])}),
)
_SELECTORS: st.SearchStrategy[Spec] = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"matchLabels": _LABELS}),
    st.fixed_dictionaries({"matchExpressions": st.lists(_EXPRESSIONS, min_size=1, max_size=3)}),
)
_NETWORKS = st.sampled_from(["0.0.0.0/0", "::/0", "10.50.0.0/16", "10.50.1.10/32", "fd00::/8", "224.0.0.0/4", "ff02::1/128"])
_PORT = st.integers(1, 65535)


@st.composite
def _port_ranges(draw: st.DrawFn) -> Spec:
    first = draw(_PORT)
    last = draw(st.none() | st.integers(first, 65535))
    return {"port": first} | ({"endPort": last} if last else {})


@st.composite
def _rules(draw: st.DrawFn) -> Spec:
    rule: Spec = {"action": draw(st.sampled_from(["Include", "Exclude"]))}
    peer = draw(
        st.none()
        | st.fixed_dictionaries({"cidr": _NETWORKS})
        | st.fixed_dictionaries({"podSelector": _SELECTORS})
        | st.fixed_dictionaries({"namespaceSelector": _SELECTORS})
        | st.fixed_dictionaries({"namespaceSelector": _SELECTORS, "podSelector": _SELECTORS})
    )
    if peer:
        rule["peer"] = peer
    with_ports = draw(st.sampled_from([None, "TCP", "UDP", "SCTP", 6, 17, 132]))
    if with_ports is not None:
        rule["protocol"] = with_ports
        for end in ("podPorts", "peerPorts"):
            if draw(st.booleans()):
                rule[end] = draw(st.lists(_port_ranges(), min_size=1, max_size=2))
    elif draw(st.booleans()):
        rule["protocol"] = draw(st.sampled_from(["GRE", "ESP", "OSPF", 0, 255, 50]))
    if rule.get("protocol") == "TCP" and draw(st.booleans()):
        flags = draw(st.permutations(["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"]))
        rule["tcpFlags"] = {"set": flags[:2], "clear": flags[2:5]}
    if draw(st.booleans()):
        rule["vlan"] = draw(st.sampled_from([0, 1, 100, 4094]))
    return rule


_FILTERS = st.fixed_dictionaries(
    {"defaultAction": st.sampled_from(["Include", "Exclude"]), "rules": st.lists(_rules(), max_size=6)}
)
_SAMPLING: st.SearchStrategy[Spec] = st.one_of(
    st.fixed_dictionaries(
        {
            "type": st.just("PerInterval"),
            "perInterval": st.fixed_dictionaries(
                {"packets": st.integers(1, 1000), "interval": st.sampled_from(["1ms", "10s", "24h"])}
            ),
        }
    ),
    st.fixed_dictionaries({"type": st.just("OneIn"), "oneIn": st.integers(1, 1_000_000)}),
)
_RATES = st.fixed_dictionaries({"bitsPerSecond": st.sampled_from(["1k", "50M", "1T", 1234567])})
_CUTS: st.SearchStrategy[Spec] = st.one_of(
    st.fixed_dictionaries({"snapLength": st.sampled_from([14, 64, 65535])}), st.just({"headersOnly": True})
)


def tap_specs() -> st.SearchStrategy[Spec]:
    """Specs without podSelector, which a case adds."""
    return st.fixed_dictionaries(
        {},
        optional={
            "podSelector": _SELECTORS,
            "interfaces": st.sampled_from([["*"], ["net1"], ["eth0"], ["net1", "eth0"], ["nothing"], ["a.b@c-d_e"]]),
            "direction": st.sampled_from(["Both", "Ingress", "Egress"]),
            "filter": _FILTERS,
            "sampling": _SAMPLING,
            "rateLimit": _RATES,
            "packet": _CUTS,
            "destinationRef": st.sampled_from([{"name": "default"}, {"name": "nowhere"}]),
            "backend": st.sampled_from([name.value for name in BackendName]),
            "ttl": st.sampled_from(["1h", "24h"]),
        },
    )

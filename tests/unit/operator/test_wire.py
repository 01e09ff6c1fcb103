"""What the operator reads of objects that others write."""

from __future__ import annotations

import json

from vtap_operator.wire import Pod, PodAnnotations, PodMeta, pod_addresses


def annotated(text: str) -> list[str]:
    return list(pod_addresses(Pod(PodMeta(annotations=PodAnnotations(text)))))


def test_addresses_that_no_slice_may_hold_are_left_out() -> None:
    """Otherwise one annotation would have the API server refuse the addresses of every other pod, too."""
    written = ["10.1.0.1", "fd00::1/64", "fe80::1%eth0", "::ffff:10.1.0.2", "10.1.0.300", "", "web"]
    assert annotated(json.dumps([{"ips": written}])) == ["10.1.0.1", "fd00::1", "10.1.0.2"]


def test_what_is_no_network_status_says_nothing() -> None:
    for text in ("", "{", "null", '{"ips": []}', '[{"ips": [7]}]', "[[]]"):
        assert annotated(text) == []

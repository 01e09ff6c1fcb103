"""`kubectl vtap` against the cluster: a capture that ends and goes by itself, and what it says of pods."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.e2e.cases.scene import Scene, expect_each_once, flows_on, point
from tests.e2e.cluster.commands import ClusterError
from vtap_lab import capture
from vtap_lab.errors import PATIENCE

_COUNT = 300


def test_capture_writes_a_file_and_leaves_no_tap(scene: Scene) -> None:
    """A tap for as long as it takes: the packets in the file are the pod's, without a gap, and the tap is gone."""
    web, client = scene.pods(web=0, client=1)
    stream = scene.exchange(web, client)
    flows_on(stream, 50)
    file = scene.folder / "captured.pcapng"
    argv = scene.product.vtap_argv(
        "capture",
        "-l",
        "app=web",
        f"--count={_COUNT}",
        "-w",
        str(file),
        "--wait=120s",
        "--capture-filter=udp",
        namespace=scene.namespace,
    )
    done = subprocess.run(
        argv,
        capture_output=True,
        text=True,
        timeout=240 * PATIENCE,
        env={**os.environ, **scene.product.vtap_environment()},
        check=False,
    )
    sent = stream.stop().sent
    assert done.returncode == 0, done.stderr
    assert "unaccounted=0" in done.stderr.replace("UNACCOUNTED", "unaccounted"), done.stderr
    found = capture.numbered(file)
    numbers = sorted(one.sequence for name, one in found if name == point(web, "egress"))
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers))) and len(numbers) == _COUNT
    expect_each_once(found, [one for one in sent if one.sequence in set(numbers)], point(web, "egress"))
    assert scene.taps() == []


def test_explain_says_why_and_why_not(scene: Scene) -> None:
    scene.pods(web=0, client=1)
    scene.tap("web", backend="OVSMirror")
    tapped = scene.product.vtap("explain", "web", namespace=scene.namespace)
    assert all(word in tapped for word in (f"{scene.namespace}/web", "net1", "OVSMirror"))
    other = scene.product.vtap("explain", "client", namespace=scene.namespace)
    assert "OVSMirror" not in other


def test_a_tap_that_is_not_there_is_a_sentence(scene: Scene) -> None:
    with pytest.raises(ClusterError, match="there is no VirtualTap"):
        scene.product.vtap("packets", "nothing", "--stored", namespace=scene.namespace)

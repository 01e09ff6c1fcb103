"""What `--cleanup` says of what it could not remove."""

from __future__ import annotations

from pathlib import Path

import pytest

from vtap_agent.agent import Agent, Settings
from vtap_agent.errors import TellUser


def settings(place: Path) -> Settings:
    """Of a node that has an Open vSwitch which does not answer, and whose --bpffs names a plain directory."""
    (place / "openvswitch").mkdir()
    (place / "openvswitch" / "conf.db").touch()
    return Settings(
        taps=place,
        pods="netns",
        node="node-a",
        run_dir=place / "run",
        state_dir=place / "state",
        ovsdb=f"unix:{place}/openvswitch/db.sock",
        listen="",
        first_key=4096,
        keep_on_exit=False,
        bpffs=place,
    )


def test_what_may_stay_of_each_backend_is_told_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(TellUser) as raised:
        Agent(settings(tmp_path)).cleanup()
    switch, kernel = str(raised.value).split("eBPF programs", 1)
    assert "OVSMirror's mirrors" in switch and "OVSGroup's flows, groups" in switch
    assert switch.count("no Open vSwitch database answers") == 1, "a reason that several share is said once"
    assert "is no bpffs" in kernel and kernel.endswith("run --cleanup again")

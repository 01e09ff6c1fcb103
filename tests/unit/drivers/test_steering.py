"""Lists and masks of CPUs, as the kernel writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from vtap_agent.drivers import steering
from vtap_agent.drivers.steering import mask_of, parse_cpus, steer, steered
from vtap_agent.errors import TellUser


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("0", {0}), ("2-3,6", {2, 3, 6}), ("0-3,2-5\n", {0, 1, 2, 3, 4, 5}), ("127", {127})],
)
def test_lists(text: str, cpus: set[int]) -> None:
    assert parse_cpus(text) == cpus


@pytest.mark.parametrize("text", ["", "all", "1,", "-2", "2-", "3-1", "1.5", "0x3", "1-2-3", "²"])
def test_what_is_no_list(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no list of CPUs|ends before it begins"):
        parse_cpus(text)


@pytest.mark.parametrize(
    ("cpus", "mask"),
    [(set[int](), "00000000"), ({0, 1}, "00000003"), ({31, 32}, "00000001,80000000"), ({64}, "00000001,00000000,00000000")],
)
def test_masks_are_written_and_read(cpus: set[int], mask: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steering, "VIRTUAL_DEVICES", tmp_path)
    (tmp_path / "veth0" / "queues" / "rx-0").mkdir(parents=True)
    (tmp_path / "veth0" / "queues" / "rx-0" / "rps_cpus").touch()
    steer("veth0", frozenset(cpus))
    assert (tmp_path / "veth0" / "queues" / "rx-0" / "rps_cpus").read_text() == mask == mask_of(cpus)
    assert steered("veth0") == cpus


def test_a_device_that_sysfs_does_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steering, "VIRTUAL_DEVICES", tmp_path)
    assert steered("veth0") == frozenset()
    with pytest.raises(TellUser, match="lacks veth0: let it show the network namespace that the agent is in"):
        steer("veth0", frozenset({1}))
    (tmp_path / "veth0").mkdir()
    with pytest.raises(TellUser, match="no receive packet steering"):
        steer("veth0", frozenset({1}))


def test_cpus_that_are_up_are_found() -> None:
    assert 0 in steering.online_cpus()


def test_cpus_that_the_kernel_leaves_out_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel takes isolated CPUs out of what is written, or refuses it where nothing is left."""
    monkeypatch.setattr(steering, "VIRTUAL_DEVICES", tmp_path)
    (tmp_path / "veth0" / "queues" / "rx-0").mkdir(parents=True)
    monkeypatch.setattr(steering, "steered", lambda _device: frozenset({2}))  # pyright: ignore[reportUnknownLambdaType]
    with pytest.raises(TellUser, match=r"leaves out CPU 3: .*isolcpus"):
        steer("veth0", frozenset({2, 3}))


def test_what_waits_for_a_cpu_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows as Linux 6.18 writes them, of CPUs 0 and 10."""
    rows = [
        "0002e5a1" + " 00000000" * 10 + " 00000003 00000000 00000003 00000000",
        "00" * 4 + " 00000000" * 10 + " 00000020 0000000a",
    ]
    monkeypatch.setattr(steering, "SOFTNET", tmp_path / "softnet_stat")
    (tmp_path / "softnet_stat").write_text("\n".join(rows) + "\n")
    assert [steering.queued(cpus) for cpus in ({0}, {10}, {0, 10}, {1})] == [3, 32, 35, 0]

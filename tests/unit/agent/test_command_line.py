"""What `vtap-agent` takes, and the sentence where it can't begin."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from vtap_agent import main as module
from vtap_agent.main import main


def arguments(*given: str) -> argparse.Namespace:
    return module._arguments(given)  # pyright: ignore[reportPrivateUsage]


def test_the_command_line_of_the_chart() -> None:
    options = arguments(
        *("--kubernetes", "--node", "here", "--namespace", "vtap-system", "--tls", "/etc/vtap/tls", "--bpffs", "/sys/fs/bpf"),
        *("--run-dir", "/run/vtap", "--state-dir", "/var/lib/vtap", "--ovsdb", "unix:/run/openvswitch/db.sock"),
        *("--on-exit", "keep", "--listen", "[::]:9473"),
    )
    assert options.kubernetes and options.tls == Path("/etc/vtap/tls") and options.bpffs == Path("/sys/fs/bpf")
    assert options.on_exit == "keep" and options.kubeconfig is None


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ((), "--taps DIR is required, or --kubernetes"),
        (("--taps", "t", "--kubernetes"), "give one of them"),
        (("--taps", "t", "--kubeconfig", "k"), "--kubeconfig goes with --kubernetes"),
    ],
)
def test_what_does_not_go_together_is_said(given: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        arguments(*given)
    assert sentence in capsys.readouterr().err


def test_missing_capabilities_are_named_with_the_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status = tmp_path / "status"
    status.write_text("CapEff:\t0000000000001000\n")
    monkeypatch.setattr(module, "STATUS", status)
    assert main(["--kubernetes"]) == 1
    said = capsys.readouterr().err
    assert "lacks CAP_BPF, CAP_NET_BROADCAST, CAP_PERFMON, CAP_SYS_PTRACE" in said and "securityContext.capabilities" in said
    assert main(["--taps", "t"]) == 1
    assert "run it as root" in capsys.readouterr().err

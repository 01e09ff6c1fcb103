"""Every reason that a status or an Event can give is in docs/status-reasons.md, and no other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "status-reasons.md").read_text()
SOURCES = ("api/vtap_api/refusals.py", "agent/vtap_agent", "operator/vtap_operator", "charts/vtap/files")
SHAPE = re.compile(r"[A-Z][a-z]+(?:[A-Z][A-Za-z]*)*")

_OTHERS = """
    Accept AlreadyExists Always Antrea Authorization Background ClusterRole ClusterRoleBinding ContainerCreating
    CrashLoopBackOff CreateContainerConfigError DeleteOptions Deployment ErrImagePull Event Exists ExternalName Failed False
    IfNotPresent ImagePullBackOff In InvalidImageName Namespace NetworkPolicy Never Node None Normal PartialObjectMetadata
    PartialObjectMetadataList PersistentVolumeClaim Pod PodInitializing PodScheduled RollingUpdate RuntimeDefault Opaque
    Secret Service ServiceAccount Sideways Succeeded True Unknown Unreachable Warning

    All Both Delivering Egress Ingress Refused TapDestination TapNode TapPeerSlice VirtualTap Waiting

    Bridge Controller Copying Hidden Idle Interface Leaking Mirror Missing NotHeld Port Reachable Shared Shown Unsure

    CapEff Item Key Observer Pipeline PipelineStep PodSource PodsHere SwitchSource Taken TapPortDevices
"""
OTHER_WORDS = frozenset(_OTHERS.split())
"""Words of the same shape that no status gives: of HTTP and Kubernetes; our kinds, conditions and states; Open vSwitch's and of
next hops; names that modules export. What the code says beyond these has to be on the page."""


def _words(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and SHAPE.fullmatch(node.value):
            yield node.value


def _said() -> dict[str, str]:
    """Words by where they were found first."""
    files = [
        file for name in SOURCES for file in ([ROOT / name] if name.endswith(".py") else sorted((ROOT / name).rglob("*.py")))
    ]
    assert files
    found: dict[str, str] = {}
    for file in files:
        for word in _words(file):
            found.setdefault(word, str(file.relative_to(ROOT)))
    return found


def _documented() -> list[str]:
    return re.findall(r"^\| `([A-Za-z]+)` \|", PAGE, re.MULTILINE)


def test_every_reason_has_its_cure() -> None:
    missing = {word: file for word, file in _said().items() if word not in OTHER_WORDS and word not in _documented()}
    assert missing == {}, "say in docs/status-reasons.md what these mean and what helps"


def test_no_reason_is_told_of_that_nothing_gives() -> None:
    assert set(_documented()) - set(_said()) == set()


def test_no_reason_is_excused() -> None:
    assert OTHER_WORDS & set(_documented()) == set()


def test_each_reason_is_told_once() -> None:
    assert sorted(_documented()) == sorted(set(_documented()))


def test_each_row_says_what_to_do() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| `")]
    bare = [row for row in rows if not row.strip("| ").split("|")[-1].strip()]
    assert len(rows) == len(_documented())
    assert bare == []

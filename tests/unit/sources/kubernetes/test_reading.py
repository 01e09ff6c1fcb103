"""What cannot be read is said, whatever it is."""

from __future__ import annotations

import json

import pytest

from vtap_agent.sources.kubernetes.reading import read
from vtap_api import VirtualTap


@pytest.mark.parametrize("odd", ["\U0001f600", "\x85", "\ud83d"])
def test_no_character_of_one_tap_is_the_nodes_trouble(odd: str) -> None:
    raw = json.dumps({"metadata": {"name": "web", "namespace": "shop"}, "spec": {"podSelector": {}, "ttl": odd}}).encode()
    found = read(VirtualTap, raw)
    assert found.good is None and found.problem.startswith("VirtualTap shop/web: ")

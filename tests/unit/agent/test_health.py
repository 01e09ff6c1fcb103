"""What kubelet is told of the agent."""

from __future__ import annotations

from vtap_agent.health import Health
from vtap_agent.lease import HUNG_AFTER


def test_waiting_for_the_cluster_is_alive_and_not_ready() -> None:
    health = Health(waiting="this node's TapNode does not exist yet")
    assert health.dead() == "" and "TapNode" in health.unready()


def test_a_loop_that_moves_is_alive_and_ready_once_a_pass_has_ended() -> None:
    assert Health(0.5).dead() == "" and Health(0.5).unready()
    assert Health(0.5, ready=True).unready() == ""


def test_a_loop_that_hangs_is_dead() -> None:
    assert Health(HUNG_AFTER, ready=True).dead() == ""
    assert "has not moved for 61 s" in Health(HUNG_AFTER + 1, ready=True).dead()

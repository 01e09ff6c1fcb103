"""Whether the agent lives and whether it has begun to work, for kubelet's probes. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from vtap_agent.lease import HUNG_AFTER


@dataclass(frozen=True, slots=True)
class Health:
    """`silence` is None while there is no loop yet; `waiting` says then what for."""

    silence: float | None = None
    ready: bool = False
    waiting: str = "the agent is starting"

    def dead(self) -> str:
        """Why the agent should be started anew; empty where it lives. Waiting for the cluster is no reason."""
        if self.silence is None or self.silence <= HUNG_AFTER:
            return ""
        return f"the loop has not moved for {self.silence:.0f} s"

    def unready(self) -> str:
        """What the agent still waits for; empty once it has begun to work."""
        if self.silence is None:
            return self.waiting
        return "" if self.ready else "no pass has come to its end yet; see /v1/status on the agent's socket"

"""What is on this node: pods, their interfaces, how they hang on bridges, and the way to where copies go."""

from vtap_agent.inventory.observer import Observer, PodsHere, PodSource, SwitchSource, give_back_neighbours

__all__ = ["Observer", "PodSource", "PodsHere", "SwitchSource", "give_back_neighbours"]

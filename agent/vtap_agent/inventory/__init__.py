"""What is on this node: pods, their interfaces, the OVS ports they end at, and the way to each destination. Only looks."""

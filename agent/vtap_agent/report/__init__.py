"""What the agent says: TapNode status, the ledger, Prometheus metrics."""

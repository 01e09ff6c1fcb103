"""A real API server on loopback, without nodes: what the operator does is judged by it."""

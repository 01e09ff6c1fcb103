"""Desired taps and this node's pods from the Kubernetes API, by list and watch; docs/cluster.md says who writes what."""

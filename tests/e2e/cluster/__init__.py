"""Real Kubernetes clusters with Open vSwitch in their nodes, for the end-to-end tests; `python -m tests.e2e.cluster`."""

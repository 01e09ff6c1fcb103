"""A node in network namespaces, with real Open vSwitch: what the demo, the tests and the measurements run on."""

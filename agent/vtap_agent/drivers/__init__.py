"""Connections to OVSDB, vswitchd, netlink and libbpf. They speak a protocol and decide nothing."""

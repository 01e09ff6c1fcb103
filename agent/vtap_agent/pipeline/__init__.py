"""Loads and configures the eBPF preprocessor, and reads its counters."""

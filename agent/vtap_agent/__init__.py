"""The node agent: observe, plan, apply, verify, report."""

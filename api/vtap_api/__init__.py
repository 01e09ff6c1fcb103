"""VirtualTap."""

"""`vtap`, the command line of VirtualTap."""

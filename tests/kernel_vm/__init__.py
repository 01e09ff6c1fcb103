"""The distribution's kernel, with Open vSwitch's kernel datapath, in a small virtual machine; `python -m tests.kernel_vm`."""

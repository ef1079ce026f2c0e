# SPDX-License-Identifier: MIT
"""What runs inside of the virtual machine, on the kernel module."""

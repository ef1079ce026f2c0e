# SPDX-License-Identifier: MIT
"""Programs that run inside the virtual machine, where the kernel module is loaded: C{python -m ssa.test.vm.guest.NAME}."""

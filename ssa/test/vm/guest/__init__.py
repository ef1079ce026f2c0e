# SPDX-License-Identifier: MIT
"""
What runs in the guest with the kernel module and a real daemon: one scenario a module, C{python -m ssa.test.vm.guest.NAME}.

For root in a virtual machine only: the scenarios kill their daemon, unload the module, change its limits and make users'
namespaces.
"""

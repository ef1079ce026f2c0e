# SPDX-License-Identifier: MIT
"""
Programs that run inside the virtual machine, where the kernel module is loaded: C{python -m ssa.test.vm.guest.NAME}.

Each ends with status 0 only if everything that it claims holds; the kernel's own complaints are the machine's to notice.
L{ssa.test.vm.scenarios} says which of them run on which kernel.
"""

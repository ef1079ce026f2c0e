# SPDX-License-Identifier: MIT
"""
The virtual machine in which the kernel module is tested: Debian's kernels and a debug kernel of our own under QEMU, on the
host's own files.

Needs no root: packages are downloaded with the machine's apt and unpacked below C{build/vm}, QEMU emulates the processor,
and the guest sees the host's file system read-only.  C{python -m ssa.test.vm --help}; C{docs/testing.rst} explains it.
"""

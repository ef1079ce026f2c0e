# SPDX-License-Identifier: MIT
"""
Connections whose keys are in the kernel: C{python -m ssa.test.vm.guest.ktls}, as root, where the module and "tls" are loaded.

C{daemon} is a daemon of its own that installs keys, C{records} a peer that sends whatever records a case wants, C{compat} a
32-bit caller; the cases are in C{case_receiving}, C{case_sending} and C{case_life}.
"""

# SPDX-License-Identifier: MIT
"""
What a program sees of C{IPPROTO_TLS}, tested once for every interceptor.

The I{cases} (C{case_*.py}) are ordinary L{unittest.TestCase} classes that make TLS sockets by socket(2).  They run inside of
an intercepted process and know nothing of how that is done; L{ssa.test.conformance.runner} starts it, and the trial modules
(C{test_*.py}) report each case by name, once for each way of interception.
"""

# SPDX-License-Identifier: MIT
"""
C{twistd ssa}.

Twisted finds this file by its place.  There is no C{__init__.py} here nor above: these directories are Twisted's.
"""

from twisted.application.service import ServiceMaker

ssaDaemon = ServiceMaker("ssa", "ssa.tap", "TLS as a service of the operating system.", "ssa")
